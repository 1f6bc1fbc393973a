"""What clients send ahead of their answers, or leave unread: kept in order, and bounded with all else that they hold."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pytest

from support.router_fuzzing import Wire
from support.router_hostile_inputs import get, post
from support.router_running import config, eventually, running_router
from turnout_router.http1.connection import Connection
from turnout_router.http1.listener import Listener
from turnout_router.settings import ClientLimits

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_router.errors import ApiError
    from turnout_router.http1.http import Fields, Request
    from turnout_router.http1.response import Response

KIB = 1024


class Noting:
    """Answers at once, with the path that was asked for."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.checked = 0

    def handle(self, request: Request, response: Response) -> None:
        self.asked.append(request.path)
        response.respond(200, (), request.path)

    def check_head(self, _request: Request, _response: Response) -> ApiError | None:
        self.checked += 1
        return None

    def refused(self, status: int) -> None:
        raise AssertionError(f"a good request was refused with {status}")

    def error_body(self, _error: ApiError, _target: bytes, _fields: Fields) -> bytes:
        return b""


def connected(limits: ClientLimits) -> tuple[Connection, Wire, Noting, Listener]:
    handler = Noting()
    listener = Listener(handler, limits)
    connection = Connection(listener, asyncio.get_running_loop())
    wire = Wire()
    connection.connection_made(wire)
    return connection, wire, handler, listener


async def test_what_comes_while_an_answer_is_not_read_keeps_its_order() -> None:
    """However the pieces fall, and however often the client stops reading."""
    connection, wire, handler, listener = connected(ClientLimits())
    paths = [b"/%d" % number for number in range(400)]
    data = b"".join(get(path) for path in paths)

    def stop(data: bytes) -> None:
        Wire.write(wire, data)
        if len(handler.asked) % 3 == 0:
            connection.pause_writing()

    cast("Any", wire).write = stop
    begin = 0
    while begin < len(data):
        size = (7, 31, 120)[begin % 3]
        connection.data_received(data[begin : begin + size])
        begin += size
        if begin % 5 < 3:
            connection.resume_writing()
    while len(handler.asked) < len(paths):
        before = len(handler.asked)
        connection.resume_writing()
        assert len(handler.asked) > before
    assert handler.asked == paths
    connection.connection_lost(None)
    assert (listener.held_bytes, len(listener.accounts)) == (0, 0)


@pytest.mark.parametrize("size", [50, 3000, 4096, 5000, 100_000])
async def test_bodies_of_every_size_are_read_behind_one_another(size: int) -> None:
    """In one piece with what follows them. Only the heads of large ones are looked at apart."""
    connection, _, handler, listener = connected(ClientLimits())
    connection.data_received((post(b"x" * size) + get(b"/next")) * 5)
    await eventually(lambda: len(handler.asked) == 10)
    assert handler.asked == [b"/v1/chat/completions", b"/next"] * 5
    assert handler.checked == (5 if size > listener.limits.small_body_bytes else 0)
    connection.connection_lost(None)
    assert listener.held_bytes == 0


async def test_little_is_parsed_for_a_client_that_does_not_read() -> None:
    """The rest stays text, which is counted and bounded: a parsed request takes ten times the memory."""
    connection, wire, handler, listener = connected(ClientLimits(pipelined_bytes=64 * KIB))
    connection.pause_writing()
    connection.resume_writing()
    requests = get(b"/") * 8000

    def stop(data: bytes) -> None:
        Wire.write(wire, data)
        if len(handler.asked) == 1:
            connection.pause_writing()

    cast("Any", wire).write = stop
    connection.data_received(requests)
    assert len(handler.asked) == 1
    assert len(connection._reader.ready) < 200
    assert wire.paused
    assert listener.held_bytes > len(requests) - 8 * KIB
    connection.resume_writing()
    assert len(handler.asked) <= 10, "others have their turn"
    await eventually(lambda: len(handler.asked) == 8000)
    assert not wire.paused
    assert listener.held_bytes == 0


async def test_many_requests_at_once_leave_others_their_turn() -> None:
    """However many come in one read, only a few are answered in one turn of the event loop."""
    connection, _, handler, listener = connected(ClientLimits())
    loop = asyncio.get_running_loop()
    turns = [0]

    def look() -> None:
        turns.append(len(handler.asked))
        if turns[-1] < 4000:
            loop.call_soon(look)

    loop.call_soon(look)
    connection.data_received(get(b"/") * 4000)
    await eventually(lambda: len(handler.asked) == 4000)
    await eventually(lambda: turns[-1] == 4000)
    assert max(after - before for before, after in pairwise(turns)) <= 16
    connection.connection_lost(None)
    assert (listener.held_bytes, len(listener.accounts)) == (0, 0)


async def test_those_who_do_not_read_take_no_more_than_bodies_may(tmp_path: Path) -> None:
    """Beyond that their connections are dropped; others are served."""
    limits = ClientLimits(bodies_bytes=4096 * KIB)
    requests = get(b"/v1/none") * 40_000
    async with running_router(tmp_path, config([]), client=limits) as r:
        listener = r.router._listener
        opened = []
        for _ in range(60):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", r.router.port, limit=1, local_addr=("127.0.0.2", 0)
            )
            cast("asyncio.Transport", writer.transport).pause_reading()
            writer.write(requests)
            opened.append((reader, writer))
        await eventually(lambda: listener.held_bytes > 1024 * KIB, 30)
        for _ in range(20):
            assert (await r.client.get("/v1/models")).status_code == 200
            assert listener.held_bytes <= 4096 * KIB
        for _, writer in opened:
            writer.transport.abort()
        await eventually(lambda: listener.held_bytes == 0)
