"""Requests that no worker could begin with wait in the router, where the deployment asks for it: shortest first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from support.faults import errors
from support.router_mock_backend import MockWorker, mock_worker
from support.router_running import (
    DEPLOYMENT,
    Running,
    chat,
    config,
    eventually,
    eventually_async,
    running_router,
)
from turnout.routing import UNCONSTRAINED
from turnout.routing.admission import NORMAL, AdmissionLimits
from turnout.routing.load_tracker import Prompt
from turnout_router.fleet import claims
from turnout_router.fleet.claims import Claimant

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from turnout.routing import WorkerPair
    from turnout_router.fleet.deployment import DeploymentRuntime

LONG = 40_000
"""Tokens of a prompt that takes an H100 1.5 s: far more than one iteration."""
SHORT = 600
PAIRED = 16_000
"""Tokens of a prompt that is moved between the workers of a pair in less time than local prefill must save."""


def prompt(name: str, tokens: int) -> str:
    """Return a prompt of about so many tokens that begins like no other one."""
    return (f"{name} " * tokens)[: 4 * tokens]


async def ask(r: Running, name: str, tokens: int, **headers: str) -> httpx.Response:
    """Ask for a stream: its first token can be seen, and so the end of its prompt."""
    body = chat(prompt(name, tokens), stream=True)
    return await r.client.post("/v1/chat/completions", json=body, headers=headers)


async def held(r: Running, count: int, role: str = "decode") -> None:
    """Wait until so many requests are held that wait for a worker of *role*."""

    async def so_many() -> bool:
        return await r.metric("turnout_router_held", deployment=DEPLOYMENT, role=role) == count

    await eventually_async(so_many)


def names(worker: MockWorker) -> list[str]:
    return [request.body["messages"][0]["content"].split()[0] for request in worker.received]


def queueing(*workers: MockWorker, role: str = "aggregated", **more: Any) -> dict[str, Any]:
    return config([(role, worker.url) for worker in workers], queueing="Router", **more)


async def under_way(r: Running, worker: MockWorker) -> asyncio.Task[httpx.Response]:
    """Ask *worker* to compute a long prompt, which it does until its gate opens."""
    task = asyncio.create_task(ask(r, "first", LONG))
    await eventually(lambda: names(worker) == ["first"])
    return task


async def test_the_shortest_goes_first(tmp_path: Path) -> None:
    """While a worker computes a long prompt others wait here, and its first token lets the shorter one go before the longer."""
    async with mock_worker(behavior="gated") as worker, running_router(tmp_path, queueing(worker)) as r:
        asking = [await under_way(r, worker)]
        asking.append(asyncio.create_task(ask(r, "longer", LONG)))
        await held(r, 1)
        asking.append(asyncio.create_task(ask(r, "shorter", SHORT)))
        await held(r, 2)
        assert await r.metric("turnout_router_waiting", deployment=DEPLOYMENT) == 2
        assert names(worker) == ["first"]
        worker.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}
        await held(r, 0)
        assert await r.metric("turnout_router_held_seconds_total", deployment=DEPLOYMENT, role="decode") > 0
    assert names(worker) == ["first", "shorter", "longer"]


async def test_the_engine_queues_unless_the_router_is_asked_to(tmp_path: Path) -> None:
    """By default every request is sent at once."""
    async with (
        mock_worker(behavior="gated") as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        asking = [asyncio.create_task(ask(r, name, LONG)) for name in ("a", "b", "c")]
        await eventually(lambda: len(worker.received) == 3)
        worker.gate.set()
        await asyncio.gather(*asking)


async def test_what_is_free_takes_what_is_held(tmp_path: Path) -> None:
    """A worker that joins gets the one that waited, with the reason and how long it was held."""
    async with (
        mock_worker(behavior="gated") as busy,
        mock_worker() as free,
        running_router(tmp_path, queueing(busy)) as r,
    ):
        first = await under_way(r, busy)
        second = asyncio.create_task(ask(r, "second", LONG, **{"x-request-id": "second"}))
        await held(r, 1)
        (tmp_path / "router.yaml").write_text(yaml.safe_dump(queueing(busy, free)))
        r.router.reload()
        assert (await second).headers["x-turnout-backend"] == free.id
        account = (await r.admin.get("/admin/decisions/second")).json()
        assert account["heldSeconds"] > 0
        assert "until a worker could begin with it" in account["sentence"]
        busy.gate.set()
        assert (await first).status_code == 200


def choosing(deployment: DeploymentRuntime, error: Exception) -> Claimant:
    """Return a short request whose workers can be chosen twice; then that raises *error*."""
    found = deployment.choose(Prompt(SHORT, (), 16), UNCONSTRAINED)
    calls = 0

    class Choosing(Claimant):
        def choose(self) -> WorkerPair | None:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise error
            return found

    request = Choosing(SHORT, NORMAL, Prompt(SHORT, (), 16))
    request.pair = found
    return request


def slow_down(r: Running) -> None:
    """Let the tracker's time pass at a twentieth of its speed.

    How much of a prompt is taken to be computed must not depend on how fast the test's machine is.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    deployment = r.router._backends.of(DEPLOYMENT)
    assert deployment is not None
    deployment.clock._clock = lambda: began + (clock() - began) / 20


