"""One client's connection: reading its requests, and answering them.

One request at a time per connection. What a client sends early is kept, up to a bound; then its socket is read no
further. That, and what is written to a client that does not read, counts as its bodies do. Reading goes on otherwise while an answer is under way, for that is how a client's leaving is noticed. A
client that closes its sending side counts as gone: TCP cannot distinguish the two.

Time-outs are coarse: the listener's sweep looks at every connection once a second, so that a request costs no timer.

Whatever fails in the router while a request is read, started or ended, its client gets 500 where it has had nothing yet, and
the connection ends: none is left in a state that nothing ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal, cast

from turnout_router.errors import ApiError, faulty, unavailable
from turnout_router.http1.accounts import client_at
from turnout_router.http1.drive import Drive
from turnout_router.http1.http import CONTINUE, JSON
from turnout_router.http1.reader import RequestReader
from turnout_router.http1.response import Response
from turnout_router.tasks import CLIENT

if TYPE_CHECKING:
    from turnout_router.http1.accounts import Account
    from turnout_router.http1.host import Host
    from turnout_router.http1.http import Request
    from turnout_router.http1.response import Caller

LINGER_SECONDS: Final = 2.0
"""How long the rest of a refused request is read and thrown away: closing at once would reset the connection and
destroy the answer that says why."""
_FAULT: Final = 500
_SLICE_BYTES: Final = 4096
"""So much is parsed at a time: what is parsed takes far more memory than its text, and waits while a client does not read."""
_WHOLE_BYTES: Final = 40 * 1024
"""A read of no more is parsed at once: a request of usual size is then copied once."""
_ANSWERS_A_TURN: Final = 8
"""Requests of one connection that are begun before others have their turn: less than a millisecond of work."""
_Wait = Literal["request", "answer", "linger"]


class Connection(asyncio.Protocol):
    """One client's connection: has its requests read and served, one after the other. `response` writes the answers."""

    __slots__ = (
        "_account",
        "_address",
        "_ahead_bytes",
        "_deadline",
        "_drive",
        "_early",
        "_home",
        "_host",
        "_limits",
        "_loop",
        "_reader",
        "_reading",
        "_request",
        "_resting",
        "_stalled_bytes",
        "_stalled_large",
        "_stalled_since",
        "_starting",
        "_transport",
        "_wait",
        "response",
    )

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self.response: Final = Response(self)
        self._address = ""
        self._home: Account
        self._account: Account | None = None
        self._ahead_bytes = 0
        self._stalled_bytes = 0
        self._stalled_large = False
        self._host = host
        self._limits = host.limits
        self._loop = loop
        self._transport: asyncio.Transport
        self._reader: RequestReader
        self._early = bytearray()
        self._resting = False
        self._reading = True
        self._wait: _Wait = "request"
        self._deadline = loop.time() + self._limits.head_seconds
        self._request: Request | None = None
        self._drive: Drive | None = None
        self._starting = False
        self._stalled_since: float | None = None

    # Calls of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it where there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        host = self._host
        peername = transport.get_extra_info("peername")
        self.response.connect(self._transport, str(peername[0]) if peername else "")
        self._address = client_at(peername)
        self._home = account = host.accounts.join(self._address)
        self._account = host.accounts.join(self._address)
        self._reader = RequestReader(self._limits, host.accounts, account, self._loop.time, self)
        host.connections.add(self)
        if not host.admit(self._address, self):
            self._refuse(unavailable("Too many connections."))

    def data_received(self, data: bytes) -> None:
        """Have it read, or keep it for later while a request is under way."""
        reader = self._reader
        if self._wait == "linger" or reader.refusal is not None or reader.ended:
            return  # nothing behind what is refused is read
        if self._is_occupied():
            self._keep_early(data)
            return
        try:
            self._read(data)
            self._advance()
        except Exception as error:  # noqa: BLE001 - see the module's first lines
            self._fail(error)

    def _is_occupied(self) -> bool:
        """Whether what comes now has to wait for its turn."""
        return (
            self._request is not None
            or self._stalled_since is not None
            or self._resting
            or bool(self._early)
            or bool(self._reader.ready)
        )

    def _read(self, data: bytes) -> None:
        """Have *data* read up to the end of the next request, in pieces, and keep the rest."""
        reader = self._reader
        if len(data) <= _WHOLE_BYTES:
            reader.feed(data)
            return
        at = 0
        while True:
            size = max(_SLICE_BYTES, reader.unread)
            if len(data) - at <= size:
                reader.feed(data[at:] if at else data)
                return
            reader.feed(data[at : at + size], more=True)
            at += size
            if reader.refusal is not None or reader.ended:
                return
            if reader.ready:
                self._keep_early(data[at:])
                return

    def _read_early(self) -> None:
        """Have what was kept read up to the end of the next request, in pieces."""
        reader, early = self._reader, self._early
        while early:
            size = max(_SLICE_BYTES, reader.unread)
            piece = bytes(early[:size])
            del early[:size]
            self._host.accounts.release(self._home, len(piece), large=True)
            self._ahead_bytes -= len(piece)
            reader.feed(piece, more=bool(early))
            if reader.refusal is not None or reader.ended or reader.ready:
                break
        if (
            not self._reading
            and len(early) <= self._limits.pipelined_bytes
            and not self._transport.is_closing()
        ):
            self._reading = True
            self._transport.resume_reading()

    def _keep_early(self, data: bytes) -> None:
        """Keep *data* for its turn. Where there is no room for it, the connection is dropped."""
        if not self._host.accounts.take(self._home, len(data), large=True):
            self._transport.abort()
            return
        self._early += data
        self._ahead_bytes += len(data)
        if len(self._early) > self._limits.pipelined_bytes and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> bool | None:
        """Count the client as gone; None closes the transport."""
        return None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio gives it
        """End what is under way for this client."""
        self.response.gone = True
        self._reader.drop()
        self._host.forget(self._address, self)
        accounts = self._host.accounts
        if self._account is not None:
            accounts.leave(self._account)
            self._account = None
            accounts.release(self._home, self._ahead_bytes, large=True)
            self._ahead_bytes = 0
            self._release_stalled()
            accounts.leave(self._home)
        self.cancel()
        if self._request is not None and self._drive is None:
            self._reader.let_go(self._request)

    def pause_writing(self) -> None:
        """Hold the source back: the client reads more slowly than the answer comes."""
        self._stalled_since = self._loop.time()
        if not self._stalled_bytes and not self._hold_stalled(self._limits.write_buffer_bytes):
            self._transport.abort()
            return
        if self.response.source is not None:
            self.response.source.pause()

    def resume_writing(self) -> None:
        """Let the source go on."""
        self._stalled_since = None
        self._release_stalled()
        try:
            if self.response.source is not None:
                self.response.source.resume()
            self._advance()
        except Exception as error:  # noqa: BLE001 - see the module's first lines
            self._fail(error)

    def _hold_stalled(self, size: int) -> bool:
        """Count what is written and not read, among small bodies if there is room. Say whether there is any."""
        accounts = self._host.accounts
        self._stalled_large = not accounts.take(self._home, size, large=False)
        if self._stalled_large and not accounts.take(self._home, size, large=True):
            return False
        self._stalled_bytes = size
        return True

    def _release_stalled(self) -> None:
        self._host.accounts.release(self._home, self._stalled_bytes, large=self._stalled_large)
        self._stalled_bytes = 0

    # Calls of the response and its handler

    def is_closing_after(self) -> bool:
        """Return whether the connection ends after the present answer."""
        if self._host.draining:
            self.response.keep = False
        return not self.response.keep

    def charge(self, request: Request, size: int) -> bool:
        """Count *size* more bytes for *request* until it has been answered, if there is room; see `RequestReader.charge`."""
        return self._reader.charge(request, size)

    def identify(self, caller: Caller) -> None:
        """Count the bodies of this connection for the key of *caller* from now on."""
        before = self._account
        if before is None:
            return  # it has ended
        name = caller.grants.sha256
        if before.name != name:
            accounts = self._host.accounts
            self._account = self._reader.account = accounts.join(name)
            accounts.leave(before)

    # Its own life

    @property
    def is_busy(self) -> bool:
        """Whether a request is being served."""
        return self._request is not None

    @property
    def is_idle(self) -> bool:
        """Whether closing it loses nothing: no request has come that is waited for, or its answer is not read."""
        reader = self._reader
        if self._request is not None:
            return False
        return (
            self._wait == "linger"
            or self._stalled_since is not None
            or reader.discarding
            or not reader.in_body
        )

    def evict(self) -> None:
        """Make room for another connection."""
        self._transport.abort()

    def drain(self) -> None:
        """Close once the present request is answered; at once where there is none."""
        self.response.keep = False
        if self._request is None and not self._reader.in_message:
            self._close()

    def cut(self) -> None:
        """End now: the running handler is cancelled."""
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
                if self._reader.discarding:
                    self._linger()  # it has its answer already
                else:
                    self._refuse(error)
        elif self._wait == "answer" and self._drive is None:
            self._transport.abort()  # no handler works on it, so nothing else would ever end it
        elif self._wait != "answer" and now >= self._deadline:
            if self._wait == "linger":
                self._transport.abort()
            else:
                self._close()

    # Calls of the reader

    def expected(self) -> None:
        """Send 100 Continue to the client."""
        self._transport.write(CONTINUE)

    def check_head(self, request: Request) -> ApiError | None:
        """Return why *request*, whose body has not come yet, will not be served, None where nothing is known against it."""
        try:
            return self._host.handler.check_head(request, self.response)
        except Exception as error:  # noqa: BLE001 - see the module's first lines
            self._host.note(CLIENT, error)
            return faulty()

    def refused_meanwhile(self) -> None:
        """Say so, if it is that request's turn."""
        if self._wait == "request":
            self._advance()

    def _advance(self) -> None:
        """Start the next request, if none is under way and the client has taken the last answer.

        Of requests that are answered at once only a few are served in one turn of the event loop, however many have come.
        """
        if self._resting:
            return
        started = 0
        while self._request is None and self._stalled_since is None and not self._transport.is_closing():
            reader = self._reader
            if reader.ready:
                if started == _ANSWERS_A_TURN:
                    self._resting = True
                    self._loop.call_soon(self._go_on)
                    return
                started += 1
                self._start(reader.ready.popleft())
            elif reader.ended:
                self._linger()
                return
            elif reader.refusal is not None:
                self._refuse(reader.refusal)
                return
            elif self._early:
                self._read_early()
            else:
                return

    def _go_on(self) -> None:
        self._resting = False
        try:
            self._advance()
        except Exception as error:  # noqa: BLE001 - see the module's first lines
            self._fail(error)

    def _start(self, request: Request) -> None:
        self._request = request
        self._wait = "answer"
        response = self.response
        response.keep = request.keep_alive
        response.start(bodiless=request.method == "HEAD", may_chunk=request.may_chunk)
        try:
            coroutine = self._host.handler.handle(request, response)
        except ApiError as error:
            if error.close:
                self.response.keep = False
            self._respond_error(error)
            coroutine = None
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001 - see the module's first lines
            self._report(failure)
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
        self.response.source = None
        try:
            if failure is not None:
                self.response.keep = False
                if not isinstance(failure, asyncio.CancelledError):
                    self._report(failure)
            self._finish()
            if not self.response.gone and not self._starting:  # the caller that has just started it goes on
                self._advance()
        except Exception as error:  # noqa: BLE001 - see the module's first lines
            self._fail(error)

    def _report(self, failure: BaseException) -> None:
        """Count what went wrong with the request under way, and answer it where nothing has been sent of an answer."""
        self.response.keep = False
        self._host.note(CLIENT, failure)
        if not self.response.started and not self.response.gone:
            self._host.handler.refused(_FAULT)
            self._respond_error(faulty())

    def _fail(self, error: Exception) -> None:
        """End the connection after *error*, with an answer if one is owed and can still be sent."""
        self._host.note(CLIENT, error)
        owed = self._wait == "request" and not self.response.gone and not self._transport.is_closing()
        try:
            if owed:
                self._refuse(faulty())
        except Exception as further:  # noqa: BLE001 - counted, and the connection ends
            self._host.note(CLIENT, further)
            owed = False
        if not owed:
            self.cancel()
            if self._request is not None:
                self._reader.let_go(self._request)
            self._transport.abort()

    def _finish(self) -> None:
        if self._request is not None:
            self._reader.let_go(self._request)
        self._request = None
        if not self.response.keep or self._host.draining:
            if self._reader.discarding:
                self._linger()  # its body is still on the way, and would meet the end of the connection with a reset
            else:
                self._close()
            return
        self._wait = "request"
        self._deadline = self._loop.time() + self._limits.idle_seconds
        if self._reader.in_message:
            self._reader.restart()

    def _respond_error(self, error: ApiError) -> None:
        """Send *error* in the form of the API that the request is for, as far as that is known."""
        request = self._request
        if request is None:
            method, target, fields = self._reader.begun
            self.response.start(bodiless=method == b"HEAD", may_chunk=True)
        else:
            target, fields = request.target, request.fields
        body = self._host.handler.error_body(error, target, fields)
        self.response.respond(error.status, (JSON, *error.headers), body)

    def _refuse(self, error: ApiError) -> None:
        """Answer with *error*, end the sending side, and throw away what still comes for a moment."""
        self.response.keep = False
        self._reader.refusal = None
        self._host.handler.refused(error.status)
        self._respond_error(error)
        self._linger()

    def _linger(self) -> None:
        """End the sending side, and throw away what still comes for a moment."""
        self.response.keep = False
        self._reader.drop()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._wait = "linger"
        self._deadline = self._loop.time() + LINGER_SECONDS

    def _close(self) -> None:
        if self._wait != "linger":
            self._wait = "linger"
            self._deadline = self._loop.time() + self._limits.stall_seconds
        self._transport.close()
