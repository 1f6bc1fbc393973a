"""Workers that fail, each in its own way: repaired unseen before the first byte, reported as an error after it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import httpx
import pytest
from openai import APIError, AsyncOpenAI

from support.router_mock_backend import mock_worker
from support.router_running import DEPLOYMENT, LONG, MODEL, chat, config, eventually, pair, running_router
from support.worker_process import free_port
from turnout_router.settings import UpstreamLimits

if TYPE_CHECKING:
    from pathlib import Path

BEFORE_THE_FIRST_BYTE = ["status", "reset", "cut_in_head", "garbage", "endless_head", "head_then_cut"]


@pytest.mark.parametrize("behavior", BEFORE_THE_FIRST_BYTE)
async def test_a_decode_worker_that_fails_at_once_is_replaced(tmp_path: Path, behavior: str) -> None:
    """Every request is served by the other worker, and no client notices."""
    async with (
        mock_worker(behavior=behavior) as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        answers = [await r.chat(stream=True) for _ in range(4)]
        retries = await r.metric("turnout_router_retries_total", deployment=DEPLOYMENT)
    assert {a.status_code for a in answers} == {200}
    assert all(a.text.endswith("[DONE]\n\n") for a in answers)
    assert retries >= 1


async def test_an_answer_that_breaks_before_it_is_complete_is_asked_for_again(tmp_path: Path) -> None:
    """An answer that is not streamed is held until it is whole, so that a part of one is never delivered."""
    async with (
        mock_worker(behavior="cut") as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        answers = [await r.chat() for _ in range(3)]
    assert {a.status_code for a in answers} == {200}
    assert bad.received


@pytest.mark.parametrize(
    "behavior", ["status", "reset", "cut_in_head", "garbage", "endless_head", "bad_params"]
)
async def test_a_prefill_worker_that_fails_is_replaced_by_another(tmp_path: Path, behavior: str) -> None:
    """The decode worker gets a cache from the one that works."""
    async with (
        mock_worker(behavior=behavior) as bad,
        mock_worker() as good,
        mock_worker() as decode,
        running_router(
            tmp_path,
            config(
                [("prefill", bad.url), ("prefill", good.url), ("decode", decode.url)], policy="LeastLoaded"
            ),  # so that both take turns
        ) as r,
    ):
        for _ in range(3):
            assert (await r.chat(LONG)).status_code == 200
    assert bad.received
    assert all(request.body["kv_transfer_params"] for request in decode.received)


@pytest.mark.parametrize(
    "behavior", ["status", "reset", "cut_in_head", "garbage", "endless_head", "bad_params", "hang"]
)
async def test_without_another_prefill_worker_the_decode_worker_does_both(
    tmp_path: Path, behavior: str
) -> None:
    """A failed prefill is never the client's: the prompt is computed locally, and counted as such."""
    async with (
        mock_worker(behavior=behavior) as bad,
        mock_worker() as decode,
        running_router(tmp_path, pair(bad, decode), upstream=UpstreamLimits(prefill_seconds=0.5)) as r,
    ):
        answer = await r.chat(LONG, stream=True)
        local = await r.metric(
            "turnout_router_local_prefills_total", deployment=DEPLOYMENT, reason="prefill_failed"
        )
    assert answer.status_code == 200
    assert "kv_transfer_params" not in decode.received[0].body
    assert local == 1


async def test_a_prefill_worker_that_is_gone_costs_nothing_but_a_local_prefill(tmp_path: Path) -> None:
    """Connecting is refused: the request goes on without it."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with (
        mock_worker() as decode,
        running_router(tmp_path, config([("prefill", nowhere), ("decode", decode.url)])) as r,
    ):
        assert (await r.chat(LONG)).status_code == 200
    assert "kv_transfer_params" not in decode.received[0].body


async def test_a_retry_of_decoding_begins_with_a_new_prefill(tmp_path: Path) -> None:
    """What a prefill worker hands out can be used once: the second decode worker never gets the first one's."""
    async with (
        mock_worker() as prefill,
        mock_worker(behavior="reset") as bad,
        mock_worker() as good,
        running_router(
            tmp_path,
            config(
                [("prefill", prefill.url), ("decode", bad.url), ("decode", good.url)], policy="LeastLoaded"
            ),
        ) as r,
    ):
        while not bad.received:
            assert (await r.chat(LONG)).status_code == 200
        ids = [request.headers["x-request-id"] for request in prefill.received]
    assert len(prefill.received) == len(bad.received) + len(good.received)
    assert len(set(ids)) == len(ids)


