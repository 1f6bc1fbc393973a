"""The router in exact mode in front of real simulated workers: it knows what it has not sent itself."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from support.kv_events_publisher import publisher, stored
from support.router_mock_backend import mock_worker
from support.router_running import DEPLOYMENT, Running, eventually, eventually_async, running_router
from support.worker_process import NAME, WorkerProcess, free_port, running_worker
from turnout.routing import KvEventPorts
from turnout.routing.tokens import chain
from turnout_router.errors import ConfigError
from turnout_router.fleet.discovery.file import read_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPT = "Once upon a time there was a railway with many turnouts, and each of them had a story. " * 60
"""5,220 bytes, 1,305 tokens."""


class Publishing:
    """A worker that publishes KV events."""

    def __init__(
        self, stack: ExitStack, *, port: int = 0, ports: tuple[int, int] = (0, 0), **flags: Any
    ) -> None:
        self.ports = ports if ports[0] else (free_port(), free_port())
        config = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.ports[0]}",
            "replay_endpoint": f"tcp://*:{self.ports[1]}",
            "topic": "kv@llama",
        }
        self.worker: WorkerProcess = stack.enter_context(
            running_worker(port=port, time_scale=20, kv_events_config=json.dumps(config), **flags)
        )

    @property
    def id(self) -> str:
        return f"127.0.0.1:{self.worker.port}"

    def backend(self, role: str = "aggregated") -> dict[str, Any]:
        events = {"port": self.ports[0], "replayPort": self.ports[1]}
        return {"role": role, "url": self.worker.url, "kvTokens": 100_000, "kvEvents": events}

    def ask(self, prompt: str = PROMPT, **more: Any) -> int:
        """Ask it directly, so that no router sees it. Return how many blocks the prompt has."""
        body = {"model": NAME, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4}
        self.post("/v1/chat/completions", body | more)
        return self.blocks_of(prompt)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return httpx.post(f"{self.worker.url}{path}", json=body).raise_for_status().json()

    def tokens_of(self, prompt: str) -> list[int]:
        body = {"model": NAME, "messages": [{"role": "user", "content": prompt}]}
        found: list[int] = self.post("/tokenize", body)["tokens"]
        return found

    def blocks_of(self, prompt: str) -> int:
        return len(self.tokens_of(prompt)) // 16


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def fleet(*backends: dict[str, Any]) -> dict[str, Any]:
    deployment = {"name": DEPLOYMENT, "servedNames": [NAME], "timeScale": 20, "backends": list(backends)}
    return {"deployments": [deployment]}


async def known(r: Running, worker: str) -> dict[str, Any]:
    """Return what the router says it knows of the worker's cache."""
    described = (await r.admin.get("/admin/fleet")).json()["deployments"][DEPLOYMENT]
    found: dict[str, Any] = next(each["kvEvents"] for each in described if each["id"] == worker)
    return found


async def until(r: Running, worker: str, **wanted: Any) -> None:
    """Wait until the router says so of the worker's cache."""
    state: dict[str, Any] = {}

    async def holds() -> bool:
        nonlocal state
        state = await known(r, worker)
        return all(state[name] == value for name, value in wanted.items())

    try:
        await eventually_async(holds)
    except AssertionError:
        raise AssertionError(f"{state} never became {wanted}") from None


async def ask(r: Running, prompt: str = PROMPT, **more: Any) -> str:
    """Ask through the router; return the worker."""
    answer = await r.chat(prompt, model=NAME, max_tokens=4, **more)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-turnout-backend"])


async def cached_tokens(r: Running, prompt: str = PROMPT, **more: Any) -> dict[str, int]:
    """Ask through the router; return how many tokens each worker was thought to have cached."""
    answer = await r.client.post(
        "/v1/chat/completions",
        json={"model": NAME, "max_tokens": 4, "messages": [{"role": "user", "content": prompt}], **more},
        headers={"x-request-id": "asked"},
    )
    assert answer.status_code == 200, answer.text
    account = (await r.admin.get("/admin/decisions/asked")).json()
    return {c["backend"]: c["figures"]["cachedTokens"] for c in account["steps"][0]["candidates"]}


