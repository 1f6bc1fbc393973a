"""Reading streams of typed events on their way (Responses, Messages): usage, first and last token, end, errors.

The bytes stay what they are. Like `usage.StreamTap`, it looks into events only until the first token has come, and
into those whose names say that they carry usage, the end or an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from turnout_router.api.untrusted import loads
from turnout_router.api.usage import StreamFailure, Tap, events_in, failure_in, fields_of, with_lf

_SEQUENCE: Final = re.compile(rb'"sequence_number": ?([0-9]{1,9})[,}]')
_USAGE: Final = re.compile(rb'"usage": ?(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_FAULT: Final = 500


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
    names = sorted({*usage, *ends, *errors})
    # `error` is a word of texts, too; the other names stand nowhere else, however the line is written that has them.
    marks = tuple(b"event: error" if name == "error" else name.encode() for name in names)
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
    """The usage and the end of a stream of typed events."""

    __slots__ = ("_form", "_latest")

    def __init__(self, form: EventForm, *, max_event_bytes: int) -> None:
        super().__init__(max_event_bytes=max_event_bytes)
        self._form = form
        self._latest = b""

    def _judge(self, data: bytes, now: float) -> bytes:
        if self.first_token_at is None or self._is_marked(data):
            data = self._look(data, now)
            self._latest = data or self._latest
            return data
        self.last_token_at = now
        self.token_events += events_in(data)
        self._latest = data
        return data

    def event_sequence(self) -> int:
        """Return the number of the next event, where events are numbered."""
        found = _SEQUENCE.findall(self._latest)
        return int(found[-1]) + 1 if found else 0

    def _note_oversized(self, end: bytes) -> None:
        """Count what the end of a large event says: vLLM repeats the prompt in the one that ends a response."""
        # Lines in front of its data, and behind it: the first one of the end may be a part of one.
        named, _ = fields_of(self._oversized_begin)
        renamed, _ = fields_of(with_lf(end).partition(b"\n")[2])
        form, name = self._form, (renamed or named).decode("utf-8", "replace")
        if name in form.errors:
            self.failure = StreamFailure(_FAULT, "", None)
            return
        found = _USAGE.findall(end)
        if found and name in form.usage:
            self._count(found[-1], ())
        self.done = name in form.ends

    def _is_marked(self, data: bytes) -> bool:
        # By `find`: `in` first tries, in vain, to take the mark for a number.
        return any(data.find(mark) >= 0 for mark in self._form.marks)

    def _look_at(self, event: bytes, now: float) -> bool:
        """Take note of one event and say whether it is passed on; the router reports failures in its own words."""
        named, payload = fields_of(event)
        if payload is None:
            return True
        name = named.decode("utf-8", "replace")
        form = self._form
        if name.endswith(form.tokens):
            if self.first_token_at is None:
                self.first_token_at = now
            self.last_token_at = now
            self.token_events += 1
        if name in form.errors:
            self.failure = _failure(payload)
        elif (path := form.usage.get(name)) is not None:
            self._count(payload, path)
        if name in form.ends and not self.aborted:
            self.done = True
        return self.failure is None and not self.aborted

    def _count(self, payload: bytes, path: tuple[str, ...]) -> None:
        try:
            value: Any = loads(payload)
        except orjson.JSONDecodeError:
            return  # not the router's to judge
        self.aborted = _is_cut(value, path)
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


def _is_cut(event: Any, path: tuple[str, ...]) -> bool:
    """Return whether an event that ends an answer, with its usage at *path*, says that it was cut.

    vLLM ends a message that it aborts with a `message_delta` whose `stop_reason` is null, and a response with the
    status `cancelled`.
    """
    if not isinstance(event, dict):
        return False
    delta, response = event.get("delta"), event.get("response")
    if path == ("usage",):
        if event.get("type") != "message_delta" or not isinstance(delta, dict):
            return False
        return "stop_reason" in delta and delta["stop_reason"] is None
    return isinstance(response, dict) and response.get("status") == "cancelled"


def _failure(payload: bytes) -> StreamFailure:
    try:
        value = loads(payload)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        return StreamFailure(_FAULT, "", None)
    response = value.get("response")
    return failure_in(response if isinstance(response, dict) else value)
