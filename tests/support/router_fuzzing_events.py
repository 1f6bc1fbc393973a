"""Streams of server-sent events as the standard allows them: what a client gets, however they are written and cut.

An input is a byte that chooses the API, one that chooses how the connection ends, and the stream. The expected result comes from
a reader of its own, which knows of events only what the standard says (WHATWG HTML, 9.2).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from support.router_fuzzing_answers import ENDINGS, EVENTS, FORMS, Form, is_cut
from support.router_fuzzing_world import LIMITS, OTHER, Answer, ClientAnswer, World, promise

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

STREAMED: Final = tuple(form for form in FORMS if form.ends)
_ERROR: Final = b'data: {"error":{"message":"no","code":%d}}\n\n'


def _events_of(form: Form) -> bytes:
    """Return the stream of *form* without its chunks."""
    pieces = form.answer.partition(b"\r\n\r\n")[2].split(b"\n\n\r\n")
    return b"".join(piece.partition(b"\r\n")[2] + b"\n\n" for piece in pieces[:-1])


_STREAMS: Final = tuple(_events_of(form) for form in STREAMED)
_CHAT: Final = _STREAMS[0]
_FORMS_OF_CHAT: Final = (
    _CHAT.replace(b"\n", b"\r\n"),
    _CHAT.replace(b"data: ", b"data:"),
    _CHAT.replace(b"data: ", b"id: 1\nretry: 5\nevent: message\ndata: "),
    _CHAT.replace(b"data: ", b": a comment\ndata: "),
    b": ping\n\n" * 3 + _CHAT.replace(b"\n\n", b"\n\n: ping\n\n"),
    b"\xef\xbb\xbf" + _CHAT,
    _CHAT.replace(b'{"id"', b'{\ndata: "id"'),
    _CHAT.replace(b"\n\n", b"\n\n\n\n"),
    _CHAT.replace(b"data: [DONE]", b"data:[DONE]"),
    _CHAT.replace(b"data: [DONE]", b"data: [DONE] "),
    _CHAT + _ERROR % 500,
    _CHAT + _CHAT,
    _CHAT + b": bye\n\n",
    _CHAT[:-1],
    _CHAT.replace(b"data: [DONE]\n\n", b""),
    _CHAT.replace(b"data: [DONE]\n\n", _ERROR % 500),
    _CHAT.replace(b'"one"', b'"data: [DONE]\\n\\n"'),
    _CHAT.replace(b'"one"', b'"{\\"error\\": 1, \\"usage\\":{}}"'),
    _CHAT.replace(b"two [DONE] and data: ", b""),
    *(_CHAT[: _CHAT.index(b"two")] + b'[DONE]"}}]}\n\n' + tail for tail in (b"", b"data: [DONE]\n\n")),
    _CHAT.replace(b'"usage":', b'"usage": '),
    *(_ERROR % code + b"data: [DONE]\n\n" for code in (400, 404, 429, 500, 503)),
    b"data: [DONE]\n\n",
    b"\n\n\n",
    b"",
)
EVENTS_CORPUS: Final = (
    *(bytes((n, 0)) + stream for n, stream in enumerate(_STREAMS)),
    *(bytes((n, 0)) + stream.replace(b"\n", b"\r\n") for n, stream in enumerate(_STREAMS)),
    *(bytes((n, 0)) + b": ping\n\n" + stream for n, stream in enumerate(_STREAMS)),
    *(bytes((0, e)) + stream for stream in _FORMS_OF_CHAT for e in (0, 1)),
    *(bytes((n, 0)) + _STREAMS[n] + event for n in range(4) for event in EVENTS[:6]),
)
_LINES: Final = (
    *(
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b": ping\n\n",
        b":\n",
        b"id: 1\n",
        b"retry: 1\n",
        b"event: x\n",
        b"data\n",
        b"data:\n",
    ),
    *(
        b"data: \n\n",
        b"data: [DONE]\n\n",
        b"data:  [DONE]\n\n",
        b"event: error\n",
        b"event: message_stop\n",
        b"unknown: x\n",
    ),
    *(
        b"data: [DONE]",
        b"\xef\xbb\xbf",
        b'data: {"error":{"code":400}}\n\n',
        b'data: {"error": null}\n\n',
        b"data: null\n\n",
    ),
)


def mutate_events(data: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
    """Return *data* with one to five lines or events put in, taken out, doubled, moved or written another way."""
    chosen, stream = data[:2].ljust(2, b"\0"), data[2:]
    for _ in range(draw.randint(1, 5)):
        parts = re.split(rb"(?<=\n)", stream)
        at = draw.randrange(len(parts))
        match draw.randrange(8):
            case 0 | 1:
                parts.insert(at, draw.choice(_LINES))
            case 2:
                parts.pop(at)
            case 3:
                parts.insert(at, draw.choice(EVENTS))
            case 4:
                parts.insert(draw.randrange(len(parts)), parts[at])
            case 5:
                parts[at] = parts[at].replace(b"\n", b"\r\n")
            case 6:
                parts = [*parts[:at], draw.choice(corpus)[2:]]
            case _:
                chosen = bytes((draw.randrange(len(STREAMED)), draw.randrange(len(ENDINGS))))
        stream = b"".join(parts)
    return chosen + stream[:30_000]


class Read:
    """A stream as the standard reads it: its events as (name, data), and which of them ends it in the API of *form*.

    `ends_at`: where that event ends in the stream.
    """

    def __init__(self, stream: bytes, form: Form) -> None:
        self.is_typed = not form.ends.startswith(b"data")
        self.events: list[tuple[bytes, bytes]] = []
        self.end: int | None = None
        self.ends_at = len(stream)
        self.failure: int | None = None
        start = len(_BYTE_ORDER_MARK) if stream.startswith(_BYTE_ORDER_MARK) else 0
        lines: list[bytes] = []
        # A CR at the very end, behind a LF, is the first byte of a CRLF: no reader can tell them apart.
        stop = len(stream) - stream.endswith(b"\n\r")
        for found in _LINE.finditer(stream, start, stop):  # what has no empty line behind it is no event
            line = found[0].rstrip(b"\r\n")
            if line:
                lines.append(line)
                continue
            event, lines = _event_of(lines), []
            if event is not None:
                self._take(event, form, found.end())

    def _take(self, event: tuple[bytes, bytes], form: Form, ends_at: int) -> None:
        number = len(self.events)
        self.events.append(event)
        if self.end is None and _ends(event, form):
            self.end, self.ends_at = number, ends_at
        if self.failure is None and _fails(event, form):
            self.failure = number


_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_LINE: Final = re.compile(rb"[^\r\n]*(?>\r\n|\r|\n)")


def _event_of(lines: list[bytes]) -> tuple[bytes, bytes] | None:
    """Return the name and the data of an event with *lines*, None where none of them is data."""
    name, data = b"", []
    for line in lines:
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return (name, b"\n".join(data)) if data else None


def _ends(event: tuple[bytes, bytes], form: Form) -> bool:
    name, data = event
    if form.ends.startswith(b"data"):
        return data.strip() == b"[DONE]"
    if form.path.endswith(b"messages"):
        return name.strip() == b"message_stop"
    return name.strip() in {b"response.completed", b"response.incomplete"}


def _fails(event: tuple[bytes, bytes], form: Form) -> bool:
    name, value = event[0].strip(), _json(event[1])
    if is_cut(name, value, form):
        return True
    if form.ends.startswith(b"data"):
        return isinstance(value, dict) and bool(value.get("error"))
    return name == b"error" or (name == b"response.failed" and form.path.endswith(b"responses"))


def _json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


_NO_ENGINES: Final = re.compile(
    rb'"usage"\s+:|"usage":(?! ?[^\s])|event:(?! error)\s*error|(?:[\r\n]|\A\xef\xbb\xbf)\xef\xbb\xbf'
)
"""Other blanks around the colon of `usage` and before `error`, a byte order mark before a line that is not the first."""


def is_of_no_engine(stream: bytes, read: Read) -> bool:
    """Say whether *stream* is written as no engine writes one, in a way that is not followed: docs/limits.md."""
    last = stream[: read.ends_at]
    brace_behind_end = not read.is_typed and read.end is not None and last.rstrip(b"\r\n").endswith(b"}")
    # Behind LF and CR, the next byte decides where the last event ends: it comes in one read with more.
    mixed_end = last.endswith(b"\n\r") and len(last) < len(stream)
    return (
        mixed_end or brace_behind_end or _NO_ENGINES.search(stream) is not None or _is_odd_and_large(stream)
    )


def _is_odd_and_large(stream: bytes) -> bool:
    """Say whether an event that is too large to be read is none as engines write them: it may have two ends or two meanings."""
    events = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
    return any(
        len(event) > LIMITS.event_bytes - _NEAR_BYTES
        and not _UNTYPED.fullmatch(event)
        and not _TYPED.fullmatch(event)
        for event in events
    )


_NEAR_BYTES: Final = 100


def check_events(
    world: World, data: bytes, cut: Callable[[bytes, random.Random], list[bytes]], draw: random.Random
) -> None:
    """Hold a streamed request against *data*, whole, cut anywhere, and now and then cut at every byte."""
    form, ending = STREAMED[data[0] % len(STREAMED)], ENDINGS[data[1] % len(ENDINGS)]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    stream = data[2:]
    read = Read(stream, form)
    if is_of_no_engine(stream, read):
        return
    # What comes in one read with the last event, behind it, is not looked for: docs/limits.md.
    ended, behind = stream[: read.ends_at], stream[read.ends_at :]
    ways = [[ended, behind], cut(ended, draw) + cut(behind, draw)]
    if draw.random() < 0.1 and len(stream) < 3000:
        ways.append([stream[n : n + 1] for n in range(len(stream))])
    answered = [_answer_to(world, form, head, pieces, ending) for pieces in ways]
    outcomes = [_seen(one, form) for one in answered]
    for outcome in outcomes[1:]:
        # Of a stream that fails, where it is cut decides how much of it the client has seen before.
        _promise("cuts change nothing", stream, read, outcome == outcomes[0], (outcome, outcomes[0]))
    _check(answered[0], read, form, stream)


def _promise(name: str, stream: bytes, read: Read, kept: object, text: object) -> None:
    """Make the promise for streams as engines write them, or in the name of what is unusual about this one."""
    promise(name + _unusual(stream, read), kept, str(text)[:1500])


def _unusual(stream: bytes, read: Read) -> str:
    lines = stream.replace(b"\r\n", b"\n")
    mixed = b"\r" in lines or (b"\r\n" in stream and stream.count(b"\r\n") != lines.count(b"\n"))
    if mixed or b"\n\n\n" in lines or lines.startswith((b"\n", b"\xef\xbb\xbf")):
        return ", with odd lines"
    plain = _TYPED if read.is_typed else _UNTYPED
    if not all(plain.fullmatch(event) for event in lines.split(b"\n\n")[:-1]):
        return ", with odd events"
    return ", with more behind the end" if read.end is not None and len(read.events) > read.end + 1 else ""


_UNTYPED: Final = re.compile(rb"data: ?[^\n]+|:[^\n]*")
_TYPED: Final = re.compile(rb"event: [a-z_.]+\ndata: ?[^\n]+|:[^\n]*")
"""Events as engines write them."""


def _answer_to(world: World, form: Form, head: bytes, pieces: list[bytes], ending: str) -> ClientAnswer:
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]

    def worker(_head: bytes, _body: bytes) -> Answer:
        return Answer([head, *chunks, b"0\r\n\r\n"], ending)

    (one,) = world.ask([form.ask("plain")], {OTHER: worker, OTHER + 1: worker})
    return one


def _seen(answered: ClientAnswer, form: Form) -> Any:
    """Return the events of a stream that came whole, None for any other answer."""
    whole = answered.status == 200 and answered.whole and answered.is_stream
    return [data for _, data in Read(answered.body + b"\n\n", form).events] if whole else None


def _check(answered: ClientAnswer, read: Read, form: Form, stream: bytes) -> None:
    failed = read.failure is not None and (read.end is None or read.failure <= read.end)
    if failed or read.end is None:
        _promise(
            "no cut stream is whole",
            stream,
            read,
            not (answered.is_stream and answered.whole),
            answered.body[-300:],
        )
        return
    good = answered.status == 200 and answered.whole
    _promise("a whole stream is whole", stream, read, good, (answered.status, answered.body[-300:]))
    if good:
        found = Read(answered.body, form).events
        expected = [event for event in read.events[: read.end + 1] if not _is_bare_usage(event, form)]
        behind = found[len(expected) :]
        _promise("nothing stands behind the end", stream, read, not behind, behind[:3])
        same = found[: len(expected)] == expected
        _promise("events pass as they are", stream, read, same, (found[-3:], expected[-3:]))


def _is_bare_usage(event: tuple[bytes, bytes], form: Form) -> bool:
    """Say whether the router has asked for this event, not the client."""
    if not form.ends.startswith(b"data"):
        return False
    value = _json(event[1])
    return isinstance(value, dict) and isinstance(value.get("usage"), dict) and not value.get("choices")
