"""Takers of workers' answers: one that passes an answer on to the client, one that collects a prefill worker's.

What has been sent to a client cannot be taken back, so nothing is sent before there is something: the head of a
stream goes out with its first event, and an answer that is not streamed is held until it is complete (up to a
bound). Until then a worker that fails can be replaced without the client noticing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout_router.errors import UpstreamError, UpstreamFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.connection import ClientConnection
    from turnout_router.http import Fields
    from turnout_router.settings import UpstreamLimits
    from turnout_router.usage import Tap

_OK = 200
_SERVER_ERROR = 500
_OVERLOADED = 503
_LAST_BYTES = 8192
"""Of an answer too large to be held, so much of its end is kept: usage stands there."""
_PASSED_ON = frozenset({b"content-type", b"retry-after"})
"""Fields of a worker's answer that a client gets. All others are between the worker and the router."""


class Relay:
    """Passes one answer on to the client. After its end, `finish` says what else is to be done."""

    __slots__ = (
        "_clock",
        "_fields",
        "_held",
        "_held_bytes",
        "_last",
        "_length",
        "_limits",
        "_on_first",
        "_own_fields",
        "_streaming",
        "_tap",
        "client",
        "status",
    )

    def __init__(
        self,
        client: ClientConnection,
        limits: UpstreamLimits,
        tap: Tap | None,
        own_fields: Fields,
        clock: Callable[[], float],
        *,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        self.client = client
        self._on_first = on_first
        self.status = 0
        self._limits = limits
        self._tap = tap
        self._own_fields = own_fields
        self._clock = clock
        self._fields: Fields = ()
        self._streaming = False
        self._held: list[bytes] | None = []
        self._held_bytes = 0
        self._length: int | None = None
        self._last = b""

    def on_head(self, status: int, fields: Fields) -> None:
        """Take the head; decide whether this is a stream of events."""
        self.status = status
        kept = []
        for name, value in fields:
            if name in _PASSED_ON:
                kept.append((name, value))
                if name == b"content-type" and value.startswith(b"text/event-stream"):
                    self._streaming = status == _OK and self._tap is not None
            elif name == b"content-length":
                self._length = int(value)
        self._fields = (*kept, *self._own_fields)

    def on_body(self, data: bytes) -> None:
        """Pass on, or hold."""
        if self._tap is not None and self._streaming:
            self._pass_events(self._tap, data)
        elif self._held is None:
            self._last = (self._last + data)[-_LAST_BYTES:]
            self.client.send(data)
        else:
            self._hold(data)

    def finish(self) -> bytes:
        """End the client's answer; return its body, or the last of it where it was passed on in pieces.

        Raise UpstreamError where the answer was a failure that the client has not seen, or a stream without its end.
        """
        if self._streaming:
            if self._tap is None or not self._tap.done:
                raise UpstreamError("reset", "its stream ended before its last event")
            self.client.end()
            return b""
        if self.status >= _SERVER_ERROR:
            fault: UpstreamFault = "overloaded" if self.status == _OVERLOADED else "status"
            raise UpstreamError(fault, f"it answered {self.status}", self.status)
        if self._held is None:
            self.client.end()
            return self._last
        body = b"".join(self._held)
        self.client.respond(self.status, self._fields, body)
        return body

    def _pass_events(self, tap: Tap, data: bytes) -> None:
        data = tap.feed(data, self._clock())
        client = self.client
        if not client.started:
            if tap.error:
                raise UpstreamError("status", "its stream began with an error", _SERVER_ERROR)
            if not data:
                return
            client.begin(_OK, self._fields, None)
            if self._on_first is not None:
                self._on_first()
        if data:
            client.send(data)
        if tap.error:
            raise UpstreamError("status", "it reported an error in the middle of the stream", _SERVER_ERROR)

    def _hold(self, data: bytes) -> None:
        held = self._held
        if held is None:
            return
        self._held_bytes += len(data)
        if self.status >= _SERVER_ERROR:
            return  # the client gets an error of ours; what the worker says stays between us
        if self._held_bytes > self._limits.hold_bytes:
            if self.status != _OK:
                raise UpstreamError("protocol", "its error message is too large")
            self._held = None
            whole = b"".join((*held, data))
            self._last = whole[-_LAST_BYTES:]
            self.client.begin(self.status, self._fields, self._length)
            self.client.send(whole)
            return
        held.append(data)


class Collected:
    """Collects a small answer whole."""

    __slots__ = ("_limit", "_pieces", "_size", "content_type", "status")

    def __init__(self, limit_bytes: int) -> None:
        self.status = 0
        self.content_type = b"application/json"
        self._limit = limit_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    def on_head(self, status: int, fields: Fields) -> None:
        """Take the head."""
        self.status = status
        for name, value in fields:
            if name == b"content-type":
                self.content_type = value

    def on_body(self, data: bytes) -> None:
        """Take a piece. Raise UpstreamError where there are too many."""
        self._size += len(data)
        if self._size > self._limit:
            raise UpstreamError("protocol", f"its answer has more than {self._limit} bytes")
        self._pieces.append(data)

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)
