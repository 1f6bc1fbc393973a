"""Reading a stream of chunks on its way: token usage, first and last token, errors, and whether it ends whole.

The bytes stay what they are. A stream is cut at the ends of events, and only these are looked into: those until the
first token has come, and those that carry usage, an error or an abort. All others pass as one piece of bytes, however
many events it holds. An event above the bound passes unread, for its size is no fault of the worker.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, Final

import orjson

from turnout_router.untrusted import loads

_END: Final = b"\n\n"
_CRLF_END: Final = b"\r\n\r\n"
_EDGE_BYTES: Final = 3
"""So much of what came before may belong to the end of an event whose last byte comes now."""
_OVERSIZED_BYTES: Final = 8192
"""So much of an event that is too large to be read is kept: usage stands near its end."""
_USAGE: Final = b'"usage":'
_USAGE_OBJECT: Final = b'"usage":{'
_USAGE_SPACED: Final = b'"usage": {'
_ERROR: Final = b'{"error"'
_ERROR_EVENT: Final = b'data:{"error"'
_ERROR_SPACED: Final = b'data: {"error"'
"""What marks an event that must be looked into: these forms, of which each holds the first one of its kind."""
_ABORT: Final = b'"abort"'
"""Never part of a text, where quotes are escaped: the reason that vLLM and SGLang give for an answer that they cut."""
ABORTED: Final = frozenset({"abort", "error"})
"""Reasons for the end of an answer that is not whole. OpenAI's API has neither."""
_DONE: Final = b"[DONE]"
_DONE_BYTES: Final = 32
"""The last event and the ends of lines around it have no more."""
_DONE_EVENT: Final = re.compile(rb"(?:^|\n)data: ?\[DONE\]\r?\n")
"""The last event as a line of its own: within a text, ends of lines are escaped."""
_CODE: Final = re.compile(r"""['"]?code['"]?\s*[:=]\s*['"]?([45][0-9]{2})\b""")
"""A status within the text of an error. vLLM's Messages API has it nowhere else."""
_STATUSES: Final = range(400, 600)
_SERVER_ERROR: Final = 500
_STATUS_OF_TYPE: Final = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "NotFoundError": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "overloaded_error": 503,
    "Service Unavailable": 503,
    "ServiceUnavailableError": 503,
}
"""Statuses of error types, for errors that carry no code."""


class Usage:
    """Tokens of one answer, 0 where it does not say; `cached` is None where it does not."""

    __slots__ = ("cached", "output", "prompt")

    def __init__(self, prompt: int, output: int, cached: int | None) -> None:
        self.prompt: Final = prompt
        self.output: Final = output
        self.cached: Final = cached


class StreamFailure:
    """An error that a worker reports within a stream: the HTTP status that it stands for, and what it says."""

    __slots__ = ("error", "message", "status")

    def __init__(self, status: int, message: str, error: dict[str, Any] | None) -> None:
        self.status: Final = status
        self.message: Final = message
        self.error: Final = error
        """The error object, None where the event holds none."""


