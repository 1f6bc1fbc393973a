"""One answer per request from a worker: further bytes go to no client, and its connection is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from support.router_running import Running, chat, config, eventually, running_router
from turnout_router.http1.http import get
from turnout_router.settings import UpstreamLimits
from turnout_router.upstream.answers import Collected
from turnout_router.upstream.pools import ConnectionPools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


def answer(text: str, status: int = 200, *, chunked: bool = False, more: bytes = b"") -> bytes:
    """Return a whole answer that says *text*, with the fields *more* besides."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    body = json.dumps({"text": text, "message": text, "usage": usage}).encode()
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%b" % (status, more)
    if chunked:
        return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


SECOND = answer("of another request")
BEHIND = {
    "a second answer": SECOND,
    "a second answer in chunks": answer("of another request", chunked=True),
    "the beginning of a second answer": b"HTT",
    "the head of a second answer": SECOND[:-10],
    "an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
    "a change of protocol": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nxyz",
    "garbage": b"garbage",
    "a chunk": b"3\r\nabc\r\n0\r\n\r\n",
    "a second last chunk": b"0\r\n\r\n",
    "an empty line and a second answer": b"\r\n" + SECOND,
    "NULs": b"\0\0\0\0",
}


class Scripted:
    """A worker that answers its requests in turn with *script*, each piece of which is written on its own.

    `kept` says for each connection how many requests came on it, `ended` how many connections the router has dropped.
    """

    def __init__(self, script: list[list[bytes]]) -> None:
        self._script = list(script)
        self.kept: list[int] = []
        self.ended = 0
        self.late: bytes | None = None
        """Written after every answer, once the connection has been idle for a moment."""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.kept)
        self.kept.append(0)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
                await reader.readexactly(length)
                self.kept[number] += 1
                for piece in self._script.pop(0) if self._script else [answer("after that")]:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.01)
                if self.late is not None:
                    await asyncio.sleep(0.05)
                    writer.write(self.late)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.ended += 1
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def scripted(tmp_path: Path, *script: list[bytes]) -> AsyncIterator[tuple[Running, Scripted]]:
    """Run a router in front of one worker that answers with *script*."""
    worker = Scripted(list(script))
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    async with running_router(
        tmp_path, config([("aggregated", f"http://127.0.0.1:{port}")]), scrape_seconds=0.0
    ) as r:
        yield r, worker
    server.close()
    await server.wait_closed()


async def says(r: Running, text: str, status: int = 200) -> None:
    got = await r.chat()
    assert (got.status_code, got.json()["text"]) == (status, text)


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
@pytest.mark.parametrize("framing", ["content-length", "chunked", "interim first", "close", "error"])
async def test_what_follows_an_answer_is_given_to_no_one(tmp_path: Path, framing: str, behind: bytes) -> None:
    """In the same read. The answer is whole as it is, its connection is dropped, and the next client gets its own."""
    first, status = answer("the first"), 200
    if framing == "chunked":
        first = answer("the first", chunked=True)
    elif framing == "interim first":
        first = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + first
    elif framing == "close":
        first = answer("the first", more=b"connection: close\r\n")
    elif framing == "error":
        first, status = answer("the first", 400), 400
    async with scripted(tmp_path, [first + behind]) as (r, worker):
        await says(r, "the first", status)
        await eventually(lambda: worker.ended == 1)
        await says(r, "after that")
        assert worker.kept == [1, 1]
        assert not await r.metric("turnout_router_retries_total")


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
async def test_what_comes_on_an_idle_connection_is_given_to_no_one(tmp_path: Path, behind: bytes) -> None:
    """Later, while no request is under way: the connection is dropped before the next request."""
    async with scripted(tmp_path) as (r, worker):
        worker.late = behind
        await says(r, "after that")
        await eventually(lambda: worker.ended == 1)
        worker.late = None
        await says(r, "after that")
        await says(r, "after that")
        assert worker.kept == [1, 2]


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("framing", [b"content-length: 4\r\n", b"transfer-encoding: chunked\r\n", b""])
async def test_a_status_without_a_body_is_no_answer(tmp_path: Path, status: int, framing: bytes) -> None:
    """204 and 304 end with their head, whatever it announces (RFC 9112, section 6.3), and answer no completion."""
    head = b"HTTP/1.1 %d X\r\n%b\r\n" % (status, framing)
    body = b"4\r\nbody\r\n0\r\n\r\n" if b"chunked" in framing else b"body"
    async with scripted(tmp_path, [head + body]) as (r, worker):
        await says(r, "after that")
        await eventually(lambda: worker.ended == 1)
        assert worker.kept == [1, 1]


