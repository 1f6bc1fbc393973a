"""A lean HTTP/1.1 client for load: asyncio Protocols with httptools, keep-alive, one deadline per request.

It shares its machine with all it measures, so it does no more per piece of a stream than to hand it on. What
it leaves out is what a load client does not need: TLS, redirects, cookies, compression.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, cast
from urllib.parse import urlsplit

import httptools

from turnout_cli.replay.errors import BrokenError, ConnectError, LateError, TargetError
from turnout_cli.replay.stream import StreamReader

if TYPE_CHECKING:
    from collections.abc import Mapping

IDLE_SECONDS: Final = 4.0
"""An idle connection is used again only this long: servers close theirs after about five seconds."""

CONNECT_SECONDS: Final = 5.0

ERROR_BODY_BYTES: Final = 4096
"""Bytes kept of an answer that is no stream."""

HTTP_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    path: str = ""
    """What stands before `/v1` in every path."""

    @classmethod
    def parse(cls, url: str) -> Target:
        """Return the target that *url* names, such as http://127.0.0.1:8080. Raise TargetError for another form."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise TargetError(
                f"{url!r} is no address ({error}): write it as in http://127.0.0.1:8080"
            ) from error
        if parts.scheme != "http" or not parts.hostname:
            raise TargetError(
                f"{url!r} cannot be used: write a plain HTTP address as in http://127.0.0.1:8080"
            )
        return cls(parts.hostname, port or 80, parts.path.rstrip("/").removesuffix("/v1"))


@dataclass(slots=True)
class ServerAnswer:
    """One answer as it comes in. Times are the event loop's."""

    sent_at: float
    stream: StreamReader
    status: int = 0
    body: bytes = b""
    """The beginning of an answer that is no stream."""
    ended_at: float = 0.0


class Client:
    """Sends requests to one target and reads streamed answers. Close it in the end: `async with`."""

    def __init__(self, target: Target, *, headers: Mapping[str, str] | None = None) -> None:
        self.target = target
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        lines = {
            "Host": f"{target.host}:{target.port}",
            "Content-Type": "application/json",
            **(headers or {}),
        }
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop every connection."""
        for connection in tuple(self._open):
            connection.abort()

    async def post(self, path: str, body: bytes, *, deadline_seconds: float) -> ServerAnswer:
        """Send *body* as JSON and return the whole answer.

        Raise ConnectError, BrokenError, or LateError when *deadline_seconds* have passed. A connection that
        the server closed while it was idle is replaced by a new one; nothing else is tried twice.
        """
        head = f"POST {self.target.path}{path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        message = head.encode("latin-1") + body
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(deadline_seconds):
                connection = self._kept()
                if connection is not None:
                    try:
                        return await self._exchange(connection, message)
                    except BrokenError:
                        if connection.answer_began:
                            raise
                connection = await self._connect()
                return await self._exchange(connection, message)
        except TimeoutError as error:
            where = "no connection" if connection is None else connection.standing
            raise LateError(f"no complete answer within {deadline_seconds:g} s: {where}") from error

    async def _exchange(self, connection: _Connection, message: bytes) -> ServerAnswer:
        try:
            answer = await connection.exchange(message)
        except BaseException:
            connection.abort()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.abort()
        return answer

    def _kept(self) -> _Connection | None:
        """Return the connection that was used last, if it is still good; the others age and are closed."""
        now = asyncio.get_running_loop().time()
        while self._idle and now - self._idle[0].idle_since > IDLE_SECONDS:
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop, self._open), self.target.host, self.target.port
                )
        except (OSError, TimeoutError) as error:
            raise ConnectError(f"no connection to {self.target.host}:{self.target.port}: {error}") from error
        return connection


class _Connection(asyncio.Protocol):
    """One connection with at most one request on it. Its owner sees it in *registry* while it is open."""

    def __init__(self, loop: asyncio.AbstractEventLoop, registry: set[_Connection]) -> None:
        self._loop = loop
        self._registry = registry
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[ServerAnswer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = ServerAnswer(0.0, StreamReader())
        self.answer_began = False
        self.reusable = False
        self.idle_since = 0.0

    async def exchange(self, message: bytes) -> ServerAnswer:
        """Send *message* and return the answer. Raise BrokenError where the connection ends before it."""
        if self._transport is None or self._transport.is_closing():
            raise BrokenError("the connection was closed while idle")
        self._waiter = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._answer = ServerAnswer(self._loop.time(), StreamReader())
        self.answer_began = self.reusable = False
        self._transport.write(message)
        return await self._waiter

    @property
    def standing(self) -> str:
        """How far the answer has come."""
        if not self.answer_began:
            return "nothing came"
        if self._answer.stream.first_token_at is None:
            return f"HTTP {self._answer.status} and no text"
        return "the text stopped or went on too long"

    def abort(self) -> None:
        """Close at once."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A check by isinstance would refuse uvloop's transports, which only look alike.
        self._transport = cast("asyncio.Transport", transport)
        self._registry.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        self.reusable = False
        self._fail(
            BrokenError(f"the connection ended before the answer did: {exc or 'closed by the server'}")
        )

    def data_received(self, data: bytes) -> None:
        self.answer_began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(BrokenError(f"no HTTP answer: {error}"))
            self.abort()

    # httptools

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, chunk: bytes) -> None:
        answer = self._answer
        if answer.status == HTTP_OK:
            answer.stream.feed(chunk, self._loop.time())
        elif len(answer.body) < ERROR_BODY_BYTES:
            answer.body += chunk[:ERROR_BODY_BYTES]

    def on_message_complete(self) -> None:
        self._answer.ended_at = self.idle_since = self._loop.time()
        self.reusable = self._parser.should_keep_alive()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._answer)

    def _fail(self, error: BrokenError) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
