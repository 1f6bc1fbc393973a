"""Passing a worker's answer on to a sink.

What has been sent to a client cannot be taken back, so nothing is sent before there is content: the head of a
stream goes out with the first event that carries a token, and an answer that is not streamed is held until it is
complete (up to a bound). Until then a worker that fails can be replaced without the client noticing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson
from mypy_extensions import mypyc_attr

from turnout_router.api.untrusted import loads
from turnout_router.api.usage import failure_in
from turnout_router.errors import Refusal, UpstreamError
from turnout_router.upstream.answers import check_coding, check_status, fault_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.api.endpoints import Endpoint
    from turnout_router.api.usage import StreamFailure, Tap
    from turnout_router.http1.http import Fields
    from turnout_router.http1.sink import Sink
    from turnout_router.settings import UpstreamLimits

_OK = 200
_CLIENT_ERROR = 400
_LAST_BYTES = 8192
"""Of an answer too large to be held, so much of its end is kept: usage stands there."""
_ERROR_BYTES: Final = 64 * 1024
"""Of an error that a worker reports, so much is read. The rest of a longer one is cut."""
_ERRORS: Final = (b'{"error"', b'{"object":"error"', b'{"type":"error"')
"""How an error object begins."""


@mypyc_attr(free_list_len=1)
class Relay:
    """Passes one answer on to the client. After its end, `finish` says what else is to be done."""

    __slots__ = (
        "_clock",
        "_endpoint",
        "_fields",
        "_held",
        "_held_bytes",
        "_last",
        "_length",
        "_limits",
        "_on_first",
        "_own_fields",
        "_several",
        "_streaming",
        "_tap",
        "sink",
        "status",
    )

    def __init__(
        self,
        sink: Sink,
        limits: UpstreamLimits,
        tap: Tap | None,
        own_fields: Fields,
        clock: Callable[[], float],
        *,
        endpoint: Endpoint,
        several: bool = False,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        self.sink = sink
        self._on_first = on_first
        self.status = 0
        self._limits = limits
        self._tap = tap
        self._own_fields = own_fields
        self._clock = clock
        self._endpoint = endpoint
        self._several = several
        self._fields: Fields = ()
        self._streaming = False
        self._held: list[bytes] | None = []
        self._held_bytes = 0
        self._length: int | None = None
        self._last = b""

    def on_head(self, status: int, fields: Fields) -> None:
        """Take the head; decide whether this is a stream of events. Of its fields, a client gets two, each once.

        Raise UpstreamError for a status that is the worker's failure, and for a head that promises what cannot be read.
        """
        self.status = status
        check_status(status, "it")
        kind = again = None
        for field in fields:
            name = field[0]
            if name == b"content-type":
                kind = kind or field  # what a worker sends twice goes out once
            elif name == b"content-length":
                self._length = int(field[1])
            elif name == b"retry-after":
                again = again or field
            elif name == b"content-encoding":
                check_coding(field[1])
        if self._tap is not None and status == _OK:
            if kind is None or not kind[1].lower().startswith(b"text/event-stream"):
                raise UpstreamError("protocol", "it does not stream its answer")
            self._streaming = True
        self._fields = self._own_fields
        if again is not None:
            self._fields = (again, *self._fields)
        if kind is not None:
            self._fields = (kind, *self._fields)

    def on_body(self, data: bytes) -> bool:
        """Pass on, or hold. Say whether something was passed on."""
        if self._tap is not None and self._streaming:
            return self._pass_events(self._tap, data)
        if self._held is None:
            self._last = (self._last + data)[-_LAST_BYTES:]
            self.sink.send(data)
            return True
        self._hold(data)
        return False

    @property
    def whole(self) -> bool:
        """Whether the client has been sent all of a stream, its last event included."""
        return self._tap is not None and self._tap.done and self.sink.started

    @property
    def streaming(self) -> bool:
        """Whether what the client gets is a stream of events, to which one more can be added."""
        return self._streaming

    def finish(self) -> bytes:
        """End the client's answer; return its body, or the last of it where it was passed on in pieces.

        Raise UpstreamError where the answer was cut, or is a stream without its end; Refusal for a 4xx.
        """
        if self._streaming:
            if self._tap is None or not self._tap.done:
                raise UpstreamError("reset", "its stream ended before its last event")
            self.sink.end()
            return b""
        if self._held is None:
            if self._endpoint.is_cut(self._last, self._several):
                raise UpstreamError("reset", "it cut its answer short")
            self.sink.end()
            return self._last
        held = self._held
        body = held[0] if len(held) == 1 else b"".join(held)
        dialect = self._endpoint.dialect
        if self.status >= _CLIENT_ERROR:
            raise Refusal("it refused the request", self.status, dialect.error_of(self.status, body))
        self._check(body)
        self.sink.respond(self.status, self._fields, body)
        return body

    def _check(self, body: bytes) -> None:
        """Raise UpstreamError where a whole answer is none: no JSON object, an error, or cut short."""
        if not (body.startswith(b"{") and body.endswith(b"}")):
            text = body.strip()
            if not (text.startswith(b"{") and text.endswith(b"}")):
                raise UpstreamError("protocol", "its answer is no JSON object")
        if body.startswith(_ERRORS):
            self._check_error(body)
        if self._endpoint.is_cut(body, self._several):
            raise UpstreamError("reset", "it cut its answer short")

    def _check_error(self, body: bytes) -> None:
        """Raise UpstreamError where *body*, sent with 200, is an error object."""
        try:
            value = loads(body)
        except orjson.JSONDecodeError:
            raise UpstreamError("protocol", "its answer is no JSON object") from None
        if isinstance(value, dict) and value.get("error"):
            raise self._failure_at_first(failure_in(value))

    def _pass_events(self, tap: Tap, data: bytes) -> bool:
        data = tap.feed(data, self._clock())
        sink = self.sink
        if not sink.started:
            if tap.failure is not None:
                raise self._failure_at_first(tap.failure)
            if not tap.opened:
                data = self._hold_back(data)
            elif self._held_bytes and self._held is not None:
                data = b"".join((*self._held, data))
                self._held = []
                self._held_bytes = 0
            if data:
                sink.begin(_OK, self._fields, None)
                if self._on_first is not None:
                    self._on_first()
        if data:
            sink.send(data)
        if tap.aborted:
            raise UpstreamError("reset", "it cut its answer short")
        if tap.failure is not None:
            status = tap.failure.status
            raise UpstreamError(fault_of(status), "it reported an error in the middle of the stream", status)
        return bool(data)

    def _hold_back(self, data: bytes) -> bytes:
        """Keep events that carry nothing yet. Return all that was kept where that is too much."""
        held = self._held
        if held is None:
            return data
        if data:
            held.append(data)
            self._held_bytes += len(data)
        if self._held_bytes <= self._limits.event_bytes:
            return b""
        self._held = []
        self._held_bytes = 0
        return b"".join(held)

    def _failure_at_first(self, failure: StreamFailure) -> UpstreamError:
        """Return what a stream that began with an error means: vLLM says so, with 200, what else is a status."""
        status, dialect = failure.status, self._endpoint.dialect
        fault = fault_of(status)
        if fault == "refused":
            value = {"message": failure.message} if failure.error is None else failure.error
            own = {"error": value}
            try:
                body = orjson.dumps(own) if dialect.is_own(own) else dialect.restated(status, value)
            except orjson.JSONEncodeError:  # it parses what is nested more deeply than it writes
                body = dialect.restated(status, value)
            return Refusal("it refused the request", status, body)
        return UpstreamError(fault, "its stream began with an error", status)

    def _hold(self, data: bytes) -> None:
        held = self._held
        if held is None:
            return
        self._held_bytes += len(data)
        if self.status >= _CLIENT_ERROR:
            if self._held_bytes <= _ERROR_BYTES:
                held.append(data)
                return
            body = b"".join((*held, data))[:_ERROR_BYTES]
            raise Refusal(
                "it refused the request", self.status, self._endpoint.dialect.error_of(self.status, body)
            )
        if self._held_bytes > self._limits.hold_bytes:
            self._held = None
            whole = b"".join((*held, data))
            self._last = whole[-_LAST_BYTES:]
            self.sink.begin(self.status, self._fields, self._length)
            self.sink.send(whole)
            return
        held.append(data)
