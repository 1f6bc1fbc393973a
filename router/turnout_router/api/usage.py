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
from mypy_extensions import mypyc_attr

from turnout_router.api.untrusted import loads, words

_END: Final = b"\n\n"
_CRLF_END: Final = b"\r\n\r\n"
_MIXED_END: Final = b"\n\r"
_CR_END: Final = b"\r\r"
"""A line ends with LF, CR or CRLF, and an event with an empty line. Where LF and CR are the last bytes so far, a LF is
waited for, which belongs to them: some readers know an event's end only by its whole lines."""
_EDGE_BYTES: Final = 2
"""So much of what came before may belong to the end of an event whose last byte comes now."""
_CHUNK_ENDS: Final = (b"}\n\n", b"}\r\n\r\n")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_CR: Final = 13
_OVERSIZED_BYTES: Final = 8192
"""So much of an event that is too large to be read is kept: usage stands near its end."""
_USAGE: Final = b'"usage":'
_USAGE_OBJECT: Final = b'"usage":{'
_USAGE_SPACED: Final = b'"usage": {'
"""What marks an event that must be looked into: these forms, of which each holds the first one of its kind."""
_ERROR: Final = b'"error"'
"""Never part of a text, where quotes are escaped: the field of an error, a type, or the reason for the end of an answer."""
_ABORT: Final = b'"abort"'
"""Likewise: the reason that vLLM and SGLang give for an answer that they cut."""
ABORTED: Final = ("abort", "error")
"""Reasons for the end of an answer that is not whole. OpenAI's API has neither."""
_DONE: Final = b"[DONE]"
_CHOICES: Final = b'"choices":['
_OPEN: Final = b'"finish_reason":null'
"""Of a choice that goes on."""
_LONGEST_END: Final = 128
_TRIES: Final = 4
"""Chunks whose ends are looked at; an engine that writes its chunks in another way is read in the longer way."""
_ERROR_BEGIN: Final = re.compile(rb'\{\s*(?:"(?:type|object)"\s*:\s*)?"error"')
"""How the data of an error begins."""
_CODE: Final = re.compile(r"""['"]?code['"]?\s*[:=]\s*['"]?([45][0-9]{2})\b""")
"""A status within the text of an error. vLLM's Messages API has it nowhere else."""
_STATUSES: Final = range(400, 600)
_STATUS_DIGITS: Final = 3
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


