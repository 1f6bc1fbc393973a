"""More requests than a deployment has room for: they wait in order, for a bounded time, in bounded number."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from support.router_mock_backend import mock_worker
from support.router_running import DEPLOYMENT, Running, chat, config, eventually_async, running_router
from turnout.routing.admission import HIGH, LOW, NORMAL, AdmissionLimits
from turnout_router.fleet.admission import tier_of

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

ONE_AT_A_TIME = AdmissionLimits(requests_per_worker=1, waiting=2)


async def ask(r: Running, prompt: str, **headers: str) -> httpx.Response:
    return await r.client.post("/v1/chat/completions", json=chat(prompt), headers=headers)


async def waiting(r: Running, count: int) -> None:
    """Wait until *count* requests wait for room."""

    async def so_many() -> bool:
        return await r.metric("turnout_router_waiting", deployment=DEPLOYMENT) == count

    await eventually_async(so_many)


def prompts(received: list[Any]) -> list[str]:
    return [request.body["messages"][0]["content"] for request in received]


async def test_what_finds_no_room_waits_in_order_and_beyond_that_is_turned_away(tmp_path: Path) -> None:
    """One is served, two wait, the fourth gets 503 with Retry-After at once; then the two are served as they came."""
    async with (
        mock_worker(behavior="gated") as worker,
        running_router(tmp_path, config([("aggregated", worker.url)]), admission=ONE_AT_A_TIME) as r,
    ):
        asking = []
        for number, prompt in enumerate(["first", "second", "third"]):
            asking.append(asyncio.create_task(ask(r, prompt)))
            await waiting(r, number)
        refused = await ask(r, "fourth")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.json()["error"]["code"] == "queue_full"
        assert prompts(worker.received) == ["first"]
        worker.gate.set()
        answers = await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {200}
        assert prompts(worker.received) == ["first", "second", "third"]
        assert await r.metric("turnout_router_shed_total", deployment=DEPLOYMENT, reason="queue_full") == 1
        assert await r.metric("turnout_router_finished_total", deployment=DEPLOYMENT) == 4
        assert await r.metric("turnout_router_good_total", deployment=DEPLOYMENT) == 3


async def test_who_waits_too_long_is_turned_away(tmp_path: Path) -> None:
    """503 with Retry-After when the time to wait is over; the worker never hears of it."""
    async with (
        mock_worker(behavior="gated") as worker,
        running_router(
            tmp_path,
            config([("aggregated", worker.url)]),
            admission=replace(ONE_AT_A_TIME, wait_seconds=0.2),
        ) as r,
    ):
        first = asyncio.create_task(ask(r, "first"))
        await asyncio.sleep(0)
        refused = await ask(r, "second")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_timeout"
        worker.gate.set()
        assert (await first).status_code == 200
        assert (await ask(r, "third")).status_code == 200
    assert prompts(worker.received) == ["first", "third"]


async def test_a_client_that_leaves_the_queue_makes_way(tmp_path: Path) -> None:
    """Its place is free at once, and its request is sent nowhere."""
    async with (
        mock_worker(behavior="gated") as worker,
        running_router(tmp_path, config([("aggregated", worker.url)]), admission=ONE_AT_A_TIME) as r,
    ):
        first = asyncio.create_task(ask(r, "first"))
        await waiting(r, 0)
        leaving = asyncio.create_task(ask(r, "leaving"))
        await waiting(r, 1)
        last = asyncio.create_task(ask(r, "last"))
        await waiting(r, 2)
        leaving.cancel()
        await waiting(r, 1)
        worker.gate.set()
        assert [(await task).status_code for task in (first, last)] == [200, 200]
        assert await r.metric("turnout_router_requests_total", deployment=DEPLOYMENT, code="499") == 1
    assert prompts(worker.received) == ["first", "last"]


async def test_priorities_from_key_and_header(tmp_path: Path) -> None:
    """A budget's priority decides who goes first, a header steps back, and a full queue makes way from below."""
    keys = {"High": "sk-high", "Normal": "sk-normal"}
    fleet = config([])
    fleet["budgets"] = [
        {
            "name": f"default/{priority.lower()}",
            "priority": priority,
            "keys": [{"name": "k", "sha256": hashlib.sha256(key.encode()).hexdigest()}],
        }
        for priority, key in keys.items()
    ]
    high, normal = ({"authorization": f"Bearer {key}"} for key in keys.values())
    async with mock_worker(behavior="gated") as worker:
        fleet["deployments"][0]["backends"] = [{"role": "aggregated", "url": worker.url}]
        async with running_router(tmp_path, fleet, admission=ONE_AT_A_TIME) as r:
            asking = {}
            for number, (prompt, headers) in enumerate(
                {
                    "under way": normal,
                    "low": {**normal, "x-turnout-priority": "low"},
                    "normal": {**normal, "x-turnout-priority": "high"},
                }.items()
            ):
                asking[prompt] = asyncio.create_task(ask(r, prompt, **headers))
                await waiting(r, number)
            asking["high"] = asyncio.create_task(ask(r, "high", **high))
            displaced = await asking.pop("low")
            assert (displaced.status_code, displaced.json()["error"]["code"]) == (503, "displaced")
            worker.gate.set()
            for task in asking.values():
                assert (await task).status_code == 200
    assert prompts(worker.received) == ["under way", "high", "normal"]


