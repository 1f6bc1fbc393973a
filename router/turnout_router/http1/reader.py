"""Reading requests from a client's connection, with bounds on their content, size and time.

The parser checks every byte against HTTP's grammar and reports what it finds; the bounds are kept here. A request that
breaks one is not read to its end: `RequestReader.refusal` says why, and nothing after it is taken for a request.

What the head alone decides (`Watch.check_head`) is decided at the head, wherever the body does not come along with it: at
once where the body is large or waits for `100 Continue`, and otherwise when the read is over that brought the head. A body
that is refused so is not kept; a small one is still read, so that the connection can go on.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import httptools

from turnout_router.errors import ApiError, faulty, malformed, not_http, unavailable
from turnout_router.http1.framing import body_is_too_slow, check_authority, framing_of, origin_form
from turnout_router.http1.http import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.http1.accounts import Account, Accounts
    from turnout_router.http1.http import Fields
    from turnout_router.settings import ClientLimits

_LOG = logging.getLogger(__name__)
_CHUNKING_OVERHEAD_BYTES: Final = 64 * 1024
"""What chunk sizes and extensions may take up beside a body, on top of the body's own bound."""
_CHUNK_BYTES: Final = 24
"""What surrounds a chunk at most where it has no extension: 16 digits of its size and two line ends, and some blanks."""
_REQUEST_LINE_BYTES: Final = 64
"""What a head has at most beside its target and its fields' names and values."""
_PIECES: Final = 64
"""Pieces of a body that are kept as such; more are put together, for each costs more than a small one holds."""


class Watch(Protocol):
    """Follows the reading of a request."""

    def expected(self) -> None:
        """Send 100 Continue to the client."""

    def check_head(self, request: Request) -> ApiError | None:
        """Return why *request*, whose body has not come yet, will not be served, None where nothing is known against it."""

    def refused_meanwhile(self) -> None:
        """Take note of a `refusal` that came from elsewhere than what was read."""


class _Refused(Exception):  # noqa: N818 - never leaves the parser: it only stops it
    """Stops the parser in the middle of a request that will not be served."""


