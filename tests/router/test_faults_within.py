"""Whatever fails inside the router, its client gets an answer or an end, and no other client notices."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.router_hostile_inputs import MODELS, get, head, post
from support.router_running import config, eventually, running_router
from turnout_router.http1 import connection as connection_module
from turnout_router.http1.drive import Signal
from turnout_router.http1.listener import Listener
from turnout_router.settings import ClientLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from turnout_router.errors import ApiError
    from turnout_router.http1.connection import Connection
    from turnout_router.http1.http import Fields, Request
    from turnout_router.http1.response import Response

EXCEPTIONS = (RuntimeError, ValueError, RecursionError, MemoryError, OSError, asyncio.CancelledError)
GOOD = get(b"/good")
LARGE = head(b"/good", length=100_000)


class Failing:
    """A handler that raises *error* at the step that the path names."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.statuses: list[int] = []

    def handle(self, request: Request, response: Response) -> Coroutine[Any, Any, None] | None:
        if request.refusal is not None:
            raise request.refusal
        match request.path:
            case b"/handle":
                raise self.error
            case b"/answered":
                response.respond(200, (), b"ok")
                raise self.error
            case b"/good":
                response.respond(200, (), b"ok")
                return None
        return self._work(request, response)

    async def _work(self, request: Request, response: Response) -> None:
        if request.path == b"/hangs":
            await Signal(asyncio.get_running_loop())
        if request.path != b"/at-once":
            later = Signal(asyncio.get_running_loop())
            asyncio.get_running_loop().call_soon(later.set)
            await later
        if request.path == b"/begun":
            response.begin(200, (), None)
            response.send(b"half of it")
        if request.path != b"/waits":
            raise self.error
        response.respond(200, (), b"ok")

    def check_head(self, request: Request, _response: Response) -> ApiError | None:
        if request.path == b"/check":
            raise self.error
        return None

    def refused(self, status: int) -> None:
        self.statuses.append(status)

    def error_body(self, error: ApiError, target: bytes, _fields: Fields) -> bytes:
        if target == b"/error-body":
            raise self.error
        return b'{"error":"%d"}' % error.status


@asynccontextmanager
async def serving(
    handler: Failing, limits: ClientLimits | None = None
) -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener(handler, limits or ClientLimits())
    port = await listener.start("127.0.0.1", 0)
    try:
        yield listener, port
    finally:
        await listener.stop(0.1)


async def answers_to(port: int, *parts: bytes) -> bytes:
    """Send *parts*, and return everything up to the end of the connection, which must come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


def statuses(answers: bytes) -> list[int]:
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("error", EXCEPTIONS)
@pytest.mark.parametrize("before", [b"", GOOD, get(b"/waits"), GOOD + get(b"/waits") + GOOD])
async def test_a_request_that_fails_gets_500(error: type[BaseException], before: bytes) -> None:
    """At whatever step, alone and behind others on the connection; once an answer has begun, it is cut off instead."""
    handler = Failing(error)
    async with serving(handler) as (listener, port):
        earlier = [200] * before.count(b"GET")
        cancelled = error is asyncio.CancelledError
        for path, own in (
            (b"/handle", [500]),
            (b"/at-once", [] if cancelled else [500]),
            (b"/later", [] if cancelled else [500]),
            (b"/answered", [200]),
            (b"/begun", [200]),
        ):
            answers = await answers_to(port, before + get(path) + GOOD)
            assert statuses(answers) == earlier + own, path
            assert not answers.endswith(b"0\r\n\r\n")
        if not cancelled:
            checked = (
                head(b"/check", length=100_000),
                head(b"/check"),
                head(b"/check", b"expect: 100-continue"),
            )
            for request in checked:
                assert statuses(await answers_to(port, before + request)) == [*earlier, 500]
        assert statuses(await answers_to(port, MODELS.replace(b"/v1/models", b"/good"), b"\r\n\0")) == [
            200,
            400,
        ]
        await eventually(lambda: not len(listener))
        assert listener.held_bytes == 0


async def test_an_error_that_cannot_even_be_written_ends_the_connection() -> None:
    """No answer, but an end, alone and behind another request."""
    async with serving(Failing(RuntimeError)) as (listener, port):
        broken = b"GET /error-body HTTP/1.1\r\nhost: a b\r\n\r\n"
        assert await answers_to(port, broken) == b""
        assert statuses(await answers_to(port, GOOD + broken)) == [200]
        await eventually(lambda: not len(listener))


async def test_one_connection_that_fails_in_the_sweep_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is dropped; the deadlines of the others hold."""
    check = connection_module.Connection.check_deadlines

    async with serving(Failing(RuntimeError), ClientLimits(head_seconds=0.2)) as (listener, port):
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        await eventually(lambda: len(listener) == 3)
        bad = next(iter(listener.connections))

        def fail(self: Connection, now: float) -> None:
            if self is bad:
                raise RuntimeError("of the test")
            check(self, now)

        monkeypatch.setattr(connection_module.Connection, "check_deadlines", fail)
        caplog.set_level(logging.CRITICAL, "turnout_router")
        await eventually(lambda: not len(listener))
        for _, writer in opened:
            writer.close()


async def test_a_request_that_no_one_works_on_is_ended() -> None:
    """Were a coroutine ever lost, the sweep would drop its connection rather than keep it for ever."""
    async with serving(Failing(RuntimeError)) as (listener, port):
        asking = asyncio.create_task(answers_to(port, get(b"/hangs")))
        await eventually(lambda: any(each._drive is not None for each in listener.connections))
        (one,) = listener.connections
        lost, one._drive = one._drive, None
        assert await asking == b""
        assert not len(listener)
        assert lost is not None
        lost.cancel()


class Breaking:
    """The gateway, except that it fails on what goes to workers."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self.check_head = gateway.check_head
        self.refused = gateway.refused
        self.error_body = gateway.error_body

    def handle(self, request: Request, response: Response) -> object:
        if request.method == "POST":
            raise RuntimeError("of the test")
        return self._gateway.handle(request, response)


async def test_what_fails_in_the_gateway_is_500_and_counted(tmp_path: Path) -> None:
    """In the form of the API that was asked."""
    async with running_router(tmp_path, config([])) as r:
        listener: Any = r.router._listener
        listener.handler = Breaking(listener.handler)
        answer = await r.client.post("/v1/messages", content=b"{}")
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "api_error"
        assert statuses(await answers_to(r.router.port, MODELS + post(b"{}") + MODELS)) == [200, 500]
        assert await r.metric("turnout_router_requests_total", deployment="", code="500") == 2