async def test_more_workers_bring_more_room(tmp_path: Path) -> None:
    """Who waits is let in as soon as a further worker is there."""
    async with (
        mock_worker(behavior="gated") as one,
        mock_worker() as other,
        running_router(tmp_path, config([("aggregated", one.url)]), admission=ONE_AT_A_TIME) as r,
    ):
        first = asyncio.create_task(ask(r, "first"))
        await waiting(r, 0)
        second = asyncio.create_task(ask(r, "second"))
        await waiting(r, 1)
        (tmp_path / "router.yaml").write_text(
            json.dumps(config([("aggregated", one.url), ("aggregated", other.url)]))
        )
        r.router.reload()
        assert (await second).status_code == 200
        assert other.received
        one.gate.set()
        assert (await first).status_code == 200


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, {"max_tokens": 100}),
        ({"max_tokens": None}, {"max_tokens": 100}),
        ({"max_tokens": 100}, {"max_tokens": 100}),
        ({"max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ({"max_tokens": 101}, None),
        ({"max_tokens": 5, "max_completion_tokens": 101}, None),
        ({"max_tokens": "101"}, None),
        ({"max_tokens": 1e3}, None),
        ({"max_tokens": True}, None),
    ],
)
async def test_output_is_capped(tmp_path: Path, asked: dict[str, Any], sent: dict[str, int] | None) -> None:
    """A request for more is refused with a message, one without a bound gets the deployment's, others keep their own."""
    async with (
        mock_worker() as worker,
        running_router(tmp_path, config([("aggregated", worker.url)], maxOutputTokens=100)) as r,
    ):
        answer = await r.chat(**asked)
    if sent is None:
        assert answer.status_code == 400
        assert "at most 100" in answer.json()["error"]["message"]
        assert not worker.received
    else:
        assert answer.status_code == 200
        body = worker.received[0].body
        assert {
            name: value for name, value in body.items() if name in {"max_tokens", "max_completion_tokens"}
        } == sent


@pytest.mark.parametrize(
    ("granted", "wanted", "tier"),
    [
        (NORMAL, None, NORMAL),
        (HIGH, None, HIGH),
        (HIGH, b"low", LOW),
        (HIGH, b"Normal", NORMAL),
        (NORMAL, b"high", NORMAL),
        (LOW, b"high", LOW),
        (NORMAL, b"urgent", NORMAL),
    ],
)
def test_a_client_can_only_step_back(granted: Any, wanted: bytes | None, tier: int) -> None:
    """Whatever a client writes, it goes no sooner than its key grants."""
    assert tier_of(granted, wanted) == tier


async def test_a_deployments_own_bounds_hold(tmp_path: Path) -> None:
    """What a deployment says of its room, its queue and the wait stands over the router's flags; others keep those."""
    async with mock_worker(behavior="gated") as worker, mock_worker(behavior="gated") as other:
        content = config(
            [("aggregated", worker.url)],
            admission={"requestsPerWorker": 1, "waitingRequests": 1, "maxWait": "300ms"},
        )
        content["deployments"] += [
            {
                "name": "default/other",
                "servedNames": ["other"],
                "backends": [{"role": "aggregated", "url": other.url}],
            }
        ]
        async with running_router(tmp_path, content) as r:
            first = asyncio.create_task(ask(r, "first"))
            await eventually_async(lambda: _has(worker.received))
            second = asyncio.create_task(ask(r, "second"))
            await waiting(r, 1)
            assert (await ask(r, "third")).json()["error"]["code"] == "queue_full"
            assert (await second).json()["error"]["code"] == "queue_timeout"
            others = [asyncio.create_task(r.chat(f"{n}", model="other")) for n in range(3)]
            await eventually_async(lambda: _has(other.received, 3))
            worker.gate.set()
            other.gate.set()
            assert {answer.status_code for answer in await asyncio.gather(first, *others)} == {200}


async def _has(received: list[Any], count: int = 1) -> bool:
    return len(received) == count


async def test_bounds_that_change_hold_at_once(tmp_path: Path) -> None:
    """A deployment that is given more room lets in who waits."""
    async with mock_worker(behavior="gated") as worker:
        narrow, wide = (
            config([("aggregated", worker.url)], admission={"requestsPerWorker": count}) for count in (1, 2)
        )
        async with running_router(tmp_path, narrow) as r:
            asking = [asyncio.create_task(ask(r, "first"))]
            await eventually_async(lambda: _has(worker.received))
            asking.append(asyncio.create_task(ask(r, "second")))
            await waiting(r, 1)
            (tmp_path / "router.yaml").write_text(json.dumps(wide))
            r.router.reload()
            await eventually_async(lambda: _has(worker.received, 2))
            worker.gate.set()
            assert [(await task).status_code for task in asking] == [200, 200]


async def test_tokens_that_wait_are_bounded(tmp_path: Path) -> None:
    """A long prompt finds no place in a queue in which a short one still does."""
    async with mock_worker(behavior="gated") as worker:
        content = config(
            [("aggregated", worker.url)], admission={"requestsPerWorker": 1, "waitingTokens": 1000}
        )
        async with running_router(tmp_path, content) as r:
            asking = [asyncio.create_task(ask(r, "first"))]
            await eventually_async(lambda: _has(worker.received))
            asking.append(asyncio.create_task(ask(r, "second")))
            await waiting(r, 1)
            assert (await ask(r, "word " * 800)).json()["error"]["code"] == "queue_full"
            asking.append(asyncio.create_task(ask(r, "third")))
            await waiting(r, 2)
            worker.gate.set()
            assert [(await task).status_code for task in asking] == [200, 200, 200]
