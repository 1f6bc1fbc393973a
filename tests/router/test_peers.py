"""Several routers in front of the same workers: what one was sent counts for the others, as long as it lives."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from support.router_mock_backend import MockWorker, mock_worker
from support.router_peers import hears, knowing, router_process, routers, serving, states_of
from support.router_running import (
    MODEL,
    Running,
    chat,
    config,
    eventually,
    eventually_async,
    pair,
    running_router,
)
from support.worker_process import NAME, free_port, running_worker
from turnout_router.settings import PeerSettings

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = 6


def long(number: int, words: int = 900) -> str:
    """Return a prompt of its own, of three blocks or more."""
    return f"prompt {number}: " + f"{number} words " * words


def ask(r: Running, prompt: str) -> asyncio.Task[str]:
    """Begin a streamed request through *r*; the task returns which worker answered."""

    async def asking() -> str:
        answer = await r.chat(prompt, stream=True)
        assert answer.status_code == 200
        return answer.headers["x-turnout-backend"]

    return asyncio.create_task(asking())


def one_pool(*workers: MockWorker, policy: str = "PrefixAware") -> dict[str, object]:
    return config([("aggregated", worker.url) for worker in workers], policy=policy)


async def test_a_prefix_that_one_router_sent_is_known_to_the_other(tmp_path: Path) -> None:
    """The other router follows, to a worker that would be the affinity target of 50 % of the prompts at most."""
    async with (
        mock_worker(behavior="gated") as busy,
        mock_worker(behavior="gated") as idle,
        routers(tmp_path, one_pool(busy, idle)) as (a, b),
    ):
        await knowing([a, b], 1)
        held = [ask(a, long(number)) for number in range(100, 112)]
        await eventually(lambda: busy.running + idle.running == len(held))
        idle.gate.set()
        await eventually(lambda: not idle.running)
        assert busy.running
        went = [await ask(a, long(number)) for number in range(PROMPTS)]
        assert set(went) == {idle.id}
        busy.gate.set()
        await asyncio.gather(*held)
        await hears(b, 0)
        assert [await ask(b, long(number)) for number in range(PROMPTS)] == went


async def test_a_conversation_that_hops_between_routers_stays_with_its_worker(tmp_path: Path) -> None:
    """Turns alternate between two routers over real simulated workers: the workers' own counters show the hits."""
    conversations, turns = 6, 4

    async def talk(both: list[Running], number: int) -> set[str]:
        messages: list[dict[str, str]] = []
        went = set()
        for turn in range(turns):
            messages.append(
                {"role": "user", "content": f"{number}, {turn}: " + f"{number} and {turn} " * 300}
            )
            body = {"model": NAME, "messages": messages, "max_tokens": 8, "stream": bool(number % 2)}
            answer = await both[turn % 2].client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200
            went.add(answer.headers["x-turnout-backend"])
            messages.append({"role": "assistant", "content": f"answer {turn}"})
        return went

    with ExitStack() as stack:
        workers = [stack.enter_context(running_worker(role="aggregated", time_scale=5)) for _ in range(3)]
        content = config([("aggregated", worker.url) for worker in workers], timeScale=5, servedNames=[NAME])
        async with routers(tmp_path, content) as both:
            await knowing(both, 1)
            went = await asyncio.gather(*(talk(both, number) for number in range(conversations)))
            for r in both:
                await hears(r, 0)
        hits = sum(worker.metric("vllm:prefix_cache_hits_total") for worker in workers)
        queries = sum(worker.metric("vllm:prefix_cache_queries_total") for worker in workers)
    assert [len(each) for each in went] == [1] * conversations
    # Of 1 + 2 + 3 + 4 paragraphs asked for, 0 + 1 + 2 + 3 had been computed before.
    assert hits / queries > 0.5


async def test_what_one_router_has_in_flight_is_seen_by_the_other(tmp_path: Path) -> None:
    """Two requests at a time, one through each: never on the same worker; afterwards all trackers are empty."""
    async with (
        mock_worker(behavior="gated") as one,
        mock_worker(behavior="gated") as two,
        routers(tmp_path, one_pool(one, two)) as (a, b),
    ):
        await knowing([a, b], 1)
        for number in range(PROMPTS):
            first = ask(a, long(2 * number, words=36000))
            await hears(b, 1)
            second = ask(b, long(2 * number + 1, words=36000))
            await eventually(lambda: (one.running, two.running) == (1, 1))
            await hears(a, 1)
            for worker in (one, two):
                worker.gate.set()
            await asyncio.gather(first, second)
            for worker in (one, two):
                worker.gate.clear()
            for r in (a, b):
                await hears(r, 0)
        for state in states_of(a) + states_of(b):
            assert state.in_flight == state.cache.held == state.queued_tokens == state.context_tokens == 0