class RequestReader:
    """Makes requests of bytes. `ready` are those that are complete or refused, in order.

    `in_message` says whether one has begun, `discarding` whether it has been refused already and only its body is still
    read; `ended`: that body was too long, nothing more is read. Bodies are counted in *accounts*, for `account`, until
    `let_go`.
    """

    __slots__ = (
        "_accounts",
        "_body",
        "_body_bytes",
        "_body_framing",
        "_body_total",
        "_charged",
        "_chunked",
        "_chunks",
        "_content_type",
        "_extension_bytes",
        "_field_count",
        "_fields",
        "_gathered",
        "_halted",
        "_has_body",
        "_head_checked",
        "_head_done",
        "_head_most",
        "_head_total",
        "_large",
        "_late",
        "_length",
        "_limits",
        "_messages",
        "_method",
        "_now",
        "_parser",
        "_payer",
        "_since",
        "_target",
        "_unfinished_bytes",
        "_watch",
        "account",
        "discarding",
        "ended",
        "in_message",
        "ready",
        "refusal",
    )

    def __init__(
        self,
        limits: ClientLimits,
        accounts: Accounts,
        account: Account,
        now: Callable[[], float],
        watch: Watch,
    ) -> None:
        self._limits = limits
        self._accounts = accounts
        self.account = account
        self._now = now
        self._watch = watch
        self._parser = httptools.HttpRequestParser(self)
        self.ready: deque[Request] = deque()
        self.refusal: ApiError | None = None
        self.ended = False
        self._payer = account
        self._charged = 0
        self._body_total = 0
        self._head_total = 0
        self._halted = False
        self._messages = 0
        self._chunks = 0
        self._target: bytes
        self._method: bytes
        self._body_framing: bytes
        self._has_body: bool
        self._content_type: bytes | None
        self._late: Request | None
        self.in_message: bool
        self.discarding: bool
        self._reset()

    def feed(self, data: bytes, *, more: bool = False) -> None:
        """Read *data*. *more*: further data has come already, so that it is too early to miss a body."""
        heads, bodies, messages, chunks = self._head_total, self._body_total, self._messages, self._chunks
        upgraded_at = -1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            upgraded_at = upgrade.args[0]
        except httptools.HttpParserError as error:
            self._stopped_by(error)
            return
        if upgraded_at >= 0:
            self._read_late_body(data[upgraded_at:])
            return
        if self._chunks != chunks or (self._chunked and self.in_message):
            known = _CHUNK_BYTES * (self._chunks - chunks) + _REQUEST_LINE_BYTES * (self._messages - messages)
            extra = len(data) - known - (self._head_total - heads) - (self._body_total - bodies)
            self._bound_extensions(extra)
        if self.in_message:
            if self.refusal is None:
                self._bound_raw(len(data))
            if self._head_done and not self._head_checked and not more and self.refusal is None:
                self._check_late()
            elif self.discarding and self.refusal is not None:
                self.refusal = None
                self.ended = True  # it has its answer already

    def _read_late_body(self, data: bytes) -> None:
        """Read on after a head that requests another protocol.

        It is answered as if it had not (RFC 9110, section 7.8), and the connection closed after it. The parser takes
        whatever follows for the other protocol's, a body too; Java's own client sends both.
        """
        if self._has_body:
            self._late = self.ready.pop()
            self._parser = httptools.HttpRequestParser(_LateBody(self))
            self.in_message = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % self._body_framing)
            self.feed(data)

    @property
    def begun(self) -> tuple[bytes, bytes, Fields]:
        """Method, target and fields of the request that has begun, as far as they have come; nothing where none has."""
        if not self.in_message:
            return b"", b"", ()
        return self._method, origin_form(self._target), tuple(self._fields)

    def restart(self) -> None:
        """Count the time of the request that has begun from now on: until now it was not read."""
        self._since = self._now()

    @property
    def unread(self) -> int:
        """Bytes of the present body that have not come yet, as far as that is known."""
        return max(0, self._length - self._body_bytes) if self.in_message else 0

    @property
    def in_body(self) -> bool:
        """Whether a request has begun whose head is complete."""
        return self.in_message and self._head_done

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

    def let_go(self, request: Request) -> None:
        """Count the body of *request* no longer."""
        payer = request.payer
        if payer is not None:
            request.payer = None
            self._accounts.release(payer, request.charged, large=request.large)

    def charge(self, request: Request, size: int) -> bool:
        """Count *size* more bytes for *request* until it is let go, if there is room, and say so. A negative *size* gives back."""
        payer = request.payer
        if payer is None:
            return True
        if size < 0:
            self._accounts.release(payer, -size, large=request.large)
        elif not self._accounts.take(payer, size, large=request.large):
            return False
        request.charged += size
        return True

    def make_way(self) -> None:
        """Refuse the request whose large body is arriving."""
        self._drop_body()
        self.refusal = _full()
        self._watch.refused_meanwhile()

    def drop(self) -> None:
        """Keep nothing of what has come and is not being served: nothing more will be."""
        self._drop_body()
        while self.ready:
            self.let_go(self.ready.popleft())

    # Calls of the parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._reset()
        self._messages += 1
        self.in_message = True

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        if not self._target:
            self._method = self._parser.get_method()
        self._target += url
        self._head_total += len(url)
        if len(self._target) > self._limits.target_bytes:
            self._stop(ApiError(414, "The request target is too long.", close=True))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field. Those that follow a chunked body are bounded too, but never become part of the head."""
        self._head_total += len(name) + len(value) + 4
        self._field_count += 1
        if self._head_total > self._head_most or self._field_count > self._limits.header_fields:
            self._stop(ApiError(431, "The header fields are too large or too many.", close=True))
        if not self._head_done:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide whether the request and its body are wanted."""
        parser = self._parser
        try:
            framing = framing_of(self._method, parser.get_http_version(), self._fields)
            if not self._target.startswith(b"/"):
                check_authority(self._target)
                self._target = origin_form(self._target)
        except ApiError as error:
            self._stop(error)
        self._head_done = True
        self._has_body = framing.has_body
        self._chunked = framing.has_body and framing.length is None
        self._content_type = framing.content_type
        if framing.has_body:
            self._payer = self.account
            self._since = self._now()
            if parser.should_upgrade():
                self._body_framing = framing.as_field()
            length = self._length = framing.length or 0
            if framing.expects_continue or length > self._limits.small_body_bytes:
                self._check_early(length)
            self._check_body_size(length)
            if framing.expects_continue and not self.ready:
                self._watch.expected()

    def on_chunk_header(self) -> None:
        """Count a chunk."""
        self._chunks += 1

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        size = len(data)
        self._body_total += size
        self._body_bytes += size
        if self.discarding:
            if self._body_bytes > self._limits.small_body_bytes:
                self.ended = True
                self.halt()
            return
        self._check_body_size(self._body_bytes)
        self._charge(size)
        if len(self._body) >= _PIECES:
            self._gather()
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Line the request up."""
        self.in_message = False
        if self.discarding:
            self.discarding = False
            return
        self._line_up(self._request(self._whole_body()))

    def _request(self, body: bytes, refusal: ApiError | None = None) -> Request:
        late = self._late
        if late is not None:
            return Request(
                late.method,
                late.target,
                late.fields,
                body,
                keep_alive=late.keep_alive,
                may_chunk=late.may_chunk,
                has_body=True,
                content_type=late.content_type,
                refusal=refusal,
            )
        parser = self._parser
        return Request(
            self._method.decode("ascii"),
            self._target,
            tuple(self._fields),
            body,
            keep_alive=bool(parser.should_keep_alive()) and not parser.should_upgrade(),
            may_chunk=parser.get_http_version() == "1.1",
            has_body=self._has_body,
            content_type=self._content_type,
            refusal=refusal,
        )

    def _line_up(self, request: Request) -> None:
        if self._charged:
            request.payer = self._payer
            request.large = self._large
            self._charged = 0
            if self._large:
                self._accounts.end(self._payer, self)
        self.ready.append(request)

    def _reset(self) -> None:
        self._method = b""
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._gathered: bytearray | None = None
        self._head_most = self._head_total + self._limits.head_bytes
        self._body_bytes = 0
        self._length = 0
        self._large = False
        self._unfinished_bytes = 0
        self._extension_bytes = 0
        self._field_count = 0
        self._head_done = False
        self._head_checked = False
        self._has_body = False
        self._chunked = False
        self._late = None
        self._content_type = None
        self._body_framing = b""
        self._since = self._now()
        self.in_message = False
        self.discarding = False

    def _whole_body(self) -> bytes:
        if self._gathered is not None:
            self._gather()
            return bytes(self._gathered)
        return self._body[0] if len(self._body) == 1 else b"".join(self._body)

    def _gather(self) -> None:
        if self._gathered is None:
            self._gathered = bytearray()
        self._gathered += b"".join(self._body)
        self._body = []

    def _drop_body(self) -> None:
        if self._large:
            self._accounts.end(self._payer, self)
        self._accounts.release(self._payer, self._charged, large=self._large)
        self._charged = 0
        self._body = []
        self._gathered = None

    def _charge(self, size: int) -> None:
        """Count *size* more bytes of the body, for small ones while it is small and there is room among them."""
        accounts = self._accounts
        if not self._large:
            if self._body_bytes <= accounts.small_bytes and accounts.take(self._payer, size, large=False):
                self._charged += size
                return
            accounts.release(self._payer, self._charged, large=False)
            size += self._charged
            self._charged = 0
            self._large = True
            accounts.begin(self._payer, self)
        if not accounts.take(self._payer, size, large=True):
            self._stop(_full())
        self._charged += size

    def _check_early(self, length: int) -> None:
        """Refuse at its head a body that is large or waits for leave, and the connection with it."""
        self._head_checked = True
        error = self._watch.check_head(self._request(b""))
        if error is not None:
            error.close = True
            self._stop(error)
        self._payer = self.account  # which the look at the head may have found out
        self._check_body_size(length)
        if length > self._limits.small_body_bytes and not self._accounts.could_hold(self._payer, length):
            self._stop(_full())

    def _check_late(self) -> None:
        """Look at a head whose body did not come with it. Of what is refused, the body is read and not kept."""
        self._head_checked = True
        error = self._watch.check_head(self._request(b""))
        if error is None:
            self._pay_from(self.account)
            return
        self._drop_body()
        self.discarding = True
        self.ready.append(self._request(b"", error))

    def _pay_from(self, payer: Account) -> None:
        """Count the body for *payer*, which the look at the head has found out, from now on."""
        before, size = self._payer, self._charged
        self._payer = payer
        if payer is before or not size:
            return
        accounts, large = self._accounts, self._large
        accounts.release(before, size, large=large)
        if large:
            accounts.end(before, self)
            accounts.begin(payer, self)
        self._charged = size if accounts.take(payer, size, large=large) else 0
        if not self._charged:
            self._drop_body()
            self.refusal = _full()

    def _stopped_by(self, error: httptools.HttpParserError) -> None:
        halted, self._halted = self._halted, False
        if isinstance(error, httptools.HttpParserCallbackError) and not halted:
            _LOG.error("reading a request ended in a fault of the router", exc_info=error)
            self.refusal = faulty()
        elif self.discarding:
            self.refusal = None
            self.ended = True
        elif self.refusal is None and not (self.ready and not self.ready[-1].keep_alive):
            self.refusal = not_http(f"This is not HTTP as it should be: {error}.")
        if self.refusal is not None and self.in_body and not self._head_checked:
            # What the head decides comes first, however much of the body came with it.
            self._head_checked = True
            self.refusal = self._watch.check_head(self._request(b"")) or self.refusal
        if self.in_message:
            self._drop_body()

    def _bound_extensions(self, size: int) -> None:
        """Bound what chunk extensions take up: the parser does not report them, so they are what is left of a read."""
        self._extension_bytes += max(0, size)
        if self._extension_bytes <= self._limits.chunk_extension_bytes:
            return
        if not self.in_message and self.ready:
            self.let_go(self.ready.pop())
        self.in_message = True  # so that the answer is in its form
        self.refusal = not_http("The chunk extensions take up too much; leave them out.")

    def _bound_raw(self, size: int) -> None:
        """Bound what an unfinished request takes up on the wire: the parser reports neither partial fields nor chunk sizes."""
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

    def halt(self) -> NoReturn:
        """Stop the parser, from one of its callbacks."""
        self._halted = (
            True  # the parser's error refers to what stopped it by `__context__`, which others overwrite
        )
        raise _Refused

    def _stop(self, error: ApiError) -> NoReturn:
        self.refusal = error
        self.halt()


class _LateBody:
    """Takes the body of a request that asked for another protocol and is not given it."""

    def __init__(self, reader: RequestReader) -> None:
        self._reader = reader
        self._begun = False
        self.on_body = reader.on_body
        self.on_chunk_header = reader.on_chunk_header

    def on_message_begin(self) -> None:
        if self._begun:
            self._reader.halt()  # one body is all that is read here
        self._begun = True

    def on_message_complete(self) -> None:
        self._reader.on_message_complete()


def _full() -> ApiError:
    busy = unavailable("Too many large requests are under way.")
    busy.close = True
    return busy


def require_body(request: Request) -> None:
    """Raise ApiError where *request* carries no body at all: 411 without a length, 400 for an empty one."""
    if not request.has_body:
        raise ApiError(411, "Send the request as a JSON body with Content-Length.")
    if not request.body:
        raise malformed("The body of your request is empty; send a JSON object.")