async def test_a_stream_that_breaks_says_so(tmp_path: Path) -> None:
    """After the first byte nothing is repeated: an error event, no [DONE], and the connection is closed."""
    async with (
        mock_worker(behavior="cut") as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        seen = b""
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - what came before is looked at
            async with r.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
                async for data in answer.aiter_raw():
                    seen += data
        codes = await r.metric("turnout_router_requests_total", deployment=DEPLOYMENT, code="502")
        finished = await r.metric("turnout_router_finished_total", deployment=DEPLOYMENT)
        good = await r.metric("turnout_router_good_total", deployment=DEPLOYMENT)
    last = seen.decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stream_broken"
    assert b"[DONE]" not in seen
    assert (codes, finished, good) == (1, 1, 0)


async def test_a_stream_without_its_end_is_a_broken_one(tmp_path: Path) -> None:
    """A worker that closes its stream in good order, but without [DONE], has not finished it either."""
    async with (
        mock_worker(behavior="cut_cleanly") as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        seen = b""
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - what came before is looked at
            async with r.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
                async for data in answer.aiter_raw():
                    seen += data
        assert await r.metric("turnout_router_good_total", deployment=DEPLOYMENT) == 0
    assert b'"stream_broken"' in seen
    assert b"[DONE]" not in seen


@pytest.mark.parametrize("behavior", ["cut", "cut_cleanly", "stream_error"])
async def test_the_official_client_sees_a_broken_stream_as_an_error(tmp_path: Path, behavior: str) -> None:
    """It raises, and the error shows nothing of the worker's inside."""
    async with (
        mock_worker(behavior=behavior) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
        AsyncOpenAI(base_url=r.base_url, api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(APIError) as caught:
            async for _ in await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True
            ):
                pass
    assert "secret" not in str(caught.value)


async def test_when_all_workers_are_gone_the_client_may_come_back(tmp_path: Path) -> None:
    """503 with Retry-After, at once."""
    ports = [free_port(), free_port()]
    fleet = config([("aggregated", f"http://127.0.0.1:{port}") for port in ports])
    async with running_router(tmp_path, fleet) as r:
        answer = await r.chat()
        finished = await r.metric("turnout_router_finished_total", deployment=DEPLOYMENT)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert finished == 1


async def test_a_deployment_without_workers_answers_503(tmp_path: Path) -> None:
    """Its name is known, so it is not 404."""
    async with running_router(tmp_path, config([])) as r:
        answer = await r.chat()
    assert answer.status_code == 503
    assert "retry-after" in answer.headers


async def test_a_workers_full_queue_is_503_and_no_fault_of_its_health(tmp_path: Path) -> None:
    """Being full speaks not against a worker: it is not ejected."""
    async with (
        mock_worker(behavior="status", status=503) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        for _ in range(4):
            answer = await r.chat()
            assert answer.status_code == 503
        fleet = (await r.admin.get("/admin/fleet")).json()
    assert fleet["deployments"][DEPLOYMENT][0]["ejected"] is False


async def test_a_client_error_of_the_worker_is_passed_on(tmp_path: Path) -> None:
    """4xx is the client's own: passed on as it is, not repeated."""
    async with (
        mock_worker(behavior="status", status=400) as worker,
        mock_worker() as other,
        running_router(tmp_path, pair(worker, other)) as r,
    ):
        answer = await r.chat(LONG)
    assert answer.status_code == 400
    assert answer.json()["message"] == "secret of the worker"
    assert len(worker.received) == 1
    assert not other.received


async def test_a_worker_that_never_answers_ends_in_504(tmp_path: Path) -> None:
    """The wait for a first byte has an end."""
    async with (
        mock_worker(behavior="hang") as worker,
        running_router(
            tmp_path,
            config([("aggregated", worker.url)]),
            upstream=UpstreamLimits(first_byte_seconds=0.3, answer_seconds=0.3),
        ) as r,
    ):
        streamed, whole = await asyncio.gather(r.chat(stream=True), r.chat())
        await eventually(lambda: worker.left == 2)
    assert streamed.status_code == whole.status_code == 504
    assert streamed.json()["error"]["code"] == "timeout"


async def test_a_worker_that_fails_is_left_alone_and_comes_back(tmp_path: Path) -> None:
    """Three failures in a row eject it; once it works again it is probed and used."""
    async with (
        mock_worker(behavior="status") as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        for _ in range(12):
            assert (await r.chat()).status_code == 200
        assert len(bad.received) == 3
        bad.behavior = "ok"

        async def used_again() -> bool:
            await r.chat()
            return len(bad.received) > 4

        for _ in range(400):
            if await used_again():
                break
            await asyncio.sleep(0.02)
        fleet = (await r.admin.get("/admin/fleet")).json()
    assert len(bad.received) > 4
    assert not any(b["ejected"] for b in fleet["deployments"][DEPLOYMENT])


async def test_a_connection_that_the_worker_closed_meanwhile_is_replaced(tmp_path: Path) -> None:
    """Reusing a connection just as the worker closes it counts as no failure."""
    async with (
        mock_worker(single_use=True) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        for _ in range(3):
            assert (await r.chat()).status_code == 200
        assert await r.metric("turnout_router_retries_total", deployment=DEPLOYMENT) == 0
        fleet = (await r.admin.get("/admin/fleet")).json()
    assert worker.reused == 2
    assert fleet["deployments"][DEPLOYMENT][0]["failuresInARow"] == 0


async def test_parallel_requests_over_kept_connections_all_end(tmp_path: Path) -> None:
    """Hundreds of requests over few connections: each gets its own answer, none is lost with another's end."""
    async with (
        mock_worker() as a,
        mock_worker() as b,
        running_router(tmp_path, config([("aggregated", a.url), ("aggregated", b.url)])) as r,
    ):

        async def several(count: int) -> list[int]:
            return [(await r.chat(stream=n % 2 == 0)).status_code for n in range(count)]

        codes = await asyncio.wait_for(asyncio.gather(*(several(20) for _ in range(16))), 60)
        assert await r.metric("turnout_router_in_flight", deployment=DEPLOYMENT) == 0
    assert {code for group in codes for code in group} == {200}