async def test_what_another_client_has_sent_is_found(tmp_path: Path, stack: ExitStack) -> None:
    """A prompt that B computed for others goes to B, even if the router came later; after a clear nothing is there."""
    one, other = Publishing(stack), Publishing(stack)
    blocks = other.ask()
    async with running_router(tmp_path, fleet(one.backend(), other.backend())) as r:
        await until(r, one.id, state="complete", blocks=0)
        await until(r, other.id, state="complete", blocks=blocks)
        assert await cached_tokens(r) == {one.id: 0, other.id: 16 * blocks}
        assert await ask(r) == other.id
        second = PROMPT.replace("railway", "garden")
        await until(r, one.id, blocks=one.ask(second))
        assert await ask(r, second) == one.id
        other.post("/reset_prefix_cache", {})
        await until(r, other.id, blocks=0)
        # What the router had sent there itself, and expected to be there, is known to be gone, too.
        assert await cached_tokens(r) == {one.id: 0, other.id: 0}
        assert await r.metric("turnout_router_tokenized_total", outcome="asked") == 2
        assert await r.metric("turnout_router_tokenized_total", outcome="known") == 2
        assert await r.metric("turnout_router_kv_events_workers", state="complete") == 2
        assert await r.metric("turnout_router_kv_events_total", what="batch") > 0


async def test_a_short_prompt_goes_where_its_tokens_are(tmp_path: Path, stack: ExitStack) -> None:
    """A hundred tokens, far less than a block of text: the worker that has 96 of them is chosen, and the reason says so."""
    one, other = Publishing(stack), Publishing(stack)
    short = PROMPT[:360]
    holders = {other: short, one: short.replace("railway", "garden")}
    async with running_router(tmp_path, fleet(one.backend(), other.backend())) as r:
        for worker, prompt in holders.items():
            await until(r, worker.id, state="complete", blocks=worker.ask(prompt))
        for worker, prompt in holders.items():
            answer = await r.client.post(
                "/v1/chat/completions",
                json={"model": NAME, "max_tokens": 4, "messages": [{"role": "user", "content": prompt}]},
                headers={"x-turnout-explain": "1"},
            )
            tokens = 16 * worker.blocks_of(prompt)
            assert 64 <= tokens <= 112
            assert answer.headers["x-turnout-backend"] == worker.id
            assert f"about {tokens} tokens cached" in answer.headers["x-turnout-reason"]


async def test_a_conversation_stays_with_its_worker_from_the_first_turn_on(
    tmp_path: Path, stack: ExitStack
) -> None:
    """Turns of a hundred tokens, held by one of two workers that both are idle: each goes where the turns before it are."""
    one, other = Publishing(stack), Publishing(stack)
    async with running_router(tmp_path, fleet(one.backend(), other.backend())) as r:
        await until(r, one.id, state="complete")
        await until(r, other.id, state="complete")
        text = ""
        for turn in range(6):
            text += f"Turn {turn}: " + PROMPT[:390]
            blocks = other.ask(text)
            numbers = chain(other.tokens_of(text), 16)
            exact = r.router._backends.of(DEPLOYMENT).policy.tracker.exact
            assert exact is not None
            await eventually(lambda e=exact, n=numbers: max(e.index.match(n, 2)) == len(n))
            assert await cached_tokens(r, text) == {one.id: 0, other.id: 16 * blocks}
            assert await ask(r, text) == other.id
            text += PROMPT[90:180]


async def test_a_client_whose_prompts_are_refused_costs_others_nothing(
    tmp_path: Path, stack: ExitStack
) -> None:
    """Its messages have no role: workers refuse them, and are asked for the tokens of others' prompts as before."""
    one, other = Publishing(stack), Publishing(stack)
    blocks = other.ask()
    async with running_router(tmp_path, fleet(one.backend(), other.backend())) as r:
        await until(r, one.id, state="complete")
        await until(r, other.id, state="complete", blocks=blocks)
        for number in range(4):
            body = {"model": NAME, "max_tokens": 4, "messages": [{"content": f"{number} {PROMPT}"}]}
            assert (await r.client.post("/v1/chat/completions", json=body)).status_code == 400
        assert await r.metric("turnout_router_tokenized_total", outcome="failed") == 0
        assert await cached_tokens(r) == {one.id: 0, other.id: 16 * blocks}


async def test_salts_part_caches_for_the_router_as_for_the_engine(tmp_path: Path, stack: ExitStack) -> None:
    """A prompt cached under one salt counts for requests with this salt only."""
    one, other = Publishing(stack), Publishing(stack)
    blocks = other.ask(cache_salt="pepper")
    async with running_router(tmp_path, fleet(one.backend(), other.backend())) as r:
        await until(r, one.id, state="complete")
        await until(r, other.id, state="complete", blocks=blocks)
        assert await cached_tokens(r, cache_salt="pepper") == {one.id: 0, other.id: 16 * blocks}
        assert await cached_tokens(r) == {one.id: 0, other.id: 0}


