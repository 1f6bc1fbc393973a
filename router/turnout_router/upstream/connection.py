"""One connection to a worker, with bounds on the size of its answers and on their time.

A worker's answer is pushed into an `AnswerHandler` as it is parsed, all that one read brought at once; nothing is copied or
queued on the way. There is one answer per request: what follows it, in the same read or later, belongs to no request, and the
connection is dropped (RFC 9112, sections 6.3 and 9.2).

Whatever goes wrong here ends the exchange with UpstreamError: nothing is raised into the event loop, and an exchange that has
begun ends.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, cast

import httptools

from turnout_router.errors import UpstreamError
from turnout_router.http1.drive import Signal
from turnout_router.tasks import WORKER

if TYPE_CHECKING:
    from turnout_router.http1.http import Fields
    from turnout_router.upstream.pools import ConnectionPool

_NEVER: Final = float("inf")
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_FIRST_FINAL_STATUS: Final = 200


class AnswerHandler(Protocol):
    """What takes a worker's answer. Both methods may raise UpstreamError to stop it."""

    def on_head(self, status: int, fields: Fields) -> None:
        """Take status and fields; names are in lower case."""

    def on_body(self, data: bytes) -> bool:
        """Take what one read brought of the body. Say whether it is progress, which renews the answer's deadline."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to one worker, for one exchange at a time."""

    __slots__ = (
        "_answer",
        "_complete",
        "_deadline",
        "_done",
        "_field_count",
        "_fields",
        "_framed",
        "_head_bytes",
        "_head_done",
        "_idle_seconds",
        "_keep",
        "_left_seconds",
        "_loop",
        "_lost",
        "_parser",
        "_paused",
        "_pending",
        "_pieces",
        "_pool",
        "_raised",
        "_timeout_message",
        "_transport",
        "heard",
        "idle_since",
        "reused",
    )

    def __init__(self, pool: ConnectionPool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._answer: AnswerHandler | None = None
        self._raised: BaseException | None = None
        """What a callback of the parser has raised. The parser's own error refers to it by `__context__`, which is overwritten
        where another exception is being handled anywhere below on the stack."""
        self._done: Signal | None = None
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._field_count = 0
        self._head_done = False
        self._framed = False
        self._complete = False
        self._keep = False
        self._lost = False
        self._paused = False
        self._pending: select.poll | None = None
        self._deadline = _NEVER
        self._left_seconds = _NEVER
        self._idle_seconds: float | None = None
        self._timeout_message = ""
        self.idle_since = 0.0
        self.reused = False
        self.heard = False

    # Calls of the exchange

    def begin(
        self, request: bytes, answer: AnswerHandler, *, seconds: float, idle_seconds: float | None, what: str
    ) -> Signal:
        """Send *request* and return the signal of its end, which comes with UpstreamError where it failed.

        *seconds* is how long the answer may take, all of it; where *idle_seconds* is given, only until it makes progress (see
        `AnswerHandler.on_body`), and each further progress may take that long. *what* names the exchange in messages.
        """
        self._answer = answer
        done = self._done = Signal(self._loop)
        self._fields = []
        self._head_bytes = self._field_count = 0
        self._head_done = self._framed = self._complete = self._keep = self.heard = False
        self._deadline = self._loop.time() + seconds
        self._idle_seconds = idle_seconds
        self._timeout_message = f"{what} took too long"
        if self._lost:
            self._fail(UpstreamError("reset", "the connection to it was lost"))
            return done
        try:
            self._transport.write(request)
        except Exception as error:  # noqa: BLE001 - a transport raises what it likes, RuntimeError among others
            self._fail(_broken(error))
        return done

    @property
    def stale(self) -> bool:
        """Whether its end is no evidence against the worker: kept from an earlier exchange, and closed before it sent a byte."""
        return self.reused and not self.heard

    def pause(self) -> None:
        """Read nothing more; its timeout stands still, because the client is slow."""
        if self._answer is not None and not self._paused:
            self._left_seconds = self._deadline - self._loop.time()
            self._deadline = _NEVER
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._deadline = self._loop.time() + self._left_seconds
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self) -> None:
        """Drop the connection; from that a worker learns that its answer is not needed any more."""
        self._answer = None
        self._pool.forget(self)
        try:
            self._transport.abort()
        except Exception as error:  # noqa: BLE001 - the caller, which lets go of it, must not fail
            self._pool.note(WORKER, error)

    def check_deadline(self, now: float) -> None:
        """Fail what has taken too long."""
        if now >= self._deadline:
            self._fail(UpstreamError("timeout", self._timeout_message))

    @property
    def reusable(self) -> bool:
        """Whether another exchange can begin on it: the last one is complete, and both sides keep it open."""
        return self._keep and self._answer is None and not self._lost and not self._transport.is_closing()

    @property
    def quiet(self) -> bool:
        """Whether nothing has come on it that the event loop has not yet handed over; only where it is `reusable`.

        An answer that is there before its request was sent is none to that request, and an end is an end.
        """
        return self._pending is None or not self._pending.poll(0)

    # Calls of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)
        socket = transport.get_extra_info("socket")
        if socket is not None:
            self._pending = select.poll()
            self._pending.register(socket.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Parse, and hand on what this read brought."""
        if self._answer is None:
            self.close()  # bytes without a request
            return
        self.heard = True
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError:
                if not self._complete:
                    raise
                self._keep = False  # the answer was whole, and what follows it is none
            self._deliver()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it may fail this exchange, and no other
            self._fail(self._failure(error))
            return
        if self._complete and self._answer is not None:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what runs: well where only the end of the connection could end the body."""
        self._lost = True
        self._pool.forget(self)
        if self._answer is None:
            return
        if self._head_done and not self._framed and exc is None:
            self._finish()
        else:
            self._fail(_broken(exc))

    # Calls of the parser

    def on_message_begin(self) -> None:
        """Raise UpstreamError, which stops the parser, where this answer has ended and something follows."""
        if self._complete:
            self._stop(UpstreamError("protocol", "it sent more after its answer"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field. Raise UpstreamError where there are too many, after a chunked body too."""
        self._field_count += 1
        if self._field_count > self._pool.limits.header_fields:
            self._stop(UpstreamError("protocol", "its answer has too many header fields"))
        if not self._head_done:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Hand the head on, unless it is an interim one."""
        status = self._parser.get_status_code()
        if status < _FIRST_FINAL_STATUS:
            self._fields = []
            return
        self._head_done = True
        fields, self._fields = tuple(self._fields), []
        self._framed = False
        for name, _ in fields:
            if name in _FRAMING:
                self._framed = True
        if self._answer is not None:
            try:
                self._answer.on_head(status, fields)
            except BaseException as error:  # noqa: BLE001 - kept, and raised again
                self._stop(error)

    def on_body(self, data: bytes) -> None:
        """Keep a piece until the whole read is parsed."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        if self._head_done:
            self._complete = True
            self._keep = self._framed and bool(self._parser.should_keep_alive())

    def _deliver(self) -> None:
        if not self._head_done:
            if self._head_bytes > self._pool.limits.head_bytes:
                raise UpstreamError("protocol", "the head of its answer is too large")
            return
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            if (
                self._answer is not None
                and self._answer.on_body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
                and self._idle_seconds is not None
            ):
                self._renew(self._idle_seconds)

    def _renew(self, seconds: float) -> None:
        """Give the next piece *seconds*: what came has reached the client."""
        if self._paused:
            self._left_seconds = seconds
        else:
            self._deadline = self._loop.time() + seconds

    def _finish(self) -> None:
        done = self._release()
        if done is not None:
            done.set()

    def _fail(self, error: UpstreamError) -> None:
        done = self._release()
        self.close()
        if done is not None:
            done.set(error)

    def _failure(self, error: BaseException) -> UpstreamError:
        """Return what *error*, raised while the answer was read, means for the exchange."""
        cause: BaseException | None = error
        if isinstance(error, httptools.HttpParserCallbackError):
            cause = self._raised or error
        if isinstance(cause, UpstreamError):
            return cause
        if isinstance(error, httptools.HttpParserUpgrade):
            return UpstreamError("protocol", "it changed the protocol unasked")
        if isinstance(cause, httptools.HttpParserError):
            return UpstreamError("protocol", f"what it answered is not HTTP ({error})")
        self._pool.note(WORKER, cause or error)
        failure = UpstreamError("internal", f"its answer could not be read ({type(cause).__name__})")
        failure.__cause__ = cause
        return failure

    def _stop(self, error: BaseException) -> NoReturn:
        """Stop the parser, from one of its callbacks."""
        self._raised = error
        raise error

    def _release(self) -> Signal | None:
        done, self._done, self._answer = self._done, None, None
        self.resume()
        self._deadline = _NEVER
        self._pieces = []
        self._raised = None
        return done


def _broken(error: BaseException | None) -> UpstreamError:
    """Return the failure of an exchange whose connection ends by *error*; None: the worker closed it."""
    failure = UpstreamError("reset", "the connection to it was lost")
    failure.__cause__ = error
    return failure
