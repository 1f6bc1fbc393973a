"""Reading requests off a client's connection: what a request may hold, how large it may be, how slowly it may come.

The parser holds every byte against HTTP's grammar and says what it finds; the bounds are kept here. A request that
breaks one is not read to its end: `RequestReader.refusal` says why, and nothing after it is taken for a request.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import httptools

from turnout_router.errors import ApiError, malformed, not_http, unavailable
from turnout_router.framing import body_is_too_slow, framing_of, origin_form
from turnout_router.http import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.http import Fields
    from turnout_router.settings import ClientLimits

_CHUNKING_OVERHEAD_BYTES: Final = 64 * 1024
"""What chunk sizes and extensions may take up beside a body, on top of the body's own bound."""


class Tally(Protocol):
    """What all connections hold together."""

    held_bytes: int


class _Refused(Exception):  # noqa: N818 - never leaves the parser: it only stops it
    """Stops the parser in the middle of a request that will not be served."""


class RequestReader:
    """Makes requests of bytes. `ready` are those that are complete, in order; `in_message` says whether one has begun.

    *expected* is called when a client waits for a word before it sends its body. What the bodies take up is counted
    in *tally* until `let_go`.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_framing",
        "_expected",
        "_field_count",
        "_fields",
        "_has_body",
        "_head_bytes",
        "_head_done",
        "_held_bytes",
        "_limits",
        "_now",
        "_parser",
        "_since",
        "_tally",
        "_target",
        "_unfinished_bytes",
        "in_message",
        "ready",
        "refusal",
    )

    def __init__(
        self, limits: ClientLimits, tally: Tally, now: Callable[[], float], expected: Callable[[], None]
    ) -> None:
        self._limits = limits
        self._tally = tally
        self._now = now
        self._expected = expected
        self._parser = httptools.HttpRequestParser(self)
        self._held_bytes = 0
        self.ready: deque[Request] = deque()
        self.refusal: ApiError | None = None
        self._target: bytes
        self._body_framing: bytes
        self._has_body: bool
        self._reset()

    def feed(self, data: bytes) -> None:
        """Read *data*."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Answered as if it had not asked (RFC 9110, section 7.8), and the connection closed after it. The
            # parser takes whatever follows for the other protocol's, a body too; Java's own client sends both.
            if self._has_body:
                self._parser = httptools.HttpRequestParser(_LateBody(self, self.ready.pop()))
                self.in_message = True
                self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % self._body_framing)
                self.feed(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if self.refusal is None and not (self.ready and not self.ready[-1].keep_alive):
                self.refusal = not_http(f"This is not HTTP as it should be: {error}.")
            return
        if self.in_message:
            self._bound_raw(len(data))

    @property
    def begun(self) -> tuple[bytes, Fields]:
        """Target and fields of the request that has begun, as far as they have come; nothing where none has."""
        return (origin_form(self._target), tuple(self._fields)) if self.in_message else (b"", ())

    def restart(self) -> None:
        """Count the time of the request that has begun from now on: until now it was not read."""
        self._since = self._now()

    def overdue(self, now: float) -> ApiError | None:
        """Return why the request that has begun is not waited for any longer, None while it is."""
        limits = self._limits
        seconds = now - self._since
        if not self._head_done:
            late = seconds >= limits.head_seconds
        elif body_is_too_slow(self._body_bytes, seconds, limits.body_grace_seconds, limits.body_rate):
            return ApiError(408, "The body arrives too slowly.", close=True)
        else:
            late = seconds >= limits.body_seconds
        return ApiError(408, "The request took too long to arrive.", close=True) if late else None

    def let_go(self, request: Request | None) -> None:
        """Count the body of *request* no longer; None: no body at all, the connection has ended."""
        size = self._held_bytes if request is None else len(request.body)
        self._held_bytes -= size
        self._tally.held_bytes -= size

    # What the parser says

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._reset()
        self.in_message = True

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url
        if len(self._target) > self._limits.target_bytes:
            self._stop(ApiError(414, "The request target is too long.", close=True))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field. Those that follow a chunked body are bounded too, but never become part of the head."""
        self._head_bytes += len(name) + len(value) + 4
        self._field_count += 1
        limits = self._limits
        if self._head_bytes > limits.head_bytes or self._field_count > limits.header_fields:
            self._stop(ApiError(431, "The header fields are too large or too many.", close=True))
        if not self._head_done:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide whether the request and its body are wanted."""
        parser = self._parser
        try:
            framing = framing_of(parser.get_method(), parser.get_http_version(), self._fields)
        except ApiError as error:
            self._stop(error)
        self._target = origin_form(self._target)
        self._head_done = True
        self._has_body = framing.has_body
        if framing.has_body:
            if parser.should_upgrade():
                self._body_framing = framing.as_field()
            self._check_body_size(framing.length or 0)
            self._since = self._now()
            if framing.expects_continue and not self.ready:
                self._expected()

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._body_bytes += len(data)
        self._check_body_size(self._body_bytes)
        self._held_bytes += len(data)
        self._tally.held_bytes += len(data)
        if self._tally.held_bytes > self._limits.bodies_bytes:
            busy = unavailable("Too many large requests are under way.")
            busy.close = True
            self._stop(busy)
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Line the request up."""
        self.in_message = False
        parser = self._parser
        method = parser.get_method().decode("ascii")
        keep_alive = bool(parser.should_keep_alive()) and not parser.should_upgrade()
        may_chunk = parser.get_http_version() == "1.1"
        self.ready.append(
            Request(
                method,
                self._target,
                tuple(self._fields),
                self._whole_body(),
                keep_alive=keep_alive,
                may_chunk=may_chunk,
                has_body=self._has_body,
            )
        )

    def on_late_body_complete(self, request: Request) -> None:
        """Line *request* up, whose body had to be read apart."""
        self.in_message = False
        self.ready.append(
            Request(
                request.method,
                request.target,
                request.fields,
                self._whole_body(),
                keep_alive=request.keep_alive,
                may_chunk=request.may_chunk,
                has_body=True,
            )
        )

    def _reset(self) -> None:
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
        self._since = self._now()
        self.in_message = False

    def _whole_body(self) -> bytes:
        return self._body[0] if len(self._body) == 1 else b"".join(self._body)

    def _bound_raw(self, size: int) -> None:
        """Bound what an unfinished request takes up on the wire: the parser tells neither of half a field nor of chunk sizes."""
        self._unfinished_bytes += size
        limits = self._limits
        if not self._head_done and self._unfinished_bytes > limits.head_bytes:
            self.refusal = ApiError(431, "The header fields are too large.", close=True)
        elif self._unfinished_bytes > limits.head_bytes + 2 * limits.body_bytes + _CHUNKING_OVERHEAD_BYTES:
            self.refusal = ApiError(413, "The body's chunks take up too much.", close=True)

    def _check_body_size(self, length: int) -> None:
        if length > self._limits.body_bytes:
            self._stop(
                ApiError(
                    413,
                    f"The body is too large: at most {self._limits.body_bytes} bytes are accepted.",
                    code="request_too_large",
                    close=True,
                )
            )

    def _stop(self, error: ApiError) -> NoReturn:
        self.refusal = error
        raise _Refused


class _LateBody:
    """Takes the body of *request*, which asked for another protocol and is not given it."""

    def __init__(self, reader: RequestReader, request: Request) -> None:
        self._reader = reader
        self._request = request
        self._begun = False
        self.on_body = reader.on_body

    def on_message_begin(self) -> None:
        if self._begun:
            raise _Refused  # one body is all that is read here
        self._begun = True

    def on_message_complete(self) -> None:
        self._reader.on_late_body_complete(self._request)


def require_body(request: Request) -> None:
    """Raise ApiError where *request* carries no body at all: 411 without a length, 400 for an empty one."""
    if not request.has_body:
        raise ApiError(411, "Send the request as a JSON body with Content-Length.")
    if not request.body:
        raise malformed("The body of your request is empty; send a JSON object.")
