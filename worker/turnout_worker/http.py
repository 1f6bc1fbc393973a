"""HTTP/1.1 on an asyncio Protocol with httptools: one request at a time, answers whole or streamed.

Bounded in everything it hears: sizes of head and body, time to receive a request, idle time, pipelined requests.
It keeps reading while an answer is under way, for only so does it notice at once that the client has left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_PIPELINED: Final = 8
RECEIVE_SECONDS: Final = 30.0
"""Longest time from a request's first byte to its last."""
IDLE_SECONDS: Final = 75.0
"""Longest time between two requests."""
_POLL_SECONDS: Final = 0.02

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
Headers = tuple[tuple[str, str], ...]


class Request:
    """One request, complete."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "version")

    def __init__(
        self, method: str, path: str, headers: dict[str, str], body: bytes, *, keep_alive: bool, version: str
    ) -> None:
        self.method = method
        self.path = path
        """Without the query."""
        self.headers = headers
        """Names in lower case."""
        self.body = body
        self.keep_alive = keep_alive
        self.version = version


class Exchange:
    """A request and the answer to it."""

    __slots__ = ("_chunked", "_connection", "on_gone", "on_writable", "open", "request", "streaming")

    def __init__(self, request: Request, connection: HttpConnection) -> None:
        self.request = request
        self.open = True
        """Whether something can still be written."""
        self.streaming = False
        self.on_gone: Callable[[], None] | None = None
        """Called when the client has left before the end of the answer."""
        self.on_writable: Callable[[], None] | None = None
        """Called when the client reads again after `writable` was False."""
        self._connection = connection
        self._chunked = True

    @property
    def writable(self) -> bool:
        """Whether the client keeps up with what was written."""
        return not self._connection.write_paused

    def respond(
        self,
        status: int,
        body: bytes,
        headers: Iterable[tuple[str, str]] = (),
        *,
        type_: str = "application/json",
    ) -> None:
        """Answer with *body* as a whole."""
        if not self.open:
            return
        head = [f"content-type: {type_}", f"content-length: {len(body)}"]
        self._connection.write(
            self._head(status, head, headers) + (b"" if self.request.method == "HEAD" else body)
        )
        self._end()

    def start_stream(
        self, headers: Iterable[tuple[str, str]] = (), *, type_: str = "text/event-stream; charset=utf-8"
    ) -> bytes:
        """Begin an answer in pieces. Returns the head, to be put before the first piece."""
        self.streaming = True
        self._chunked = self.request.version != "1.0"
        head = [f"content-type: {type_}"]
        if self._chunked:
            head.append("transfer-encoding: chunked")
        else:
            self.request.keep_alive = False
        return self._head(200, head, headers)

    def write(self, data: bytes, *, head: bytes = b"", last: bool = False) -> None:
        """Write a piece of a streamed answer; the answer ends with the *last* one."""
        if not self.open:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n%b" % (len(data), data, b"0\r\n\r\n" if last else b"")
        self._connection.write(head + data)
        if last:
            self._end()

    def abandon(self, data: bytes = b"") -> None:
        """Write *data* as it is and cut the connection. The owner is notified as if the client had left."""
        if self.open:
            self._connection.cut(data)
            self.gone()

    def break_off(self) -> None:
        """Close the connection behind what was written, without an end of the answer. `on_gone` is called as above."""
        if self.open:
            self._connection.close()
            self.gone()

    def gone(self) -> None:
        """Notify the owner that the client has left."""
        if self.open:
            self.open = False
            if self.on_gone is not None:
                self.on_gone()

    def _head(self, status: int, head: list[str], headers: Iterable[tuple[str, str]]) -> bytes:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", *head]
        lines += [f"{name}: {value}" for name, value in headers]
        if not self.request.keep_alive:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")

    def _end(self) -> None:
        self.open = False
        self._connection.answered(keep_alive=self.request.keep_alive)


class Application(Protocol):
    """What answers requests."""

    def __call__(self, exchange: Exchange, /) -> None:
        """Answer *exchange*, now or later. Must not raise."""


class HttpConnection(asyncio.Protocol):
    """One connection. Parser callbacks are httptools' names."""

    def __init__(
        self,
        application: Application,
        connections: set[HttpConnection],
        note: Callable[[str, BaseException], None],
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._note = note
        self._application = application
        self._connections = connections
        self._max_body_bytes = max_body_bytes
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._timer: asyncio.TimerHandle | None = None
        self._exchange: Exchange | None = None
        self._queue: deque[Request] = deque()
        self._refused = False
        self.write_paused = False
        self._begin()

    @property
    def answering(self) -> bool:
        """Whether a request has not been answered to its end."""
        return self._exchange is not None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # what asyncio and uvloop promise for TCP
        self._connections.add(self)
        self._wait(IDLE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Notify the request's owner that the client has left."""
        self._transport = None
        self._connections.discard(self)
        self._wait(None)
        self._queue.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            try:
                exchange.gone()
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is this connection's only
                self._note("request", error)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; refuse what is no HTTP."""
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._note("request", error)
            self.cut()
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            self._refuse(HTTPStatus.BAD_REQUEST)

    def pause_writing(self) -> None:
        """Note that the client does not keep up."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Note that it reads again."""
        self.write_paused = False
        if self._exchange is not None and self._exchange.on_writable is not None:
            try:
                self._exchange.on_writable()
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as above
                self._note("request", error)
                self._exchange.abandon()

    # the parser's side

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0

    def on_message_begin(self) -> None:
        """Start a request."""
        self._begin()
        if self._exchange is None:
            self._wait(RECEIVE_SECONDS)

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a field."""
        self._count_head(len(name) + len(value))
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Invite the body where the client waits for that."""
        if self._headers.get("expect", "").lower() == "100-continue" and self._exchange is None:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        self._body_bytes += len(body)
        if self._body_bytes > self._max_body_bytes:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer the request, or queue it behind the one being answered."""
        if self._refused:
            return
        request = Request(
            self._parser.get_method().decode("latin-1"),
            self._url.partition(b"?")[0].decode("latin-1"),
            self._headers,
            b"".join(self._body),
            keep_alive=self._parser.should_keep_alive(),
            version=self._parser.get_http_version(),
        )
        if self._exchange is None:
            self._start(request)
        elif len(self._queue) < MAX_PIPELINED:
            self._queue.append(request)
        else:
            self.cut()

    # the exchange's side

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, *, keep_alive: bool) -> None:
        """Go on with the next request, or close."""
        self._exchange = None
        if not keep_alive:
            self.close()
        elif self._queue:
            self._start(self._queue.popleft())
        else:
            self._wait(IDLE_SECONDS)

    def cut(self, data: bytes = b"") -> None:
        """Write *data* and cut the connection, whatever is under way."""
        transport, self._transport = self._transport, None
        if transport is not None:
            if data:
                transport.write(data)
                transport.close()
            else:
                transport.abort()

    def close(self) -> None:
        """Close once everything is written."""
        if self._transport is not None:
            self._transport.close()

    def _start(self, request: Request) -> None:
        self._wait(None)
        self._exchange = exchange = Exchange(request, self)
        self._application(exchange)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _refuse(self, status: HTTPStatus) -> None:
        if self._refused:
            return
        self._refused = True
        if self._exchange is not None:
            self.cut()  # garbage behind a request that is being answered
            return
        self.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        )
        self.close()

    def _wait(self, seconds: float | None) -> None:
        """Close the connection when nothing has come for *seconds*."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self.close)


class _Refusal(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()


class HttpServer:
    """Listens and keeps track of its connections, so that it can end them."""

    def __init__(
        self,
        application: Application,
        note: Callable[[str, BaseException], None],
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_connections: int | None = None,
    ) -> None:
        """*note* is given what a connection raises and survives, under the name `request`.

        With *max_connections* open, a further one is closed at once; no bound where it is None.
        """
        self._note = note
        self._application = application
        self._max_body_bytes = max_body_bytes
        self._max_connections = max_connections
        self._connections: set[HttpConnection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen. Returns the port, which the system has chosen where *port* is 0."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, host, port, backlog=1024)
        return int(self._server.sockets[0].getsockname()[1])

    def _connection(self) -> asyncio.BaseProtocol:
        if self._max_connections is not None and len(self._connections) >= self._max_connections:
            return _Refusal()
        return HttpConnection(self._application, self._connections, self._note, self._max_body_bytes)

    @property
    def answering(self) -> bool:
        """Whether a request has not been answered to its end."""
        return any(connection.answering for connection in self._connections)

    async def stop(self, seconds: float) -> None:
        """Stop listening and close what is open; clients have *seconds* to take what was written."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._connections:  # noqa: ASYNC110 - connections come off one by one, which no task owns
                    await asyncio.sleep(_POLL_SECONDS)
        for connection in list(self._connections):
            connection.cut()
