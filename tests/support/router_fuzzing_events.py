"""Streams of server-sent events as the standard allows them: what a client gets, however they are written and cut.

An input is a byte that chooses the API, one that chooses how the connection ends, and the stream. What is right is said by
a reader of its own, which knows of events only what the standard says (WHATWG HTML, 9.2).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from support.router_fuzzing_answers import ENDINGS, EVENTS, FORMS, Form
from support.router_fuzzing_world import OTHER, Answer, Told, World, promise

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
    _CHAT.replace(b'"usage":', b'"usage" : '),
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
    """A stream as the standard reads it: its events as (name, data), and where the API of *form* says that it ends."""

    def __init__(self, stream: bytes, form: Form) -> None:
        self.is_typed = not form.ends.startswith(b"data")
        text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self.events: list[tuple[bytes, bytes]] = []
        blocks = text.split(b"\n\n")
        for block in blocks[:-1]:  # what has no empty line behind it is no event
            self._take(block)
        ends = [n for n, event in enumerate(self.events) if _ends(event, form)]
        fails = [n for n, event in enumerate(self.events) if _fails(event, form)]
        self.end = min(ends, default=None)
        self.failure = min(fails, default=None)

    def _take(self, block: bytes) -> None:
        name, data = b"", []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif field == b"event":
                name = value.removeprefix(b" ")
        if data:
            self.events.append((name, b"\n".join(data)))


def _ends(event: tuple[bytes, bytes], form: Form) -> bool:
    name, data = event
    if form.ends.startswith(b"data"):
        return data.strip() == b"[DONE]"
    if form.path.endswith(b"messages"):
        return name.strip() == b"message_stop"
    return name.strip() in {b"response.completed", b"response.incomplete"}


def _fails(event: tuple[bytes, bytes], form: Form) -> bool:
    name, data = event
    if form.ends.startswith(b"data"):
        value = _json(data)
        return isinstance(value, dict) and bool(value.get("error"))
    if form.path.endswith(b"messages"):
        return name.strip() == b"error"
    return name.strip() in {b"error", b"response.failed"}


def _json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def check_events(
    world: World, data: bytes, cut: Callable[[bytes, random.Random], list[bytes]], draw: random.Random
) -> None:
    """Hold a streamed request against *data*, whole, cut anywhere, and now and then cut at every byte."""
    form, ending = STREAMED[data[0] % len(STREAMED)], ENDINGS[data[1] % len(ENDINGS)]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    stream = data[2:]
    ways = [[stream], cut(stream, draw)]
    if draw.random() < 0.1 and len(stream) < 3000:
        ways.append([stream[n : n + 1] for n in range(len(stream))])
    told = [_told(world, form, head, pieces, ending) for pieces in ways]
    read = Read(stream, form)
    outcomes = [_seen(one, form) for one in told]
    for outcome in outcomes[1:]:
        # Of a stream that fails, where it is cut decides how much of it the client has seen before.
        _promise("cuts change nothing", stream, read, outcome == outcomes[0], (outcome, outcomes[0]))
    _check(told[0], read, form, stream)


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


def _told(world: World, form: Form, head: bytes, pieces: list[bytes], ending: str) -> Told:
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]

    def worker(_head: bytes, _body: bytes) -> Answer:
        return Answer([head, *chunks, b"0\r\n\r\n"], ending)

    (one,) = world.ask([form.ask("plain")], {OTHER: worker, OTHER + 1: worker})
    return one


def _seen(told: Told, form: Form) -> Any:
    """Return the events of a stream that came whole, None for any other answer."""
    whole = told.status == 200 and told.whole and told.is_stream
    return [data for _, data in Read(told.body + b"\n\n", form).events] if whole else None


def _check(told: Told, read: Read, form: Form, stream: bytes) -> None:
    failed = read.failure is not None and (read.end is None or read.failure < read.end)
    if failed or read.end is None:
        _promise(
            "no cut stream is whole", stream, read, not (told.is_stream and told.whole), told.body[-300:]
        )
        return
    good = told.status == 200 and told.whole
    _promise("a whole stream is whole", stream, read, good, (told.status, told.body[-300:]))
    if good:
        found = Read(told.body, form).events
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
