"""One client's connection: when its requests are read, and how they are answered.

One request at a time per connection. What a client sends early is kept, up to a bound; then its socket is read no
further. Reading goes on otherwise while an answer is under way, for that is how a client's leaving is noticed. A
client that closes its sending side counts as gone: TCP cannot tell the two apart.

Time-outs are coarse: the listener's sweep looks at every connection once a second, so that a request costs no timer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

from turnout_router.drive import Drive
from turnout_router.errors import ApiError, unavailable
from turnout_router.http import CONTINUE, JSON, LAST_CHUNK, Fields, answer_head, chunk
from turnout_router.reader import RequestReader
from turnout_router.tasks import CLIENT

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from turnout.routing import Grant
    from turnout_router.http import Request
    from turnout_router.listener import Listener

LINGER_SECONDS: Final = 2.0
"""How long the rest of a refused request is read and thrown away: closing at once would reset the connection and
destroy the answer that says why."""
_Wait = Literal["request", "answer", "linger"]


class Source(Protocol):
    """Where an answer comes from; told to wait while the client reads slowly."""

    def pause(self) -> None:
        """Send nothing more for now."""

    def resume(self) -> None:
        """Go on."""


class Caller:
    """Who used a connection last: the *credential* as it was sent, and what it *grants* among all *known* keys."""

    __slots__ = ("credential", "grants", "known")

    def __init__(self, credential: bytes, known: Mapping[str, Grant], grants: Grant) -> None:
        self.credential: Final = credential
        self.known: Final = known
        self.grants: Final = grants


class Handler(Protocol):
    """What serves requests."""

    def handle(self, request: Request, client: ClientConnection) -> Coroutine[Any, Any, None] | None:
        """Answer at once and return None, or return the coroutine that will. May raise ApiError."""

    def refused(self, status: int) -> None:
        """Count a request that was refused before it was complete."""

    def error_body(self, error: ApiError, target: bytes, fields: Fields) -> bytes:
        """Return *error* as the clients of the API under *target*, as far as it is known, read it."""


class ClientConnection(asyncio.Protocol):
    """One client's connection: has its requests read, one after the other, and writes the answers.

    For the handler: `respond` for an answer in one piece; `begin`, `send`, `end` for a stream, `break_off` where
    it cannot be finished. `started` says whether anything of the answer has been sent.
    """

    __slots__ = (
        "_chunked",
        "_deadline",
        "_drive",
        "_early",
        "_head",
        "_keep",
        "_limits",
        "_listener",
        "_loop",
        "_reader",
        "_reading",
        "_request",
        "_stalled_since",
        "_starting",
        "_transport",
        "_wait",
        "caller",
        "gone",
        "source",
        "started",
    )

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self._listener = listener
        self._limits = listener.limits
        self._loop = loop
        self._transport: asyncio.Transport
        self._reader = RequestReader(self._limits, listener, loop.time, self._continue)
        self._early = b""
        self._reading = True
        self._wait: _Wait = "request"
        self._deadline = loop.time() + self._limits.head_seconds
        self._request: Request | None = None
        self._drive: Drive | None = None
        self._starting = False
        self._head: bytes | None = None
        self._chunked = False
        self._stalled_since: float | None = None
        self._keep = True
        self.caller: Caller | None = None
        """What the handler remembers of who uses this connection."""
        self.source: Source | None = None
        self.started = False
        self.gone = False

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it where there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        self._listener.connections.add(self)
        if len(self._listener.connections) > self._limits.connections:
            self._refuse(unavailable("Too many connections."))

    def data_received(self, data: bytes) -> None:
        """Have it read, or keep it for later while a request is under way."""
        if self._wait == "linger":
            return
        if self._request is not None or self._reader.ready or self._reader.refusal is not None:
            self._early += data
            if len(self._early) > self._limits.pipelined_bytes and self._reading:
                self._reading = False
                self._transport.pause_reading()
            return
        self._reader.feed(data)
        self._advance()

    def eof_received(self) -> bool | None:
        """Count the client as gone; None closes the transport."""
        return None

    def connection_lost(self, _exc: Exception | None) -> None:
        """End what is under way for this client."""
        self.gone = True
        self._reader.let_go(None)
        self._listener.forget(self)
        self.cancel()

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

    # What the handler says

    def respond(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a whole answer."""
        close = self._closes_after()
        head = answer_head(status, fields, length=len(body), close=close)
        self.started = True
        bodiless = self._request is not None and self._request.method == "HEAD"
        self._transport.write(head if bodiless else head + body)

    def respond_error(self, error: ApiError) -> None:
        """Send *error* in the form of the API that was asked, as far as that is known."""
        request = self._request
        target, fields = self._reader.begun if request is None else (request.target, request.fields)
        body = self._listener.handler.error_body(error, target, fields)
        self.respond(error.status, (JSON, *error.headers), body)

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
        if self._request is None and not self._reader.in_message:
            self._close()

    def cut(self) -> None:
        """End now: what runs is told so, see `Exchange`."""
        if self._drive is not None:
            self._drive.cancel()
        else:
            self._close()

    def cancel(self) -> None:
        """Cancel what serves the request under way, if one is."""
        if self._drive is not None:
            self._drive.cancel()

    def abort(self) -> None:
        """Drop the connection."""
        self._transport.abort()

    def check_deadlines(self, now: float) -> None:
        """Act on what has taken too long."""
        if self._stalled_since is not None and now - self._stalled_since > self._limits.stall_seconds:
            self._transport.abort()
        if self._wait == "request" and self._reader.in_message:
            error = self._reader.overdue(now)
            if error is not None:
                self._refuse(error)
        elif self._wait != "answer" and now >= self._deadline:
            if self._wait == "linger":
                self._transport.abort()
            else:
                self._close()

    def _continue(self) -> None:
        self._transport.write(CONTINUE)

    def _advance(self) -> None:
        """Start the next request, if none is under way and the client has taken the last answer."""
        while self._request is None and self._stalled_since is None and not self._transport.is_closing():
            reader = self._reader
            if reader.ready:
                self._start(reader.ready.popleft())
            elif reader.refusal is not None:
                self._refuse(reader.refusal)
                return
            elif self._early:
                data, self._early = self._early, b""
                if not self._reading:
                    self._reading = True
                    self._transport.resume_reading()
                reader.feed(data)
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
        self._drive = Drive(coroutine, self._on_end)
        self._starting = True
        self._drive.resume()
        self._starting = False

    def _on_end(self, failure: BaseException | None) -> None:
        self._drive = None
        self.source = None
        if failure is not None:
            self._keep = False
            if not isinstance(failure, asyncio.CancelledError):
                self._listener.note(CLIENT, failure)
                if not self.started and not self.gone:
                    error = ApiError(500, "The router failed on this request.", type="server_error")
                    self.respond_error(error)
        self._finish()
        if not self.gone and not self._starting:  # where it has just been started, whoever did so goes on
            self._advance()

    def _finish(self) -> None:
        if self._request is not None:
            self._reader.let_go(self._request)
        self._request = None
        if not self._keep or self._listener.draining:
            self._close()
            return
        self._wait = "request"
        self._deadline = self._loop.time() + self._limits.idle_seconds
        if self._reader.in_message:
            self._reader.restart()

    def _closes_after(self) -> bool:
        if self._listener.draining:
            self._keep = False
        return not self._keep

    def _refuse(self, error: ApiError) -> None:
        """Answer with *error*, end the sending side, and throw away what still comes for a moment."""
        self._keep = False
        self._reader.refusal = None
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
