"""Those who leave: clients at every point of a request, and prefill workers before, during and after the exchange."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, cast

import pytest

from support.router_fuzzing import Wire
from support.router_mock_backend import MockWorker, mock_worker
from support.router_running import (
    DEPLOYMENT,
    LONG,
    Running,
    chat,
    config,
    eventually,
    pair,
    running_router,
)
from support.worker_process import free_port
from turnout_router.settings import UpstreamLimits
from turnout_router.upstream.connection import UpstreamConnection
from turnout_router.upstream.pools import ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from turnout_router.http1.http import Fields

HEARD_WITHIN_SECONDS = 0.2


async def leave(
    r: Running, body: bytes, at_the_point: Callable[[], object], heard: Callable[[], object]
) -> float:
    """Ask, leave once *at_the_point*, and return how long it took until *heard*."""
    _, writer = await asyncio.open_connection("127.0.0.1", r.router.port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    await eventually(at_the_point)
    began = time.monotonic()
    writer.close()
    await eventually(heard)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("half", "behavior", "stream"),
    [
        ("prefill", "hang", True),
        ("prefill", "hang", False),
        ("decode", "hang", True),
        ("decode", "hang", False),
        ("decode", "head_then_hang", True),
        ("decode", "endless", True),
    ],
)
async def test_a_client_that_leaves_is_heard_of_at_once(
    tmp_path: Path, half: str, behavior: str, *, stream: bool
) -> None:
    """While the prompt is computed, before the answer's head, before its first token, in its middle: within 0.2 s."""
    async with mock_worker(pause_seconds=0.01) as prefill, mock_worker(pause_seconds=0.01) as decode:
        at_work: MockWorker = prefill if half == "prefill" else decode
        at_work.behavior = behavior
        async with running_router(tmp_path, pair(prefill, decode, policy="LeastLoaded")) as r:
            body = json.dumps(chat(LONG, stream=stream)).encode()
            took = [
                await leave(
                    r,
                    body,
                    lambda number=number: len(at_work.received) == number,  # type: ignore[misc]
                    lambda number=number: at_work.left == number,  # type: ignore[misc]
                )
                for number in (1, 2, 3)
            ]
            await eventually(lambda: prefill.running == decode.running == 0)
            assert r.router._listener.held_bytes == 0
            assert await r.metric("turnout_router_in_flight", deployment=DEPLOYMENT) == 0
            assert await r.metric("turnout_router_requests_total", deployment=DEPLOYMENT, code="499") == 3
    assert min(took) < HEARD_WITHIN_SECONDS  # of three, for the machine may be busy with something else


async def test_a_client_that_leaves_while_it_sends_is_forgotten(tmp_path: Path) -> None:
    """No worker hears of it, and nothing of its body is kept."""
    async with (
        mock_worker() as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", r.router.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n{")
        listener = r.router._listener
        await eventually(lambda: listener.held_bytes == 1)
        writer.close()
        await eventually(lambda: listener.held_bytes == 0)
    assert not worker.received


async def test_a_prefill_worker_that_dies_during_the_exchange(tmp_path: Path) -> None:
    """Its prompt is computed by the decode worker itself, and the client notices nothing."""
    async with mock_worker() as decode:
        async with mock_worker(behavior="hang") as prefill:
            router = running_router(tmp_path, pair(prefill, decode, policy="LeastLoaded"))
            r = await router.__aenter__()
            asking = asyncio.create_task(r.chat(LONG, stream=True))
            await eventually(lambda: prefill.received)
        try:
            answer = await asking
            assert answer.status_code == 200
            assert answer.text.endswith("[DONE]\n\n")
            assert "kv_transfer_params" not in decode.received[0].body
            # From now on it is dead before the exchange begins.
            assert (await r.chat(LONG)).status_code == 200
        finally:
            await router.__aexit__(None, None, None)


async def test_a_prefill_worker_that_dies_after_the_exchange(tmp_path: Path) -> None:
    """The decode worker cannot fetch what was handed out: the prompt is computed anew, elsewhere or by itself."""
    async with (
        mock_worker() as prefill,
        mock_worker(behavior="cannot_fetch") as decode,
        running_router(tmp_path, pair(prefill, decode, policy="LeastLoaded")) as r,
    ):
        answer = await r.chat(LONG, stream=True)
        assert answer.status_code == 200
        assert [("kv_transfer_params" in request.body) for request in decode.received] == [True, False]


async def test_without_any_prefill_worker_prompts_are_computed_locally(tmp_path: Path) -> None:
    """All of them gone: slower, but served, and counted as such."""
    nowhere = [("prefill", f"http://127.0.0.1:{free_port()}") for _ in range(3)]
    async with (
        mock_worker() as decode,
        running_router(tmp_path, config([*nowhere, ("decode", decode.url)], policy="LeastLoaded")) as r,
    ):
        for _ in range(5):
            assert (await r.chat(LONG, stream=True)).status_code == 200
        tried = await r.metric(
            "turnout_router_local_prefills_total", deployment=DEPLOYMENT, reason="prefill_failed"
        )
        ejected = await r.metric(
            "turnout_router_local_prefills_total", deployment=DEPLOYMENT, reason="no_prefill"
        )
    assert tried >= 1
    assert tried + ejected == 5


class Pausing:
    """Takes an answer, and finds at its very end that the client reads too slowly."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self.connection = connection

    def on_head(self, status: int, fields: Fields) -> None:
        pass

    def on_body(self, _data: bytes) -> bool:
        self.connection.pause()
        return False


async def test_a_connection_that_was_held_back_at_the_end_reads_again() -> None:
    """It goes back to the pool ready for the next exchange, not deaf."""
    pool = ConnectionPool(("127.0.0.1", 1), UpstreamLimits())
    connection = UpstreamConnection(pool, asyncio.get_running_loop())
    wire = Wire()
    connection.connection_made(cast("asyncio.Transport", wire))
    for _ in range(2):
        done = connection.begin(b"x", Pausing(connection), seconds=5, idle_seconds=None, what="it")
        connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await done
        assert not wire.paused
        assert connection.reusable