async def test_both_halves_of_a_pair_are_reported_each_on_its_worker(tmp_path: Path) -> None:
    """A prefill worker computes, a decode worker waits: the other router sees one request on each, then none."""
    async with (
        mock_worker() as prefill,
        mock_worker(behavior="gated") as decode,
        routers(tmp_path, pair(prefill, decode)) as (a, b),
    ):
        await knowing([a, b], 1)
        waiting = ask(a, long(1))
        await eventually(lambda: decode.running)
        await hears(b, 1)
        in_flight = {state.id: state.in_flight for state in states_of(b)}
        assert in_flight == {prefill.id: 0, decode.id: 1}
        decode.gate.set()
        await waiting
        await hears(b, 0)
        assert await b.metric("turnout_router_peer_messages_total", direction="received") >= 5


async def test_an_answer_in_one_piece_is_reported_with_what_its_first_token_should_take(
    tmp_path: Path,
) -> None:
    """Its first token cannot be observed, so the other router assumes it at the expected time."""
    async with (
        mock_worker(behavior="gated") as one,
        mock_worker() as two,
        routers(tmp_path, one_pool(one, two)) as (a, b),
    ):
        await knowing([a, b], 1)
        held = []
        for number in range(20):
            held.append(asyncio.create_task(a.chat(long(number))))
            await eventually(lambda: one.running or held[-1].done())
            if one.running:
                break
        await hears(b, 1)
        state = next(state for state in states_of(b) if state.id == one.id)
        (request,) = state.waiting
        await eventually(lambda: request.expected_at < asyncio.get_running_loop().time() + 10)
        one.gate.set()
        await asyncio.gather(*held)


async def test_a_router_that_is_killed_takes_its_requests_out_of_the_others_books(tmp_path: Path) -> None:
    """Killed with a request in flight; then started again, and connected as before."""
    async with mock_worker(behavior="gated") as one, mock_worker(behavior="gated") as two:
        content = one_pool(one, two)
        theirs, ours, public = free_port(), free_port(), free_port()
        flags = ("--peers-port", str(theirs), "--peer", f"127.0.0.1:{ours}")
        peers = PeerSettings(ours, (("127.0.0.1", theirs),))
        async with running_router(tmp_path, content, peers=peers) as b:
            with router_process(tmp_path / "other", content, public, *flags) as other:
                await serving(public)
                await knowing([b], 1)
                b.client.base_url = f"http://127.0.0.1:{public}"
                asking = ask(b, long(1))
                await hears(b, 1)
                assert sum(state.in_flight for state in states_of(b)) == 1
                other.kill()
                await hears(b, 0)
            assert sum(state.in_flight + state.cache.held for state in states_of(b)) == 0
            await asyncio.gather(asking, return_exceptions=True)
            await knowing([b], 0)
            with router_process(tmp_path / "other", content, public, *flags):
                await serving(public)
                await knowing([b], 1)
                asking = ask(b, long(2))
                await hears(b, 1)
                b.client.base_url = f"http://127.0.0.1:{b.router.port}"
                one.gate.set()
                two.gate.set()
                await asking
                await hears(b, 0)
                assert (await b.chat(long(3))).status_code == 200


async def test_who_joins_late_receives_what_is_in_flight(tmp_path: Path) -> None:
    """Sent before another router was there, and its first token is reported, too."""
    async with (
        mock_worker(tokens=1_000_000, pause_seconds=0.05) as one,
        mock_worker(behavior="gated") as two,
    ):
        content = one_pool(one, two)
        first, second = free_port(), free_port()
        (tmp_path / "late").mkdir()
        async with running_router(
            tmp_path, content, peers=PeerSettings(first, (("127.0.0.1", second),))
        ) as a:
            held = []
            for number in range(30):
                held.append(ask(a, long(number)))
                await eventually(lambda: one.running + two.running == len(held))
            on_one = one.running
            assert on_one
            assert two.running
            await eventually(lambda: sum(state.running for state in states_of(a)) == on_one)
            peers = PeerSettings(second, (("127.0.0.1", first),))
            async with running_router(tmp_path / "late", content, peers=peers) as late:
                await hears(late, 30)
                seen = {state.id: (len(state.waiting), state.running) for state in states_of(late)}
                assert seen == {one.id: (0, on_one), two.id: (30 - on_one, 0)}
                for task in held:
                    task.cancel()
                await hears(late, 0)
            await asyncio.gather(*held, return_exceptions=True)