async def test_empty_lines_behind_an_answer_change_nothing(tmp_path: Path) -> None:
    """They are no message: the parser passes over them, and the next answer is the next one."""
    async with scripted(tmp_path, [answer("the first") + b"\r\n"], [answer("the second")]) as (r, _):
        await says(r, "the first")
        await says(r, "the second")


EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_a_second_head_in_the_middle_of_a_stream_breaks_it(tmp_path: Path) -> None:
    """Where a chunk should begin: none of it gets to the client, which gets an error that the stream broke."""
    async with scripted(tmp_path, [STREAM + piece(EVENT), SECOND]) as (r, worker):
        seen = b""
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - what came before is looked at
            async with r.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as got:
                async for data in got.aiter_raw():
                    seen += data
        assert b"stream_broken" in seen
        assert b"another request" not in seen
        assert b"[DONE]" not in seen
        await says(r, "after that")
        assert worker.kept == [1, 1]


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
@pytest.mark.parametrize("together", [True, False], ids=["in one read", "in two reads"])
async def test_what_follows_a_stream_is_given_to_no_one(
    tmp_path: Path, behind: bytes, *, together: bool
) -> None:
    """The stream is whole, ends as it should, and the next client gets its own answer."""
    whole = STREAM + piece(EVENT) + piece(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    async with scripted(tmp_path, [whole + behind] if together else [whole, behind]) as (r, worker):
        got = await r.chat(stream=True)
        assert got.status_code == 200
        assert got.content == EVENT + b"data: [DONE]\n\n"
        await eventually(lambda: worker.ended == 1)
        await says(r, "after that")
        assert worker.kept == [1, 1]


async def test_what_has_come_before_a_request_is_no_answer_to_it() -> None:
    """It lies in the socket, and the event loop has not yet seen it when the connection is to be used again."""
    pools = ConnectionPools(UpstreamLimits())
    pools.start()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(10)  # of the thread that accepts
    pool = pools.of(listening.getsockname())
    taken: list[socket.socket] = []

    def take() -> None:
        connection, _ = listening.accept()
        connection.settimeout(10)
        taken.append(connection)
        reply(connection)

    def reply(connection: socket.socket) -> None:
        assert connection.recv(1000).startswith(b"GET")
        connection.sendall(answer(f"{len(taken)}"))

    async def ask(work: asyncio.Task[None]) -> str:
        collected = Collected(10_000)
        async with asyncio.timeout(10):
            await pool.exchange(get(b"/", b"x"), collected, seconds=5, idle_seconds=None, what="it")
            await work
        text: str = json.loads(collected.body)["text"]
        return text

    def arrived() -> None:
        """Wait until something has come on the kept connection, while the event loop stands still."""
        deadline = time.monotonic() + 10
        while pool._kept[0].quiet:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def aside(function: Callable[[], None]) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.to_thread(function))

    assert await ask(aside(take)) == "1"
    assert await ask(aside(lambda: reply(taken[0]))) == "1"  # kept, and used again
    taken[0].sendall(SECOND)
    arrived()
    assert await ask(aside(take)) == "2"
    taken[1].shutdown(socket.SHUT_WR)  # an end that has not been seen is seen likewise
    arrived()
    assert await ask(aside(take)) == "3"
    pools.stop()
    for each in (*taken, listening):
        each.close()