@mypyc_attr(acyclic=True, free_list_len=1)
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
    """The usage, the end and the times of a stream of server-sent events. Times are on the caller's clock; 0 tokens where usage never came.

    `done`: its last event has come, what follows is dropped. `failure`: it reports an error. `aborted`: its end says that the
    answer was cut. Neither of these two events is passed on. `opened`: it has brought something that a client must get; what
    came before is better held back, for until then another worker can take over.
    """

    __slots__ = (
        "_begun",
        "_edge",
        "_keeps",
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
        "token_events",
    )

    def __init__(self, *, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._pieces: list[bytes] = []
        self._kept_bytes = 0
        self._edge = b""
        self._keeps = False
        """Whether what comes next goes on with an event that has begun."""
        self._begun = False
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
        self.token_events = 0
        """Events with text: about the tokens that have come, where no usage says it."""

    def feed(self, data: bytes, now: float) -> bytes:
        """Return what of *data*, received at *now*, is to be passed on: whole events, and what is too large to be one."""
        if self.done:
            return b""
        if self._keeps or not (data.endswith(_END) or data.endswith(_CRLF_END)):  # noqa: PIE810 - most end in the first way
            return self._feed_part(data, now)
        return self._judge(data, now)

    @property
    def usage(self) -> Usage:
        """The usage that the stream reports."""
        return Usage(self.prompt_tokens, self.output_tokens, self.cached_tokens)

    @property
    def opened(self) -> bool:
        """Whether the stream has brought something that a client must get."""
        return self.first_token_at is not None or self.done or self._oversized

    @property
    def over(self) -> bool:
        """Whether no further event can change these values."""
        return self.done or self.aborted or self.failure is not None

    def event_sequence(self) -> int:
        """Return the number of the next event, where events are numbered."""
        return 0

    @abstractmethod
    def _judge(self, data: bytes, now: float) -> bytes:
        """Return what of *data*, whole events and at least one, is to be passed on. Look into those that may matter."""

    @abstractmethod
    def _look_at(self, event: bytes, now: float) -> bool:
        """Take note of one event, whose lines end with LF, and say whether it is passed on."""

    def _look(self, data: bytes, now: float) -> bytes:
        """Return what of *data* is to be passed on: look into every event."""
        if not self._begun:
            self._begun = True
            data = data.removeprefix(_BYTE_ORDER_MARK)
        if data.find(b"data") < 0 and data.find(b"event") < 0:
            return data  # comments alone, of which there may be a hundred thousand in one read
        passed: list[bytes] = []
        for block in with_lf(data).split(_END):
            event = block.strip(b"\n")
            if event and self._look_at(event, now):
                passed += (event, _END)
            if self.over:
                break
        return b"".join(passed)

    def _feed_part(self, data: bytes, now: float) -> bytes:
        """Do as `feed` where *data* does not begin or does not end where an event does."""
        passed: list[bytes] = []
        if self._oversized:
            end = self._pass_oversized(data)
            passed.append(data[:end])
            data = data[end:]
        if data and not self.over:
            whole = self._cut(data)
            if whole:
                passed.append(self._judge(whole, now))
            if self._kept_bytes > self._max_event_bytes and not self.over:
                passed.append(self._give_up())
        return b"".join(passed)

    def _cut(self, data: bytes) -> bytes:
        """Return the events that are complete by now, and keep the rest."""
        edge = self._edge
        probe = edge + data
        end = _end_of_last(probe)
        if end == 0:
            self._keep(data, probe[-_EDGE_BYTES:])
            return b""
        end -= len(edge)
        whole = b"".join((*self._pieces, data[:end]))
        self._forget()
        if end < len(data):
            rest = data[end:]
            self._keep(rest, rest[-_EDGE_BYTES:])
        return whole

    def _keep(self, data: bytes, edge: bytes) -> None:
        self._keeps = True
        self._pieces.append(data)
        self._kept_bytes += len(data)
        self._edge = edge

    def _forget(self) -> None:
        self._keeps = False
        self._pieces = []
        self._kept_bytes = 0
        self._edge = b""

    def _give_up(self) -> bytes:
        """Return what is kept of an event that is too large to be read: it passes on as it comes."""
        event = b"".join(self._pieces)
        self._forget()
        if not self._begun:
            self._begun = True
            event = event.removeprefix(_BYTE_ORDER_MARK)
        begin = with_lf(event[:_OVERSIZED_BYTES])
        name, data = fields_of(begin)
        if name == b"error" or (data is not None and _ERROR_BEGIN.match(data) is not None):
            self.failure = StreamFailure(_SERVER_ERROR, "an error too large to be read", None)
            return b""
        self._oversized = self._keeps = True
        self._edge = event[-_OVERSIZED_BYTES:]
        self._oversized_begin = begin
        return event

    def _pass_oversized(self, data: bytes) -> int:
        """Return how much of *data* belongs to the event that is too large to be read."""
        edge = self._edge
        probe = edge + data
        end = _end_of_first(probe, max(0, len(edge) - _EDGE_BYTES))
        if end == 0:
            self._edge = probe[-_OVERSIZED_BYTES:]
            return len(data)
        self._oversized = False
        self._forget()
        self._note_oversized(probe[:end])
        return end - len(edge)

    def _note_oversized(self, end: bytes) -> None:  # noqa: B027 - a chunk of this size carries no usage and no end
        """Take note of how an event ends that is too large to be read; `_oversized_begin` is how it began."""


class StreamTap(Tap):
    """A stream of chunks in OpenAI's form."""

    __slots__ = ("_begin", "_drop_usage", "_end", "_tries")

    def __init__(self, *, drop_usage: bool, max_event_bytes: int) -> None:
        super().__init__(max_event_bytes=max_event_bytes)
        self._drop_usage = drop_usage
        self._begin = b""
        self._end = b""
        """What the plain chunks of this stream have in common: all but the text, up to the names of an open choice."""
        self._tries = _TRIES

    def feed(self, data: bytes, now: float) -> bytes:
        """Return what of *data*, received at *now*, is to be passed on. A single plain chunk is known by its two ends."""
        end = self._end
        if (
            end
            and data.endswith(end)
            and data.startswith(self._begin)
            and data.find(b"\n") == len(data) - len(_END)
            and not self._keeps
            and not self.done
        ):
            self.last_token_at = now
            self.token_events += 1
            return data
        return super().feed(data, now)

    def _learn(self, data: bytes) -> None:
        """Take the ends of *data*, in which nothing but a token was found, for those of all plain chunks."""
        self._tries -= 1
        begin, end = data.find(_CHOICES), data.rfind(_OPEN)
        if 0 <= begin < end and data.find(b"\n") == len(data) - len(_END) and len(data) - end <= _LONGEST_END:
            self._begin, self._end = data[: begin + len(_CHOICES)], data[end:]

    def _judge(self, data: bytes, now: float) -> bytes:
        # By `find`: `in` costs six times as much, for it first tries, in vain, to take the mark for a number. What ends in
        # another way than a chunk may be the last event, which is looked for nowhere else.
        if (
            self.first_token_at is None
            or not data.endswith(_CHUNK_ENDS)
            or (data.find(_USAGE) >= 0 and (data.find(_USAGE_OBJECT) >= 0 or data.find(_USAGE_SPACED) >= 0))
            or data.find(_ERROR) >= 0
            or data.find(_ABORT) >= 0
        ):
            return self._look(data, now)
        self.last_token_at = now
        self.token_events += events_in(data)
        if self._tries:
            self._learn(data)
        return data

    def _look_at(self, event: bytes, now: float) -> bool:
        payload = fields_of(event)[1]
        if payload == _DONE:
            self.done = True
            return True
        try:
            chunk = loads(payload) if payload is not None and payload.startswith(b"{") else None
        except orjson.JSONDecodeError:
            chunk = None
        # A comment or another kind of event is not the router's to judge.
        return True if chunk is None else self._look_into(chunk, now)

    def _look_into(self, chunk: dict[str, Any], now: float) -> bool:
        if chunk.get("error"):
            self.failure = failure_in(chunk)
            return False  # the router reports it in its own words, or as the answer's status
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
            self.token_events += 1
        return True


def events_in(data: bytes) -> int:
    """Return how many events *data* holds, which ends with one."""
    return data.count(_END) or data.count(_CRLF_END)


def with_lf(data: bytes) -> bytes:
    """Return *data* with LF at the end of each line, for CRLF and CR."""
    return data if data.find(b"\r") < 0 else data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def fields_of(event: bytes) -> tuple[bytes, bytes | None]:
    """Return the name of one event, whose lines end with LF, and its data: of several lines, all of them.

    Without a line of data it is no event, and its data is None.
    """
    if event.startswith(b"data:") and event.find(b"\n") < 0:
        return b"", event[5:].strip()
    name, data = b"", []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif line.startswith(b"event:"):
            name = line[6:].strip()
        elif line == b"event":
            name = b""
        elif line == b"data":
            data.append(b"")
    return name, b"\n".join(data).strip() if data else None


def failure_in(value: dict[str, Any]) -> StreamFailure:
    """Return what an error event with the data *value* reports. Its status is 500 where it names none."""
    error = value.get("error")
    if not isinstance(error, dict):
        error = None
    details = error or value
    message = (words(details.get("message")) or words(details.get("error")))[:2000]
    for holder in (error, value):
        if holder is None:
            continue
        code = _status_in(holder.get("code"))
        if code is not None:
            return StreamFailure(code, message, error)
        status = _STATUS_OF_TYPE.get(words(holder.get("type")))
        if status is not None:
            return StreamFailure(status, message, error)
    found = _CODE.search(message)
    return StreamFailure(int(found[1]) if found else _SERVER_ERROR, message, error)


def _status_in(code: object) -> int | None:
    """Return the HTTP status that *code*, a number or a text, is; None where it is none."""
    if (isinstance(code, str) and len(code) == _STATUS_DIGITS and code.isascii() and code.isdigit()) or (
        isinstance(code, float) and code.is_integer()
    ):
        code = int(code)
    return code if isinstance(code, int) and code in _STATUSES else None


def is_aborted(answer: dict[str, Any]) -> bool:
    """Return whether a chunk, or an answer that is not streamed, says of one of its choices that it was cut."""
    choices = answer.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") in ABORTED for choice in choices
    )


def _end_of_last(data: bytes) -> int:
    """Return the end of the last event that ends in *data*, 0 where none does."""
    at = max(data.rfind(_END), data.rfind(_CR_END), data.rfind(_MIXED_END, 0, len(data) - 1))
    return 0 if at < 0 else _end_at(data, at)


def _end_of_first(data: bytes, start: int) -> int:
    """Return the end of the first event that ends in *data* at *start* or later, 0 where none does."""
    found = (data.find(_END, start), data.find(_CR_END, start), data.find(_MIXED_END, start, len(data) - 1))
    return min([_end_at(data, at) for at in found if at >= 0], default=0)


def _end_at(data: bytes, at: int) -> int:
    """Return the end of the event whose last line ends at *at*, and the empty one behind it with the byte after that."""
    end = at + 2
    return end + 1 if data[at + 1] == _CR and data[end : end + 1] == b"\n" else end


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
