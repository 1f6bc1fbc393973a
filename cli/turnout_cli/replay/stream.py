"""Reading a streamed answer cheaply: the first event with text, the last events, and nothing between.

Parsing every event as JSON would cost the machine that also runs the workers more than the workers
themselves. What is needed stands at either end: when text began, and what the closing events say of usage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

_SEPARATOR: Final = b"\n\n"
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_ERROR: Final = b'"error"'

HEAD_BYTES: Final = 1 << 20
"""Most bytes kept while no text has come."""
TAIL_BYTES: Final = 1 << 12
"""Bytes kept of what came last: the closing events take less than one thousand."""


@dataclass(frozen=True, slots=True)
class Closing:
    """What a stream's last events said."""

    done: bool
    """The stream ended with [DONE]."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Tokens of the prompt that a prefix cache held, where the server reports them."""
    error: str | None
    """The message of an error event."""


class StreamReader:
    """Takes a streamed body in pieces of any size, remembers when text began and how it ended.

    Times are those that the caller passes in: seconds on a clock of its choice.
    """

    __slots__ = ("_head", "_tail", "bytes_received", "first_token_at", "last_token_at")

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.bytes_received = 0

    def feed(self, chunk: bytes, now: float) -> None:
        """Take in *chunk*, which arrived at *now*."""
        self.bytes_received += len(chunk)
        self._tail = (self._tail + chunk)[-TAIL_BYTES:]
        if self.first_token_at is None:
            self._head = (self._head + chunk)[-HEAD_BYTES:]
            self._look_for_text(now)
        else:
            self.last_token_at = now

    def closing(self) -> Closing:
        """Return what the last events said. Called once the stream has ended."""
        done = False
        error = None
        usage: dict[str, Any] = {}
        for raw in self._tail.split(_SEPARATOR):
            payload = _payload(raw)
            if payload is None:
                continue
            if payload == _DONE:
                done = True
                continue
            if b'"usage"' not in payload and _ERROR not in payload:
                continue
            event = _event(payload)
            usage = event.get("usage") or usage
            error = _error_message(event) or error
        details = usage.get("prompt_tokens_details") or {}
        return Closing(
            done=done,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            output_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            error=error,
        )

    def _look_for_text(self, now: float) -> None:
        *events, self._head = self._head.split(_SEPARATOR)
        for raw in events:
            payload = _payload(raw)
            if payload is None or payload == _DONE:
                continue
            if _has_text(_event(payload)):
                self.first_token_at = self.last_token_at = now
                self._head = b""
                return


def _payload(raw: bytes) -> bytes | None:
    """Return the data of one server-sent event; None for a comment or half an event."""
    raw = raw.strip()
    return raw[len(_DATA) :].strip() if raw.startswith(_DATA) else None


def _event(payload: bytes) -> dict[str, Any]:
    """Return *payload* as an object, an empty one where it is none: the stream is judged by its closing."""
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return {}
    return event if isinstance(event, dict) else {}


def _has_text(event: dict[str, Any]) -> bool:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if delta.get("content") or choice.get("text"):
            return True
    return False


def _error_message(event: dict[str, Any]) -> str | None:
    error = event.get("error")
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error) if error else None


def error_message(body: bytes) -> str:
    """Return the message of an OpenAI error object, or the beginning of *body* where it is none."""
    return _error_message(_event(body)) or body[:200].decode(errors="replace") or "empty answer"
