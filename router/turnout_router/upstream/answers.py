"""Workers' answers: collecting one as a whole, and checks that every answer of this API must pass.

Answers to clients are taken by `relay.Relay`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout_router.errors import UpstreamError
from turnout_router.http1.http import JSON

if TYPE_CHECKING:
    from turnout_router.errors import UpstreamFault
    from turnout_router.http1.http import Fields

_OK: Final = 200
_CLIENT_ERROR: Final = 400
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_OVERLOADED: Final = 503


class Collected:
    """Collects a small answer whole."""

    __slots__ = ("_limit", "_pieces", "_size", "content_type", "status")

    def __init__(self, limit_bytes: int) -> None:
        self.status = 0
        self.content_type = JSON[1]
        self._limit = limit_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    def on_head(self, status: int, fields: Fields) -> None:
        """Take the head. Raise UpstreamError for a body that cannot be read."""
        self.status = status
        for name, value in fields:
            if name == b"content-type":
                self.content_type = value
            elif name == b"content-encoding":
                check_coding(value)

    def on_body(self, data: bytes) -> bool:
        """Take a piece. Raise UpstreamError where there are too many."""
        self._size += len(data)
        if self._size > self._limit:
            raise UpstreamError("too_large", f"its answer has more than {self._limit} bytes")
        self._pieces.append(data)
        return False

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)


def check_status(status: int, what: str) -> None:
    """Raise UpstreamError where *status* says that the worker has failed: its text is not passed on."""
    if status >= _SERVER_ERROR or status == _TOO_MANY:
        fault: UpstreamFault = "overloaded" if status in {_OVERLOADED, _TOO_MANY} else "status"
        raise UpstreamError(fault, f"{what} answered {status}", status)
    if status != _OK and status < _CLIENT_ERROR:
        raise UpstreamError("protocol", f"{what} answered {status}, which is no answer of this API", status)


def check_coding(value: bytes) -> None:
    """Raise UpstreamError where a body is compressed, which the router never requests."""
    if value.strip().lower() != b"identity":
        raise UpstreamError("protocol", "its answer is compressed, though nothing asked for that")


def fault_of(status: int) -> UpstreamFault:
    """Return the fault of a worker that an error with *status* within a stream stands for."""
    if status in {_OVERLOADED, _TOO_MANY}:
        return "overloaded"
    return "status" if status >= _SERVER_ERROR else "refused"