async def test_pairs_are_waited_for_too(tmp_path: Path) -> None:
    """While the prefill worker and the decode worker compute prompts, a third one is held, and served when they are done."""
    async with mock_worker(behavior="gated") as prefill, mock_worker(behavior="gated") as decode:
        content = config([("prefill", prefill.url), ("decode", decode.url)], queueing="Router")
        async with running_router(tmp_path, content) as r:
            slow_down(r)
            asking = [asyncio.create_task(ask(r, "first", PAIRED))]
            await eventually(lambda: names(prefill) == ["first"])
            asking.append(asyncio.create_task(ask(r, "second", PAIRED)))
            await eventually(lambda: names(decode) == ["second"])
            asking += [asyncio.create_task(ask(r, f"other{n}", PAIRED)) for n in range(2)]

            async def both_are_held() -> bool:
                found = [
                    await r.metric("turnout_router_held", deployment=DEPLOYMENT, role=role)
                    for role in ("prefill", "decode")
                ]
                return sum(found) == 2

            await eventually_async(both_are_held)
            prefill.gate.set()
            decode.gate.set()
            assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}
            await held(r, 0, "prefill")
            await held(r, 0, "decode")


async def test_who_is_held_too_long_is_turned_away(tmp_path: Path) -> None:
    """503 with Retry-After after the time that admission grants; the worker never hears of it."""
    limits = AdmissionLimits(wait_seconds=0.3)
    async with (
        mock_worker(behavior="gated") as worker,
        running_router(tmp_path, queueing(worker), admission=limits) as r,
    ):
        first = await under_way(r, worker)
        refused = await ask(r, "second", LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_timeout")
        assert refused.headers["retry-after"]
        await held(r, 0)
        worker.gate.set()
        assert (await first).status_code == 200
    assert names(worker) == ["first"]


@pytest.mark.parametrize("how", ["leaves", "deadline"])
async def test_who_does_not_wait_any_longer_is_sent_nowhere(tmp_path: Path, how: str) -> None:
    """A client that leaves, or whose deadline passes, leaves the line at once."""
    async with mock_worker(behavior="gated") as worker, running_router(tmp_path, queueing(worker)) as r:
        first = await under_way(r, worker)
        headers = {"x-turnout-timeout": "0.3"} if how == "deadline" else {}
        second = asyncio.create_task(ask(r, "second", LONG, **headers))
        await held(r, 1)
        if how == "leaves":
            second.cancel()
        else:
            assert (await second).status_code == 504
        await held(r, 0)
        worker.gate.set()
        assert (await first).status_code == 200
    assert names(worker) == ["first"]


async def test_no_request_waits_once_all_workers_are_gone(tmp_path: Path) -> None:
    """503 at once, not when the time to wait is over."""
    async with mock_worker(behavior="gated") as worker, running_router(tmp_path, queueing(worker)) as r:
        first = await under_way(r, worker)
        second = asyncio.create_task(ask(r, "second", LONG))
        await held(r, 1)
        (tmp_path / "router.yaml").write_text(yaml.safe_dump(queueing()))
        r.router.reload()
        refused = await second
        assert refused.status_code == 503
        assert "No worker" in refused.json()["error"]["message"]
        worker.gate.set()
        assert (await first).status_code == 200


async def test_a_deployment_that_queues_no_longer_lets_all_go(tmp_path: Path) -> None:
    """When the field is changed, who is held is sent at once."""
    async with mock_worker(behavior="gated") as worker, running_router(tmp_path, queueing(worker)) as r:
        asking = [await under_way(r, worker)]
        asking += [asyncio.create_task(ask(r, name, LONG)) for name in ("b", "c")]
        await held(r, 2)
        (tmp_path / "router.yaml").write_text(yaml.safe_dump(config([("aggregated", worker.url)])))
        r.router.reload()
        await eventually(lambda: len(worker.received) == 3)
        worker.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}


async def test_answers_in_one_piece_let_others_go_in_time(tmp_path: Path) -> None:
    """They show no first token: when it is expected, what is held goes on, although the answer is still to come."""
    async with mock_worker(behavior="gated") as worker, running_router(tmp_path, queueing(worker)) as r:
        first = asyncio.create_task(r.client.post("/v1/chat/completions", json=chat(prompt("first", 16_000))))
        await eventually(lambda: names(worker) == ["first"])
        second = asyncio.create_task(ask(r, "second", LONG))
        await held(r, 1)
        await eventually(lambda: names(worker) == ["first", "second"])
        worker.gate.set()
        assert [(await task).status_code for task in (first, second)] == [200, 200]


@pytest.mark.skipif(
    not claims.__file__.endswith(".py"),
    reason="needs a subclass in Python, which what is compiled does not allow",
)
async def test_a_request_for_which_choosing_fails_is_sent_off_and_holds_up_no_one(tmp_path: Path) -> None:
    """Its own caller gets the error; those behind it go on."""
    async with mock_worker(behavior="gated") as worker, running_router(tmp_path, queueing(worker)) as r:
        asking = [await under_way(r, worker)]
        backends = r.router._backends
        deployment = backends.of(DEPLOYMENT)
        assert deployment is not None
        queue = deployment.dispatch
        assert queue is not None

        async def wait(error: Exception) -> None:
            request = choosing(deployment, error)
            assert not queue.try_acquire(request)
            await queue.acquire(request)

        asking.append(asyncio.create_task(ask(r, "behind", LONG)))
        await held(r, 1)
        for error in errors():
            with pytest.raises(type(error)):
                await asyncio.wait_for(wait(error), 10)
        await held(r, 1)
        worker.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}
        await held(r, 0)
