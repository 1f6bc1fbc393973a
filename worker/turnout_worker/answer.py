"""What the APIs' forms of an answer have in common: the port that a generation writes through, and usage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson

if TYPE_CHECKING:
    from turnout_worker.errors import AnswerError


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. `cached_tokens` None: the details are not reported."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one choice that go out together: their text, and the number of the first one."""

    choice: int
    text: bytes
    first: int


@dataclass(frozen=True, slots=True)
class End:
    """How a choice ended: all of its text, and why there is no more."""

    text: bytes
    reason: Literal["stop", "length", "abort"]
    """`abort` is vLLM's word for an answer that the engine gave up: a part that passes for a whole."""
    stop_reason: str | None = None
    """The stop string that was met."""


class Form(Protocol):
    """One API's way to write an answer. Everything but `whole` returns server-sent events."""

    refusal_breaks_off: bool
    """Whether the connection is cut behind `refusal`, as vLLM does on some paths."""

    def opening(self) -> bytes:
        """Return what comes before the first token."""

    def tokens(self, piece: Piece, usage: Usage) -> bytes:
        """Return tokens that are there by now."""

    def closing(self, piece: Piece, usage: Usage, end: End) -> bytes:
        """Return the last tokens of a choice, and why it ended."""

    def ending(self, ends: list[End], usage: Usage) -> bytes:
        """Return what comes after the last choice has ended."""

    def refusal(self, error: AnswerError) -> bytes:
        """Return all of a stream whose request the engine has refused."""

    def failure(self, error: AnswerError) -> bytes:
        """Return what ends a stream that cannot be finished."""

    def whole(self, ends: list[End], usage: Usage, transfer_params: dict[str, Any] | None) -> bytes:
        """Return the body of an answer that is not streamed."""


def event(value: dict[str, Any], name: str | None = None) -> bytes:
    """Return *value* as a server-sent event, called *name* where its API names events."""
    data = orjson.dumps(value)
    return b"data: %b\n\n" % data if name is None else b"event: %b\ndata: %b\n\n" % (name.encode(), data)