async def test_who_joins_late_receives_what_workers_have_cached(tmp_path: Path) -> None:
    """Requests that are over say where their prefixes are: a router that starts anew follows them."""
    async with mock_worker(behavior="gated") as busy, mock_worker(behavior="gated") as idle:
        content = one_pool(busy, idle)
        first, second = free_port(), free_port()
        (tmp_path / "late").mkdir()
        async with running_router(
            tmp_path, content, peers=PeerSettings(first, (("127.0.0.1", second),))
        ) as a:
            held = [ask(a, long(number)) for number in range(100, 112)]
            await eventually(lambda: busy.running + idle.running == len(held))
            idle.gate.set()
            await eventually(lambda: not idle.running)
            went = [await ask(a, long(number)) for number in range(PROMPTS)]
            assert set(went) == {idle.id}
            busy.gate.set()
            await asyncio.gather(*held)
            peers = PeerSettings(second, (("127.0.0.1", first),))
            async with running_router(tmp_path / "late", content, peers=peers) as late:
                await knowing([late], 1)
                await eventually_async(
                    lambda: _at_least(late, "turnout_router_peer_messages_total", 2 * (PROMPTS + len(held)))
                )
                await hears(late, 0)
                assert [await ask(late, long(number)) for number in range(PROMPTS)] == went


async def test_a_router_does_not_talk_to_itself_and_says_who_is_there(tmp_path: Path) -> None:
    """Three routers that all know all three addresses: each has two peers."""
    async with (
        mock_worker() as one,
        mock_worker() as two,
        routers(tmp_path, one_pool(one, two), (None, None, None)) as running,
    ):
        await knowing(running, 2)
        for r in running:
            page = (await r.admin.get("/admin/peers")).json()
            assert sorted(one["state"] for one in page["outgoing"]) == [
                "connected",
                "connected",
                "this router itself",
            ]
            assert len({one["identity"] for one in page["incoming"]} - {page["identity"]}) == 2
            assert page["requestsOfOthers"] == 0


async def test_a_router_without_peers_has_none_of_it(tmp_path: Path) -> None:
    """No port, no metrics, nothing kept: what is not asked for costs nothing."""
    async with mock_worker() as one, mock_worker() as two, running_router(tmp_path, one_pool(one, two)) as r:
        assert (await r.chat(long(1))).status_code == 200
        assert (await r.admin.get("/admin/peers")).json() is None
        assert "turnout_router_peer" not in (await r.admin.get("/metrics")).text
        assert r.router.peers_port == 0


async def test_routers_with_different_fleets_do_not_confuse_each_other(tmp_path: Path) -> None:
    """Of deployments and workers that a router does not have it tracks nothing, counts that, and serves."""
    async with mock_worker() as one, mock_worker() as two, mock_worker() as three:
        first, second = free_port(), free_port()
        folders = [tmp_path / name for name in ("a", "b")]
        for folder in folders:
            folder.mkdir()
        other = config([("aggregated", one.url), ("aggregated", three.url)])
        elsewhere = dict(other["deployments"][0], name="default/elsewhere", servedNames=["elsewhere"])
        theirs = {"deployments": [*other["deployments"], elsewhere]}
        async with (
            running_router(
                folders[0], one_pool(one, two), peers=PeerSettings(first, (("127.0.0.1", second),))
            ) as a,
            running_router(folders[1], theirs, peers=PeerSettings(second, (("127.0.0.1", first),))) as b,
        ):
            await knowing([a, b], 1)
            for number in range(20):
                await ask(b, long(number))
                body = chat(long(number)) | {"model": "elsewhere"}
                assert (await b.client.post("/v1/chat/completions", json=body)).status_code == 200

            async def counted() -> bool:
                name = "turnout_router_peer_messages_ignored_total"
                unknown = await a.metric(name, reason="unknown_deployment")
                return unknown == 20 and await a.metric(name, reason="unknown_request") > 0

            await eventually_async(counted)
            await hears(a, 0)
            assert (await a.chat("hello", model=MODEL)).status_code == 200
            assert (await a.admin.get("/readyz")).status_code == 200


@pytest.mark.parametrize("policy", ["LeastLoaded", "PrefixAware"])
async def test_only_what_is_chosen_by_prefix_is_reported(tmp_path: Path, policy: str) -> None:
    """LeastLoaded uses the router's own load alone: messages would have no effect."""
    async with (
        mock_worker() as one,
        mock_worker() as two,
        routers(tmp_path, one_pool(one, two, policy=policy)) as (a, b),
    ):
        await knowing([a, b], 1)
        await ask(a, long(1))
        await ask(b, long(2))
        received = "turnout_router_peer_messages_total"
        if policy == "PrefixAware":
            await eventually_async(lambda: _at_least(b, received, 3))
        else:
            assert await a.metric(received, direction="sent") == 0


async def _at_least(r: Running, name: str, least: float) -> bool:
    return await r.metric(name, direction="received") >= least
