"""The answers to one client's requests, written to its connection one after the other; and the handler of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from turnout_router.http1.http import LAST_CHUNK, Fields, answer_head, chunk
from turnout_router.http1.sink import Sink

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine, Mapping

    from turnout.routing import Grant
    from turnout_router.errors import ApiError
    from turnout_router.http1.http import Request

_IDLE: Final = 0
_BEGUN: Final = 1
_SENDING: Final = 2
_DONE: Final = 3
_NAMES: Final = ("idle", "begun", "sending", "done")
_TRANSITIONS: Final = {
    "respond": {_IDLE: _DONE},
    "begin": {_IDLE: _BEGUN},
    "send": {_BEGUN: _SENDING, _SENDING: _SENDING},
    "end": {_BEGUN: _DONE, _SENDING: _DONE},
    "break_off": {_BEGUN: _DONE, _SENDING: _DONE},
}
"""What may be called in which state, and the state after it. `begin` sends nothing: the head goes out with the first piece."""


class ResponseError(Exception):
    """The router has called the methods of a response in an order that makes no HTTP message."""


class Caller:
    """The caller on a connection: the *credential* as it was sent, and what it *grants* among all *known* keys."""

    __slots__ = ("credential", "grants", "known")

    def __init__(self, credential: bytes, known: Mapping[str, Grant], grants: Grant) -> None:
        self.credential: Final = credential
        self.known: Final = known
        self.grants: Final = grants


class Owner(Protocol):
    """The connection that a response belongs to, as far as its requests' handler needs it."""

    def charge(self, request: Request, size: int) -> bool:
        """Count *size* more bytes for *request* until it has been answered, if there is room."""

    def identify(self, caller: Caller) -> None:
        """Count the bodies of this connection for the key of *caller* from now on."""

    def cancel(self) -> None:
        """Cancel what serves the request under way, if one is."""

    def is_closing_after(self) -> bool:
        """Return whether the connection ends after the present answer."""


class Response(Sink):
    """Writes the answer to the request under way. One for a connection: `start` makes it ready for the next request.

    `keep`: the connection can be used again after this answer. `caller` is what the handler remembers of the user of the
    connection, `peer` the address at the other end.
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_head",
        "_may_chunk",
        "_owner",
        "_state",
        "_transport",
        "caller",
        "keep",
        "peer",
    )

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self._owner: Final = owner
        self._transport: asyncio.Transport
        self._state = _IDLE
        self._head: bytes | None = None
        self._chunked = False
        self._may_chunk = True
        self._bodiless = False
        self.keep = True
        self.peer = ""
        self.caller: Caller | None = None

    def connect(self, transport: asyncio.Transport, peer: str) -> None:
        """Write to *transport*, at whose other end is *peer*."""
        self._transport = transport
        self.peer = peer

    def start(self, *, bodiless: bool, may_chunk: bool) -> None:
        """Make ready for the next answer: without a body to HEAD, in chunks where the client knows them."""
        self._state = _IDLE
        self._head = None
        self._chunked = False
        self._bodiless = bodiless
        self._may_chunk = may_chunk
        self.started = False

    def respond(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a whole answer."""
        self._go("respond")
        close = self._owner.is_closing_after()
        head = answer_head(status, fields, length=len(body), close=close, confirm_keep=not self._may_chunk)
        self.started = True
        self._transport.write(head if self._bodiless else head + body)

    def begin(self, status: int, fields: Fields, length: int | None) -> None:
        """Begin a streamed answer; its head goes out with the first piece. *length* where it is known."""
        self._go("begin")
        self._chunked = length is None and self._may_chunk
        if length is None and not self._chunked:
            self.keep = False
        self._head = answer_head(
            status,
            fields,
            length=length,
            close=self._owner.is_closing_after(),
            chunked=self._chunked,
            confirm_keep=not self._may_chunk,
        )
        self.started = True

    def send(self, data: bytes) -> None:
        """Send a piece of a streamed answer."""
        if self._chunked:
            data = chunk(data)
        if self._state != _SENDING:
            self._go("send")
            if self._head is not None:
                data = self._head + data
                self._head = None
        self._transport.write(data)

    def end(self) -> None:
        """End a streamed answer well."""
        self._go("end")
        if self._chunked:
            self._transport.write(LAST_CHUNK)

    def break_off(self, event: bytes) -> None:
        """End a streamed answer that cannot be finished: *event* says so, and the body is left without its end."""
        if event:
            self.send(event)
        self._go("break_off")
        self.keep = False

    def charge(self, request: Request, size: int) -> bool:
        """Count *size* more bytes for *request* until it has been answered, if there is room; say whether there is."""
        return self._owner.charge(request, size)

    def identify(self, caller: Caller) -> None:
        """Remember the caller on this connection; bodies are counted for its key from now on."""
        self.caller = caller
        self._owner.identify(caller)

    def cancel(self) -> None:
        """Cancel what serves the request under way."""
        self._owner.cancel()

    def _go(self, event: str) -> None:
        state = _TRANSITIONS[event].get(self._state)
        if state is None:
            raise ResponseError(f"{event} cannot follow where the response is {_NAMES[self._state]}")
        self._state = state


class Handler(Protocol):
    """What serves requests."""

    def handle(self, request: Request, response: Response) -> Coroutine[Any, Any, object] | None:
        """Answer at once and return None, or return the coroutine that will. May raise ApiError."""

    def check_head(self, request: Request, response: Response) -> ApiError | None:
        """Return why *request*, whose body has not come yet, will not be served, None where nothing speaks against it."""

    def refused(self, status: int) -> None:
        """Count a request that was refused before it was complete."""

    def error_body(self, error: ApiError, target: bytes, fields: Fields) -> bytes:
        """Return *error* as the clients of the API under *target*, as far as it is known, read it."""