async def test_adapters_part_caches_for_the_router_as_for_the_engine(
    tmp_path: Path, stack: ExitStack
) -> None:
    """A prompt cached under a LoRA adapter counts for requests to this adapter only."""
    one, other = (Publishing(stack, lora_modules="sql=none") for _ in range(2))
    blocks = other.ask(model="sql")
    content = fleet(one.backend(), other.backend())
    content["deployments"][0]["adapters"] = ["sql"]
    async with running_router(tmp_path, content) as r:
        await until(r, one.id, state="complete")
        await until(r, other.id, state="complete", blocks=blocks)
        assert await cached_tokens(r, model="sql") == {one.id: 0, other.id: 16 * blocks}
        assert await cached_tokens(r) == {one.id: 0, other.id: 0}


async def test_two_routers_find_the_same_worker(tmp_path: Path, stack: ExitStack) -> None:
    """A conversation that hops between routers stays with its worker: each hears what the other has sent."""
    workers = [Publishing(stack) for _ in range(3)]
    (tmp_path / "other").mkdir()
    content = fleet(*(w.backend() for w in workers))
    async with running_router(tmp_path, content) as one, running_router(tmp_path / "other", content) as other:
        for router in (one, other):
            for worker in workers:
                await until(router, worker.id, state="complete")
        for number in range(4):
            prompt = f"{number}: {PROMPT}"
            went = await ask(one, prompt)
            holder = next(w for w in workers if w.id == went)
            numbers = chain(holder.tokens_of(prompt), 16)
            exact = other.router._backends.of(DEPLOYMENT).policy.tracker.exact
            assert exact is not None
            await eventually(lambda e=exact, n=numbers: max(e.index.match(n, 3)) == len(n))
            assert await ask(other, prompt) == went


async def test_what_an_engine_has_evicted_does_not_count(tmp_path: Path, stack: ExitStack) -> None:
    """Others' prompts push a prompt out of a small cache: it is not thought to be there any more."""
    one = Publishing(stack, kv_cache_tokens=2048, max_length=2048)
    other = Publishing(stack, kv_cache_tokens=2048, max_length=2048)
    async with running_router(tmp_path, fleet(one.backend(), other.backend())) as r:
        await until(r, one.id, state="complete")
        await until(r, other.id, state="complete")
        first = one if await ask(r) == one.id else other
        await until(r, first.id, blocks=first.blocks_of(PROMPT))
        assert (await cached_tokens(r))[first.id] == 16 * first.blocks_of(PROMPT)
        first.ask(PROMPT.replace("railway", "garden"))
        last = PROMPT.replace("railway", "market")
        numbers = chain(first.tokens_of(last), 16)
        first.ask(last)
        exact = r.router._backends.of(DEPLOYMENT).policy.tracker.exact
        assert exact is not None
        await eventually(lambda: max(exact.index.match(numbers, 2)) == len(numbers))
        assert (await known(r, first.id))["blocks"] <= 2048 // 16
        assert (await cached_tokens(r))[first.id] < 16 * first.blocks_of(PROMPT)


async def test_a_worker_that_starts_anew_has_nothing_cached(tmp_path: Path, stack: ExitStack) -> None:
    """Kill -9: its blocks are forgotten at once; its successor on the same address is followed from its start on."""
    one, other = Publishing(stack), Publishing(stack)
    blocks = other.ask()
    async with running_router(tmp_path, fleet(one.backend(), other.backend())) as r:
        await until(r, other.id, state="complete", blocks=blocks)
        other.worker.kill()
        await until(r, other.id, state="away", blocks=0)
        assert await ask(r) == one.id
        again = Publishing(stack, port=other.worker.port, ports=other.ports)
        await until(r, again.id, state="complete", blocks=0)
        second = PROMPT.replace("railway", "garden")
        await until(r, again.id, blocks=again.ask(second))
        assert (await cached_tokens(r, second))[again.id] == 16 * again.blocks_of(second)


