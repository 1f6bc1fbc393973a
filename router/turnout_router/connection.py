"""One client's connection: what it may send, and how it is answered.

One request at a time per connection. What a client sends early is kept, up to a bound; then its socket is read no
further. Reading goes on otherwise while an answer is under way, for that is how a client's leaving is noticed. A
client that closes its sending side counts as gone: TCP cannot tell the two apart.

Time-outs are coarse: the listener's sweep looks at every connection once a second, so that a request costs no timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Protocol, cast

import httptools

from turnout_router.errors import ApiError, malformed, not_http, unavailable
from turnout_router.framing import body_is_too_slow, framing_of, origin_form
from turnout_router.http import CONTINUE, JSON, LAST_CHUNK, Fields, Request, answer_head, chunk

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from turnout_router.listener import Listener

_LOG = logging.getLogger(__name__)
LINGER_SECONDS: Final = 2.0
"""How long the rest of a refused request is read and thrown away: closing at once would reset the connection and
destroy the answer that says why."""
_CHUNKING_OVERHEAD_BYTES: Final = 64 * 1024
"""What chunk sizes and extensions may take up beside a body, on top of the body's own bound."""

_Wait = Literal["head", "body", "idle", "answer", "linger"]


class Source(Protocol):
    """Where an answer comes from; told to wait while the client reads slowly."""

    def pause(self) -> None:
        """Send nothing more for now."""

    def resume(self) -> None:
        """Go on."""


class Handler(Protocol):
    """What serves requests."""

    def handle(self, request: Request, client: ClientConnection) -> Coroutine[Any, Any, None] | None:
        """Answer at once and return None, or return the coroutine that will. May raise ApiError."""

    def refused(self, status: int) -> None:
        """Count a request that was refused before it was complete."""


class _Refused(Exception):  # noqa: N818 - never leaves the parser: it only stops it
    """Stops the parser in the middle of a request that will not be served."""


