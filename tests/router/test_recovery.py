"""Workers that fail for a while: who is left alone, who is asked for its health, and how soon the repaired serve again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from support.router_mock_backend import mock_worker
from support.router_running import (
    DEPLOYMENT,
    LONG,
    Running,
    config,
    eventually,
    eventually_async,
    pair,
    running_router,
)
from support.worker_process import free_port
from turnout_router.settings import UpstreamLimits

if TYPE_CHECKING:
    from pathlib import Path

BACK_WITHIN_SECONDS = 5.0


async def ejected(r: Running) -> set[str]:
    groups = (await r.admin.get("/admin/fleet")).json()["deployments"]
    return {b["id"] for b in groups[DEPLOYMENT] if b["ejected"]}


async def eject(r: Running, id_: str, **more: Any) -> None:
    """Send requests until the worker *id_* is left alone, every one of which is served."""

    async def is_out() -> bool:
        assert (await r.chat(**more)).status_code in {200, 504}
        return id_ in await ejected(r)

    await eventually_async(is_out, 20)


async def served_again(r: Running, has_served: Any, **more: Any) -> float:
    """Send requests until *has_served*, and return how long that took."""
    began = time.monotonic()
    while not has_served():
        assert (await r.chat(**more)).status_code == 200
        assert time.monotonic() - began < 20
        await asyncio.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.parametrize("behavior", ["status", "reset", "garbage", "hang"])
@pytest.mark.parametrize("healthy", [True, False])
async def test_a_repaired_worker_serves_again_within_seconds(
    tmp_path: Path, behavior: str, *, healthy: bool
) -> None:
    """Whether its /health showed the fault or not; and while it reports that it is down, no request is wasted on it."""
    async with (
        mock_worker(behavior=behavior, healthy=healthy) as bad,
        mock_worker() as good,
        running_router(
            tmp_path,
            config([("aggregated", bad.url), ("aggregated", good.url)]),
            upstream=UpstreamLimits(first_byte_seconds=0.3),
        ) as r,
    ):
        await eject(r, bad.id, stream=True)
        checks = bad.checks
        # One that answers for its health is tried, too, and asked no more while that hangs.
        await eventually(lambda: bad.checks > checks + 2 or bad.trials)
        if not healthy:
            asked = len(bad.received)
            for _ in range(10):
                assert (await r.chat(stream=True)).status_code == 200
            assert len(bad.received) == asked
        bad.behavior, bad.healthy = "ok", True
        before = len(bad.received)
        assert (
            await served_again(r, lambda: len(bad.received) > before + 2, stream=True) < BACK_WITHIN_SECONDS
        )
        assert await ejected(r) == set()


async def test_a_restarted_worker_serves_again_within_seconds(tmp_path: Path) -> None:
    """Killed, its port closed for longer than any back-off, started again on the same address."""
    port = free_port()
    async with (
        mock_worker() as good,
        running_router(
            tmp_path, config([("aggregated", f"http://127.0.0.1:{port}"), ("aggregated", good.url)])
        ) as r,
    ):
        await eject(r, f"127.0.0.1:{port}")
        await asyncio.sleep(3)  # how long it is away is the point: by now the back-off has grown
        async with mock_worker(port=port) as again:
            assert await served_again(r, lambda: again.received) < BACK_WITHIN_SECONDS


async def test_a_worker_that_completes_no_texts_is_not_left_alone_for_ever(tmp_path: Path) -> None:
    """501 to the router's trial is an answer: the worker works, and may serve what its model can."""
    async with (
        mock_worker(behavior="reset") as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        await eject(r, bad.id)
        bad.behavior, bad.status = "status", 501
        before = len(bad.received)
        assert await served_again(r, lambda: len(bad.received) > before) < BACK_WITHIN_SECONDS
    assert bad.trials


@pytest.mark.parametrize("stream", [True, False])
async def test_no_client_waits_for_a_worker_that_hangs(tmp_path: Path, *, stream: bool) -> None:
    """The router tries it itself, gives up after a while, and sends no client's request there before it has computed something."""
    limits = UpstreamLimits()
    policy = type(limits.health)(first_seconds=0.2, longest_seconds=0.2, probe_seconds=0.3)
    async with (
        mock_worker(behavior="reset") as bad,
        mock_worker() as good,
        running_router(
            tmp_path,
            config([("aggregated", bad.url), ("aggregated", good.url)]),
            upstream=UpstreamLimits(health=policy),
        ) as r,
    ):
        await eject(r, bad.id)
        bad.behavior = "hang"
        before = len(bad.received)
        while bad.left < 3:  # trials that were given up
            assert (await r.chat(stream=stream)).status_code == 200
        assert bad.trials >= 3
        assert len(bad.received) == before
        bad.behavior = "ok"
        again = await served_again(r, lambda: len(bad.received) > before + 1, stream=stream)
        assert again < BACK_WITHIN_SECONDS
        assert await ejected(r) == set()


async def test_a_model_that_completes_no_texts_recovers_too(tmp_path: Path) -> None:
    """An embedding model answers the router's trial with 400: that is a sign of life, too."""
    async with (
        mock_worker(behavior="reset") as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        await eject(r, bad.id)
        bad.behavior, bad.status = "status", 400
        await eventually(lambda: bad.trials > 0)
        bad.behavior = "ok"
        before = len(bad.received)
        assert await served_again(r, lambda: len(bad.received) > before) < BACK_WITHIN_SECONDS


async def test_a_decode_worker_that_cannot_fetch_caches_is_found_out(tmp_path: Path) -> None:
    """It is left alone, every request is served, and a prefill worker blamed with it is back with its next partner."""
    async with (
        mock_worker() as one,
        mock_worker() as other,
        mock_worker(behavior="cannot_fetch") as bad,
        mock_worker() as good,
        running_router(
            tmp_path,
            config(
                [
                    ("prefill", one.url),
                    ("prefill", other.url),
                    ("decode", bad.url),
                    ("decode", good.url),
                ],
                policy="LeastLoaded",  # every prompt is moved, and equals take turns
            ),
        ) as r,
    ):
        await eject(r, bad.id, prompt=LONG)

        async def only_the_bad_one() -> bool:
            assert (await r.chat(LONG)).status_code == 200
            return await ejected(r) == {bad.id}

        await eventually_async(only_the_bad_one)
        before = len(one.received), len(other.received)
        for _ in range(4):
            assert (await r.chat(LONG)).status_code == 200
        assert len(one.received) > before[0]
        assert len(other.received) > before[1]


async def test_a_retry_budget_bounds_what_an_outage_multiplies(tmp_path: Path) -> None:
    """With every worker failing, retries end when their budget is spent: from then on one try per request, and a fifth."""
    async with (
        mock_worker(behavior="status") as a,
        mock_worker(behavior="status") as b,
        mock_worker(behavior="status") as c,
        running_router(tmp_path, config([("aggregated", w.url) for w in (a, b, c)])) as r,
    ):
        for _ in range(60):
            assert (await r.chat()).status_code == 502
        tries = sum(len(worker.received) for worker in (a, b, c))
        retries = await r.metric("turnout_router_retries_total", deployment=DEPLOYMENT, reason="status")
    assert tries == 60 + retries
    assert retries <= 20 + 60 * 0.2


async def test_a_retried_request_is_counted_and_billed_once(tmp_path: Path) -> None:
    """Half of an answer from the worker that died counts for nothing: tokens are those of the answer delivered."""
    async with (
        mock_worker(behavior="cut") as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        while not bad.received:
            assert (await r.chat()).json()["usage"]["completion_tokens"] == 6
        count = len(good.received)
        assert await r.metric("turnout_router_output_tokens_total", deployment=DEPLOYMENT) == 6 * count
        assert await r.metric("turnout_router_prompt_tokens_total", deployment=DEPLOYMENT) == 7 * count
        assert await r.metric("turnout_router_finished_total", deployment=DEPLOYMENT) == count


async def test_a_cache_is_never_sent_twice_over_a_dead_connection(tmp_path: Path) -> None:
    """A kept connection to the decode worker that has died leads to a new prefill, not to the same cache again."""
    async with (
        mock_worker() as prefill,
        mock_worker(single_use=True) as decode,
        running_router(tmp_path, pair(prefill, decode, policy="LeastLoaded")) as r,  # every prompt is moved
    ):
        for _ in range(3):
            assert (await r.chat(LONG)).status_code == 200
        assert await ejected(r) == set()
        fleet = (await r.admin.get("/admin/fleet")).json()["deployments"][DEPLOYMENT]
    assert decode.reused == 2
    assert len(prefill.received) == 3 + 2
    assert all(b["failuresInARow"] == 0 for b in fleet)