async def test_without_tokens_the_belief_decides(tmp_path: Path) -> None:
    """No worker tokenizes: requests go where the router has sent the like before; it does not ask every time."""
    async with mock_worker() as one, mock_worker() as other:
        with publisher() as first, publisher() as second:
            mocks = ((one, first), (other, second))
            for _, source in mocks:
                source.publish(stored(1))
            backends = [
                {
                    "role": "aggregated",
                    "url": mock.url,
                    "kvEvents": {"port": source.port, "replayPort": source.replay_port},
                }
                for mock, source in mocks
            ]
            async with running_router(tmp_path, fleet(*backends)) as r:
                for mock, _ in mocks:
                    await until(r, mock.id, state="complete", blocks=1)
                went = [await ask(r) for _ in range(4)]
                assert await r.metric("turnout_router_tokenized_total", outcome="failed") == 4
    assert len(set(went)) == 1
    asked = [each.path for mock, _ in mocks for each in mock.received if each.path == "/tokenize"]
    assert len(asked) == 2, "each worker was asked once, and then left alone"


async def test_a_prompt_in_another_form_is_a_matter_of_belief(tmp_path: Path, stack: ExitStack) -> None:
    """Images mean nothing to a tokenizer; token ids need none; text completions are compared like chats."""
    one, other = Publishing(stack), Publishing(stack)
    tokens = other.tokens_of(PROMPT)
    body = {"model": NAME, "prompt": tokens, "max_tokens": 4}
    other.post("/v1/completions", body)
    async with running_router(tmp_path, fleet(one.backend(), other.backend())) as r:
        await until(r, one.id, state="complete")
        await until(r, other.id, state="complete", blocks=other.blocks_of(PROMPT))
        for prompt in (tokens, [tokens]):
            answer = await r.client.post("/v1/completions", json={**body, "prompt": prompt})
            assert answer.status_code == 200
        assert await r.metric("turnout_router_tokenized_total", outcome="asked") == 0
        assert await r.metric("turnout_router_tokenized_total", outcome="known") == 1
        assert await r.metric("turnout_router_tokenized_total", outcome="unfit") == 1


async def test_a_pair_knows_both_caches(tmp_path: Path, stack: ExitStack) -> None:
    """Of two prefill workers the one that has computed the prompt for others computes the next one like it."""
    prefills = [Publishing(stack, role="prefill") for _ in range(2)]
    decode = Publishing(stack, role="decode")
    blocks = prefills[1].ask()
    backends = [*(p.backend("prefill") for p in prefills), decode.backend("decode")]
    async with running_router(tmp_path, fleet(*backends)) as r:
        await until(r, prefills[1].id, state="complete", blocks=blocks)
        await until(r, decode.id, state="complete")
        cached = await cached_tokens(r)
        assert cached[prefills[1].id] == 16 * blocks
        account = (await r.admin.get("/admin/decisions/asked")).json()
        assert account["steps"][0]["prefill"] == prefills[1].id
        await until(r, decode.id, blocks=decode.blocks_of(PROMPT))


async def test_mixed_fleets_are_compared(tmp_path: Path, stack: ExitStack) -> None:
    """A worker without events stands beside one with them: an estimate for the one, the engine's report for the other."""
    one = Publishing(stack)
    plain = stack.enter_context(running_worker(time_scale=20))
    blocks = one.ask()
    silent = {"role": "aggregated", "url": plain.url, "kvTokens": 100_000}
    async with running_router(tmp_path, fleet(one.backend(), silent)) as r:
        await until(r, one.id, state="complete", blocks=blocks)
        assert await cached_tokens(r) == {one.id: 16 * blocks, f"127.0.0.1:{plain.port}": 0}


async def test_workers_without_events_need_no_zeromq(tmp_path: Path, stack: ExitStack) -> None:
    """A router that follows no worker has no exact mode at all."""
    plain = stack.enter_context(running_worker(time_scale=20))
    async with running_router(tmp_path, fleet({"role": "aggregated", "url": plain.url})) as r:
        assert r.router._backends._parts.exact is None
        assert await ask(r)


def test_events_without_a_policy_that_uses_them_are_refused(tmp_path: Path) -> None:
    """The file says what to do instead."""
    file = tmp_path / "router.yaml"
    backend = {"role": "aggregated", "url": "http://127.0.0.1:1", "kvEvents": {}}
    content = fleet(backend)
    assert read_config(write(file, content)).backends[DEPLOYMENT][0].kv_events == KvEventPorts(5557)
    content["deployments"][0]["policy"] = "LeastLoaded"
    with pytest.raises(ConfigError, match=r"kvEvents of default/tiny have no effect.*choose PrefixAware"):
        read_config(write(file, content))


def write(file: Path, content: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(content))
    return file
