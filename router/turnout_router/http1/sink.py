"""The destination of an answer: a client (`response.Response`), or memory (`CollectingSink`).

The code that serves a request knows its destination only as a sink. Trials of workers collect their answers; so can code that
judges an answer before a client gets it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

from turnout_router.errors import UpstreamError

if TYPE_CHECKING:
    from turnout_router.http1.http import Fields


class Source(Protocol):
    """The source of an answer, which is paused while the sink takes it more slowly than it comes."""

    def pause(self) -> None:
        """Send nothing more for now."""

    def resume(self) -> None:
        """Go on."""


class Sink(ABC):
    """Takes one answer: `respond` in one piece, or `begin`, then `send` and at last `end` or `break_off`.

    `started`: part of the answer has been taken, so that it cannot be replaced by another one. `gone`: nothing wants the
    answer any more. `source`: what is to wait while the sink is slow. A base class: mypyc calls its methods faster than a
    protocol's.
    """

    __slots__ = ("gone", "source", "started")

    def __init__(self) -> None:
        self.started = False
        self.gone = False
        self.source: Source | None = None

    @abstractmethod
    def respond(self, status: int, fields: Fields, body: bytes) -> None:
        """Take a whole answer."""

    @abstractmethod
    def begin(self, status: int, fields: Fields, length: int | None) -> None:
        """Take the head of an answer whose body follows in pieces. *length* where it is known."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Take a piece of the body."""

    @abstractmethod
    def end(self) -> None:
        """Take note that the body is whole."""

    @abstractmethod
    def break_off(self, event: bytes) -> None:
        """Take *event*, which says why the body ends here without being whole."""


class CollectingSink(Sink):
    """Collects an answer of at most *limit_bytes*. `status` is 0 until it begins; `whole`: it has come to its end."""

    __slots__ = ("_limit_bytes", "_pieces", "_size", "fields", "status", "whole")

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self.status = 0
        self.fields: Fields = ()
        self.whole = False
        self._limit_bytes: Final = limit_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def body(self) -> bytes:
        """What has been collected."""
        return b"".join(self._pieces)

    def respond(self, status: int, fields: Fields, body: bytes) -> None:
        """Take a whole answer. Raise UpstreamError where it is too large."""
        self.begin(status, fields, len(body))
        self.send(body)
        self.whole = True

    def begin(self, status: int, fields: Fields, length: int | None) -> None:  # noqa: ARG002 - counted as it comes
        """Take the head."""
        self.started = True
        self.status = status
        self.fields = fields

    def send(self, data: bytes) -> None:
        """Take a piece. Raise UpstreamError where there are too many."""
        self._size += len(data)
        if self._size > self._limit_bytes:
            raise UpstreamError("too_large", f"its answer has more than {self._limit_bytes} bytes")
        self._pieces.append(data)

    def end(self) -> None:
        """Take note of the end."""
        self.whole = True

    def break_off(self, event: bytes) -> None:
        """Drop *event*: `whole` stays False."""
