"""Reading streams of typed events on their way (Responses, Messages): usage, first and last token, end, errors.

The bytes stay what they are. Like `usage.StreamTap`, it looks into events only until the first token has come, and
into those whose names say that they carry usage, the end or an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from turnout_router.errors import UpstreamError
from turnout_router.usage import Tap

_END: Final = b"\n\n"


@dataclass(frozen=True, slots=True)
class EventForm:
    """The event types of one API.

    `tokens` is how the types end that carry output; `usage` maps types to where their usage stands, a path of
    names; `ends` are the types after which nothing comes, `errors` those that say that the answer has failed.
    """

    tokens: str
    usage: dict[str, tuple[str, ...]]
    ends: frozenset[str]
    errors: frozenset[str]
    marks: tuple[bytes, ...]
    """What a piece of the stream that holds one of these events contains."""


def _form(tokens: str, usage: dict[str, tuple[str, ...]], ends: set[str], errors: set[str]) -> EventForm:
    told = sorted({*usage, *ends, *errors})
    marks = tuple(b"event: " + name.encode() + b"\n" for name in told)
    return EventForm(tokens, usage, frozenset(ends), frozenset(errors), marks)


RESPONSE_EVENTS: Final = _form(
    tokens=".delta",
    usage=dict.fromkeys(("response.completed", "response.incomplete"), ("response", "usage")),
    ends={"response.completed", "response.incomplete"},
    errors={"error", "response.failed"},
)
MESSAGE_EVENTS: Final = _form(
    tokens="content_block_delta",
    usage={"message_start": ("message", "usage"), "message_delta": ("usage",)},
    ends={"message_stop"},
    errors={"error"},
)


class EventTap(Tap):
    """What a stream of typed events told."""

    __slots__ = ("_form",)

    def __init__(self, form: EventForm, *, max_event_bytes: int) -> None:
        super().__init__(max_event_bytes=max_event_bytes)
        self._form = form

    def feed(self, data: bytes, now: float) -> bytes:
        """Return what of *data*, received at *now*, is to be passed on: whole events.

        Raise UpstreamError for an event that is longer than allowed.
        """
        data = self._whole_events(data)
        if not data:
            return data
        if self.first_token_at is None or self._is_marked(data):
            return self._look(data, now)
        self.last_token_at = now
        return data

    def _is_marked(self, data: bytes) -> bool:
        # By `find`: `in` first tries, in vain, to take the mark for a number.
        return any(data.find(mark) >= 0 for mark in self._form.marks)

    def _whole_events(self, data: bytes) -> bytes:
        """Return the events that are complete by now, and keep the rest."""
        if self._tail:
            data = self._tail + data
        if data.find(b"\r") >= 0 and not data.endswith(b"\r"):
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(_END) + len(_END)
        if end < len(_END):
            end = 0
        self._tail = data[end:]
        if len(self._tail) > self._max_event_bytes:
            raise UpstreamError("protocol", f"an event of more than {self._max_event_bytes} bytes")
        return data[:end]

    def _look(self, data: bytes, now: float) -> bytes:
        passed: list[bytes] = []
        for event in data.split(_END):
            if event:
                self._look_at(event, now)
                if self.error:
                    break  # the router says it in its own words
                passed += (event, _END)
        return b"".join(passed)

    def _look_at(self, event: bytes, now: float) -> None:
        """Take note of one event."""
        name, payload = "", b""
        for line in event.split(b"\n"):
            if line.startswith(b"event:"):
                name = line[6:].strip().decode("utf-8", "replace")
            elif line.startswith(b"data:"):
                payload += line[5:]
        form = self._form
        if name.endswith(form.tokens):
            if self.first_token_at is None:
                self.first_token_at = now
            self.last_token_at = now
        if name in form.ends:
            self.done = True
        if name in form.errors:
            self.error = True
        elif (path := form.usage.get(name)) is not None:
            self._count(payload, path)

    def _count(self, payload: bytes, path: tuple[str, ...]) -> None:
        try:
            value: Any = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return  # not the router's to judge
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, dict):
            return
        prompt, output = _tokens(value, "input_tokens"), _tokens(value, "output_tokens")
        if "cache_read_input_tokens" in value:  # of messages: beside the tokens that are no part of a cache
            self.cached_tokens = _tokens(value, "cache_read_input_tokens")
            prompt += self.cached_tokens + _tokens(value, "cache_creation_input_tokens")
        else:
            details = value.get("input_tokens_details")
            if isinstance(details, dict) and "cached_tokens" in details:
                self.cached_tokens = _tokens(details, "cached_tokens")
        self.prompt_tokens = prompt or self.prompt_tokens
        self.output_tokens = output or self.output_tokens


def _tokens(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and value > 0 else 0