class Tap(ABC):
    """What a stream of server-sent events says. Times are on the caller's clock; 0 tokens where usage never came.

    `done`: its last event has come, what follows is dropped. `failure`: it reports an error. `aborted`: its end says that the
    answer was cut. Neither of these two events is passed on. `opened`: it has brought something that a client must get; what
    came before is better held back, for until then another worker can take over.
    """

    __slots__ = (
        "_edge",
        "_kept_bytes",
        "_max_event_bytes",
        "_oversized",
        "_oversized_begin",
        "_pieces",
        "aborted",
        "cached_tokens",
        "done",
        "failure",
        "first_token_at",
        "last_token_at",
        "output_tokens",
        "prompt_tokens",
    )

    def __init__(self, *, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._pieces: list[bytes] = []
        self._kept_bytes = 0
        self._edge = b""
        self._oversized = False
        self._oversized_begin = b""
        self.done = False
        self.aborted = False
        self.failure: StreamFailure | None = None
        self.first_token_at: float | None = None
        self.last_token_at = 0.0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.cached_tokens: int | None = None

    @abstractmethod
    def feed(self, data: bytes, now: float) -> bytes:
        """Return what of *data*, received at *now*, is to be passed on: whole events, and what is too large to be one."""

    @property
    def usage(self) -> Usage:
        """What the stream says of its tokens."""
        return Usage(self.prompt_tokens, self.output_tokens, self.cached_tokens)

    @property
    def opened(self) -> bool:
        """Whether the stream has brought something that a client must get."""
        return self.first_token_at is not None or self.done or self._oversized

    def event_sequence(self) -> int:
        """Return the number of the next event, where events are numbered."""
        return 0

    def _whole_events(self, data: bytes) -> bytes:
        """Return the events that are complete by now, and keep the rest."""
        if not self._pieces and not self._oversized and data.endswith(_END):
            return data
        return self._cut(data)

    def _cut(self, data: bytes) -> bytes:
        edge = self._edge
        probe = edge + data if edge else data
        if self._oversized:
            end = _after_first(probe)
            if end == 0:
                self._edge = probe[-_OVERSIZED_BYTES:]
                return data
            self._oversized = False
            self._edge = b""
            self._note_oversized(probe[:end])
            end -= len(edge)
            return data[:end] if self.done else data[:end] + self._whole_events(data[end:])
        end = max(_after_last(_END, probe), _after_last(_CRLF_END, probe))
        if end == 0:
            self._keep(data, probe[-_EDGE_BYTES:])
            return self._give_up() if self._kept_bytes > self._max_event_bytes else b""
        end -= len(edge)
        whole = b"".join((*self._pieces, data[:end])) if self._pieces else data[:end]
        self._pieces = []
        self._kept_bytes = 0
        self._edge = b""
        if end < len(data):
            rest = data[end:]
            self._keep(rest, rest[-_EDGE_BYTES:])
            if self._kept_bytes > self._max_event_bytes:
                return whole + self._give_up()
        return whole

    def _keep(self, data: bytes, edge: bytes) -> None:
        if data:
            self._pieces.append(data)
            self._kept_bytes += len(data)
            self._edge = edge

    def _give_up(self) -> bytes:
        """Return what is kept of an event that is too large to be read: it passes on as it comes."""
        event = b"".join(self._pieces)
        self._pieces = []
        self._kept_bytes = 0
        if event.startswith((_ERROR_EVENT, _ERROR_SPACED, b"event: error")):
            self.failure = StreamFailure(_SERVER_ERROR, "an error too large to be read", None)
            return b""
        self._oversized = True
        self._edge = event[-_OVERSIZED_BYTES:]
        self._oversized_begin = event[:_OVERSIZED_BYTES]
        return event

    def _note_oversized(self, end: bytes) -> None:  # noqa: B027 - of chunks, none of this size says anything of its stream
        """Take note of how an event ends that is too large to be read; `_oversized_begin` is how it began."""


class StreamTap(Tap):
    """What a stream of chunks in OpenAI's form says."""

    __slots__ = ("_drop_usage",)

    def __init__(self, *, drop_usage: bool, max_event_bytes: int) -> None:
        super().__init__(max_event_bytes=max_event_bytes)
        self._drop_usage = drop_usage

    def feed(self, data: bytes, now: float) -> bytes:
        """Return what of *data*, received at *now*, is to be passed on: whole events."""
        if self.done:
            return b""
        data = self._whole_events(data)
        if not data:
            return data
        # By `find`: `in` costs six times as much, for it first tries, in vain, to take the mark for a number.
        if (
            self.first_token_at is None
            or (data.find(_USAGE) >= 0 and (data.find(_USAGE_OBJECT) >= 0 or data.find(_USAGE_SPACED) >= 0))
            or (data.find(_ERROR) >= 0 and (data.find(_ERROR_SPACED) >= 0 or data.find(_ERROR_EVENT) >= 0))
            or data.find(_ABORT) >= 0
        ):
            return self._look(data, now)
        if data.find(_DONE, -_DONE_BYTES) >= 0 and (found := _DONE_EVENT.search(data)) is not None:
            self.done = True
            if found.start() == 0 and data.startswith(b"data:"):
                return data
        self.last_token_at = now
        return data

    def _look(self, data: bytes, now: float) -> bytes:
        passed: list[bytes] = []
        *events, part = data.replace(b"\r\n", b"\n").split(_END)
        for event in events:
            if event and self._look_at(event, now):
                passed += (event, _END)
            if self.done or self.failure is not None or self.aborted:
                return b"".join(passed)
        passed.append(part)  # of an event that is too large to be read, or nothing
        return b"".join(passed)

    def _look_at(self, event: bytes, now: float) -> bool:
        """Take note of one event and say whether it is passed on."""
        payload = payload_of(event)
        if payload == _DONE:
            self.done = True
            return True
        try:
            chunk = loads(payload) if payload.startswith(b"{") else None
        except orjson.JSONDecodeError:
            chunk = None
        # A comment or another kind of event is not the router's to judge.
        return True if chunk is None else self._look_into(chunk, now)

    def _look_into(self, chunk: dict[str, Any], now: float) -> bool:
        if chunk.get("error") is not None:
            self.failure = failure_in(chunk)
            return False  # the router says it in its own words, or as the answer's status
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage, "prompt_tokens")
            self.output_tokens = _count(usage, "completion_tokens")
            details = usage.get("prompt_tokens_details")
            if isinstance(details, dict) and "cached_tokens" in details:
                self.cached_tokens = _count(details, "cached_tokens")
            if not chunk.get("choices"):
                return not self._drop_usage
        if is_aborted(chunk):
            self.aborted = True
            return False
        if _has_token(chunk):
            if self.first_token_at is None:
                self.first_token_at = now
            self.last_token_at = now
        return True