class ClientConnection(asyncio.Protocol):
    """One client's connection: parses its requests, one after the other, and writes the answers.

    For the handler: `respond` for an answer in one piece; `begin`, `send`, `end` for a stream, `break_off` where
    it cannot be finished. `started` says whether anything of the answer has been sent.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_framing",
        "_body_since",
        "_chunked",
        "_deadline",
        "_early",
        "_field_count",
        "_fields",
        "_has_body",
        "_head",
        "_head_bytes",
        "_head_done",
        "_held_bytes",
        "_in_message",
        "_keep",
        "_limits",
        "_listener",
        "_loop",
        "_parser",
        "_reading",
        "_ready",
        "_refusal",
        "_request",
        "_stalled_since",
        "_target",
        "_task",
        "_transport",
        "_unfinished_bytes",
        "_wait",
        "gone",
        "source",
        "started",
    )

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self._listener = listener
        self._limits = listener.limits
        self._loop = loop
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._ready: deque[Request] = deque()
        self._refusal: ApiError | None = None
        self._early = b""
        self._reading = True
        self._wait: _Wait = "head"
        self._deadline = loop.time() + self._limits.head_seconds
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._head: bytes | None = None
        self._chunked = False
        self._stalled_since: float | None = None
        self._held_bytes = 0
        self._target: bytes
        self.source: Source | None = None
        self.started = False
        self.gone = False
        self._reset_message()

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it where there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        self._listener.connections.add(self)
        if len(self._listener.connections) > self._limits.connections:
            self._refuse(unavailable("Too many connections."))

    def data_received(self, data: bytes) -> None:
        """Parse, or keep for later while a request is under way."""
        if self._wait == "linger":
            return
        if self._request is not None or self._ready or self._refusal is not None:
            self._early += data
            if len(self._early) > self._limits.pipelined_bytes and self._reading:
                self._reading = False
                self._transport.pause_reading()
            return
        self._parse(data)
        self._advance()

    def eof_received(self) -> bool | None:
        """Count the client as gone; None closes the transport."""
        return None

    def connection_lost(self, _exc: Exception | None) -> None:
        """End what is under way for this client."""
        self.gone = True
        self._let_go(self._held_bytes)
        self._listener.forget(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """Hold the source back: the client reads more slowly than the answer comes."""
        self._stalled_since = self._loop.time()
        if self.source is not None:
            self.source.pause()

    def resume_writing(self) -> None:
        """Let the source go on."""
        self._stalled_since = None
        if self.source is not None:
            self.source.resume()
        self._advance()

    # What the parser says

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._reset_message()
        self._wait = "head"
        self._deadline = self._loop.time() + self._limits.head_seconds
        self._in_message = True

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url
        if len(self._target) > self._limits.target_bytes:
            self._stop_parsing(ApiError(414, "The request target is too long.", close=True))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field. Those that follow a chunked body are bounded too, but never become part of the head."""
        self._head_bytes += len(name) + len(value) + 4
        self._field_count += 1
        limits = self._limits
        if self._head_bytes > limits.head_bytes or self._field_count > limits.header_fields:
            self._stop_parsing(ApiError(431, "The header fields are too large or too many.", close=True))
        if not self._head_done:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide whether the request and its body are wanted."""
        parser = self._parser
        try:
            framing = framing_of(parser.get_method(), parser.get_http_version(), self._fields)
        except ApiError as error:
            self._stop_parsing(error)
        self._target = origin_form(self._target)
        self._head_done = True
        self._has_body = framing.has_body
        if framing.has_body:
            if parser.should_upgrade():
                self._body_framing = framing.as_field()
            self._check_body_size(framing.length or 0)
            self._wait = "body"
            self._body_since = self._loop.time()
            self._deadline = self._body_since + self._limits.body_seconds
            if framing.expects_continue and not self._ready and self._request is None:
                self._transport.write(CONTINUE)

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._body_bytes += len(data)
        self._check_body_size(self._body_bytes)
        self._held_bytes += len(data)
        self._listener.held_bytes += len(data)
        if self._listener.held_bytes > self._limits.bodies_bytes:
            busy = unavailable("Too many large requests are under way.")
            busy.close = True
            self._stop_parsing(busy)
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Line the request up."""
        self._in_message = False
        parser = self._parser
        method = parser.get_method().decode("ascii")
        keep_alive = bool(parser.should_keep_alive()) and not parser.should_upgrade()
        may_chunk = parser.get_http_version() == "1.1"
        self._ready.append(
            Request(
                method,
                self._target,
                tuple(self._fields),
                self._whole_body(),
                keep_alive,
                may_chunk,
                self._has_body,
            )
        )

    def on_late_body_complete(self, request: Request) -> None:
        """Line *request* up, whose body had to be read apart."""
        self._in_message = False
        self._ready.append(request._replace(body=self._whole_body()))

    # What the handler says

    def respond(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a whole answer."""
        close = self._closes_after()
        head = answer_head(status, fields, length=len(body), close=close)
        self.started = True
        bodiless = self._request is not None and self._request.method == "HEAD"
        self._transport.write(head if bodiless else head + body)

    def respond_error(self, error: ApiError, fields: Fields = ()) -> None:
        """Send an OpenAI error object."""
        self.respond(error.status, (JSON, *error.headers, *fields), error.body())

    def begin(self, status: int, fields: Fields, length: int | None) -> None:
        """Begin a streamed answer; its head goes out with the first piece. *length* where it is known."""
        request = self._request
        self._chunked = length is None and request is not None and request.may_chunk
        if length is None and not self._chunked:
            self._keep = False
        self._head = answer_head(
            status, fields, length=length, close=self._closes_after(), chunked=self._chunked
        )
        self.started = True

    def send(self, data: bytes) -> None:
        """Send a piece of a streamed answer."""
        if self._chunked:
            data = chunk(data)
        if self._head is not None:
            data = self._head + data
            self._head = None
        self._transport.write(data)

    def end(self) -> None:
        """End a streamed answer well."""
        if self._chunked:
            self._transport.write(LAST_CHUNK)

    def break_off(self, event: bytes) -> None:
        """End a streamed answer that cannot be finished: *event* says so, and the body is left without its end."""
        if event:
            self.send(event)
        self._keep = False

    # Its own life

    def drain(self) -> None:
        """Close once the present request is answered; at once where there is none."""
        self._keep = False
        if self._request is None and not self._in_message:
            self._close()

    def cut(self) -> None:
        """End now: what runs is told so, see `Exchange`."""
        if self._task is not None:
            self._task.cancel()
        else:
            self._close()

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def check_deadlines(self, now: float) -> None:
        """Act on what has taken too long."""
        if self._stalled_since is not None and now - self._stalled_since > self._limits.stall_seconds:
            self._transport.abort()
        if self._wait == "body" and self._in_message:
            limits = self._limits
            seconds = now - self._body_since
            if body_is_too_slow(self._body_bytes, seconds, limits.body_grace_seconds, limits.body_rate):
                self._refuse(ApiError(408, "The body arrives too slowly.", close=True))
                return
        if now < self._deadline or self._wait == "answer":
            return
        if self._wait == "body" or (self._wait == "head" and self._in_message):
            self._refuse(ApiError(408, "The request took too long to arrive.", close=True))
        elif self._wait == "linger":
            self._transport.abort()
        else:
            self._close()

    def _reset_message(self) -> None:
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._head_bytes = 0
        self._body_bytes = 0
        self._unfinished_bytes = 0
        self._field_count = 0
        self._head_done = False
        self._has_body = False
        self._body_framing = b""
        self._body_since = 0.0
        self._in_message = False
        self._keep = True

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Answered as if it had not asked (RFC 9110, section 7.8), and the connection closed after it. The
            # parser takes whatever follows for the other protocol's, a body too; Java's own client sends both.
            if self._has_body:
                self._parser = httptools.HttpRequestParser(_LateBody(self, self._ready.pop()))
                self._in_message = True
                self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % self._body_framing)
                self._parse(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if self._refusal is None and not (self._ready and not self._ready[-1].keep_alive):
                self._refusal = not_http(f"This is not HTTP as it should be: {error}.")
            return
        if self._in_message:
            self._bound_raw(len(data))

    def _whole_body(self) -> bytes:
        return self._body[0] if len(self._body) == 1 else b"".join(self._body)

    def _bound_raw(self, size: int) -> None:
        """Bound what an unfinished request takes up on the wire: the parser tells neither of half a field nor of chunk sizes."""
        self._unfinished_bytes += size
        limits = self._limits
        if not self._head_done and self._unfinished_bytes > limits.head_bytes:
            self._refusal = ApiError(431, "The header fields are too large.", close=True)
        elif self._unfinished_bytes > limits.head_bytes + 2 * limits.body_bytes + _CHUNKING_OVERHEAD_BYTES:
            self._refusal = ApiError(413, "The body's chunks take up too much.", close=True)

    def _stop_parsing(self, error: ApiError) -> NoReturn:
        self._refusal = error
        raise _Refused

    def _check_body_size(self, length: int) -> None:
        if length > self._limits.body_bytes:
            self._stop_parsing(
                ApiError(
                    413,
                    f"The body is too large: at most {self._limits.body_bytes} bytes are accepted.",
                    code="request_too_large",
                    close=True,
                )
            )

    def _advance(self) -> None:
        """Start the next request, if none is under way and the client has taken the last answer."""
        while self._request is None and self._stalled_since is None and not self._transport.is_closing():
            if self._ready:
                self._start(self._ready.popleft())
            elif self._refusal is not None:
                self._refuse(self._refusal)
                return
            elif self._early:
                data, self._early = self._early, b""
                if not self._reading:
                    self._reading = True
                    self._transport.resume_reading()
                self._parse(data)
            else:
                return

    def _start(self, request: Request) -> None:
        self._request = request
        self._wait = "answer"
        self._keep = request.keep_alive
        self.started = False
        self._head = None
        self._chunked = False
        try:
            coroutine = self._listener.handler.handle(request, self)
        except ApiError as error:
            if error.close:
                self._keep = False
            self.respond_error(error)
            coroutine = None
        if coroutine is None:
            self._finish()
            return
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self.source = None
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            _LOG.error("a request ended in a fault of the router", exc_info=failure)
            self._keep = False
            if not self.started and not self.gone:
                error = ApiError(500, "The router failed on this request.", type="server_error")
                self.respond_error(error)
        if task.cancelled():
            self._keep = False
        self._finish()
        if not self.gone:
            self._advance()

    def _finish(self) -> None:
        if self._request is not None:
            self._let_go(len(self._request.body))
        self._request = None
        if not self._keep or self._listener.draining:
            self._close()
            return
        self._wait = "idle"
        self._deadline = self._loop.time() + self._limits.idle_seconds

    def _let_go(self, size: int) -> None:
        self._held_bytes -= size
        self._listener.held_bytes -= size

    def _closes_after(self) -> bool:
        if self._listener.draining:
            self._keep = False
        return not self._keep

    def _refuse(self, error: ApiError) -> None:
        """Answer with *error*, end the sending side, and throw away what still comes for a moment."""
        self._keep = False
        self._refusal = None
        self._listener.handler.refused(error.status)
        self.respond_error(error)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._wait = "linger"
        self._deadline = self._loop.time() + LINGER_SECONDS

    def _close(self) -> None:
        if self._wait != "linger":
            self._wait = "linger"
            self._deadline = self._loop.time() + self._limits.stall_seconds
        self._transport.close()


class _LateBody:
    """Takes the body of *request*, which asked for another protocol and is not given it."""

    def __init__(self, connection: ClientConnection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._begun = False
        self.on_body = connection.on_body

    def on_message_begin(self) -> None:
        if self._begun:
            raise _Refused  # one body is all that is read here
        self._begun = True

    def on_message_complete(self) -> None:
        self._connection.on_late_body_complete(self._request)


def require_body(request: Request) -> None:
    """Raise ApiError where *request* carries no body at all: 411 without a length, 400 for an empty one."""
    if not request.has_body:
        raise ApiError(411, "Send the request as a JSON body with Content-Length.")
    if not request.body:
        raise malformed("The body of your request is empty; send a JSON object.")