def payload_of(event: bytes) -> bytes:
    """Return the data of one event, whose lines end with LF: of several lines, all of them."""
    if event.startswith(b"data:") and event.find(b"\n") < 0:
        return event[5:].strip()
    return b"\n".join([line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")])


def failure_in(value: dict[str, Any]) -> StreamFailure:
    """Return what an error event with the data *value* reports. Its status is 500 where it names none."""
    error = value.get("error")
    if not isinstance(error, dict):
        error = None
    message = str((error or value).get("message") or (error or value).get("error") or "")[:2000]
    for holder in (error, value):
        if holder is None:
            continue
        code = holder.get("code")
        if isinstance(code, int) and code in _STATUSES:
            return StreamFailure(code, message, error)
        status = _STATUS_OF_TYPE.get(str(holder.get("type")))
        if status is not None:
            return StreamFailure(status, message, error)
    found = _CODE.search(message)
    return StreamFailure(int(found[1]) if found else _SERVER_ERROR, message, error)


def is_aborted(answer: dict[str, Any]) -> bool:
    """Say whether a chunk, or an answer that is not streamed, says of one of its choices that it was cut."""
    choices = answer.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") in ABORTED for choice in choices
    )


def _after_last(mark: bytes, data: bytes) -> int:
    at = data.rfind(mark)
    return 0 if at < 0 else at + len(mark)


def _after_first(data: bytes) -> int:
    """Return the end of the first event that ends in *data*, 0 where none does."""
    plain, spaced = data.find(_END), data.find(_CRLF_END)
    if spaced >= 0 and (plain < 0 or spaced < plain):
        return spaced + len(_CRLF_END)
    return 0 if plain < 0 else plain + len(_END)


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def _has_token(chunk: dict[str, Any]) -> bool:
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return False
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        if choice.get("text") or choice.get("finish_reason"):
            return True
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role"):
            return True
    return False
