"""Workers that answer as none should: valid answers of every API, changed, on their way through the router to a client.

An input is a byte that chooses the request, one that chooses how the worker's connection ends, and the worker's bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from support.router_fuzzing_world import (
    DECODE,
    MODEL,
    OTHER,
    PREFILL,
    Answer,
    ClientAnswer,
    HungError,
    World,
    promise,
    request,
    whole_json,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    Worker = Callable[[bytes, bytes], Answer]

STATUSES: Final = {200, 400, 502, 503, 504}
"""What the router says of itself, beside 200. What a worker says itself (4xx) is passed on."""
MARK: Final = b"of-another-answer"
"""Stands in what was not asked for."""
SECOND: Final = b"of-the-second-request"
LONG: Final = "word " * 400
ENDINGS: Final = ("keep", "close", "reset")
_MESSAGES: Final = [{"role": "user", "content": LONG}]


def _event(value: Any, name: str = "") -> bytes:
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + orjson.dumps(value) + b"\n\n"


def _delta(text: str, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None} | more
    return _event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})


_USAGE: Final = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
_SAID: Final = {"input_tokens": 7, "output_tokens": 2}
_RESPONSE: Final = {"id": "r", "object": "response", "status": "completed", "output": [], "usage": _SAID}
_MESSAGE: Final = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "one"}],
}
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Form:
    """One way to ask, and what a good worker answers. `ends` marks the last event of a stream."""

    path: bytes
    body: dict[str, Any]
    answer: bytes
    ends: bytes = b""

    def ask(self, model: str = "plain", **more: Any) -> bytes:
        return request(self.path, self.body | {"model": model} | more)


def _stream(events: Sequence[bytes], *, chunked: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    if not chunked:
        return head + b"\r\n" + b"".join(events)
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    return head + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"


_CHAT_EVENTS: Final = (
    _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
    _delta("one"),
    _delta("two [DONE] and data: [DONE]"),
    _delta("", finish_reason="stop"),
    _event({"choices": [], "usage": _USAGE}),
    _DONE,
)
_TEXT_EVENTS: Final = (
    _event({"choices": [{"index": 0, "text": "one", "finish_reason": None}]}),
    _event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}),
    _DONE,
)
_RESPONSE_EVENTS: Final = (
    _event({"response": {"status": "in_progress"}}, "response.created"),
    _event({"delta": "one"}, "response.output_text.delta"),
    _event({"response": _RESPONSE}, "response.completed"),
)
_MESSAGE_EVENTS: Final = (
    _event({"type": "message_start", "message": _MESSAGE | {"usage": _SAID}}, "message_start"),
    _event({"type": "content_block_delta", "delta": {"text": "one"}}, "content_block_delta"),
    _event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": _SAID}, "message_delta"),
    _event({"type": "message_stop"}, "message_stop"),
)
_CHAT: Final = {"messages": _MESSAGES}
_CHAT_ANSWER: Final = {
    "id": "c",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "one"}, "finish_reason": "stop"}],
    "usage": _USAGE,
}
_TEXT_ANSWER: Final = {
    "id": "t",
    "choices": [{"index": 0, "text": "one", "finish_reason": "stop"}],
    "usage": _USAGE,
}
_INPUT: Final = {"input": LONG}
_ASKED: Final = _CHAT | {"max_tokens": 9}
FORMS: Final = (
    Form(b"/v1/chat/completions", _CHAT | {"stream": True}, _stream(_CHAT_EVENTS), b"data: [DONE]"),
    Form(b"/v1/chat/completions", _CHAT, whole_json(_CHAT_ANSWER)),
    Form(b"/v1/completions", {"prompt": LONG, "stream": True}, _stream(_TEXT_EVENTS), b"data: [DONE]"),
    Form(b"/v1/completions", {"prompt": LONG}, whole_json(_TEXT_ANSWER)),
    Form(b"/v1/responses", _INPUT | {"stream": True}, _stream(_RESPONSE_EVENTS), b"event: response."),
    Form(b"/v1/responses", _INPUT, whole_json(_RESPONSE)),
    Form(b"/v1/messages", _ASKED | {"stream": True}, _stream(_MESSAGE_EVENTS), b"event: message_stop"),
    Form(b"/v1/messages", _ASKED, whole_json(_MESSAGE | {"usage": _SAID})),
    Form(b"/v1/embeddings", {"input": LONG}, whole_json({"data": [], "usage": _USAGE})),
)
_ERROR: Final = {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}}
_DEEP: Final = b'data: {"%b":' + b"[" * 990 + b"]" * 990 + b"}\n\n"
"""As deep as JSON is parsed; deeper than Python can write it."""
EVENTS: Final = (
    _event(_ERROR),
    _event({"error": {"message": "full", "code": 503}}),
    _event({"error": "in words"}),
    _event({"type": "error", "error": {"type": "internal_error", "message": "no"}}, "error"),
    _event({"type": "error", "code": "400", "message": "no"}, "error"),
    _event({"response": _RESPONSE | {"status": "failed"}}, "response.failed"),
    _event({"response": _RESPONSE | {"status": "incomplete"}}, "response.incomplete"),
    _delta("", finish_reason="abort"),
    _event({"type": "message_delta", "delta": {"stop_reason": None}}, "message_delta"),
    _delta("x" * 20_000),
    _event({"choices": [], "usage": {"prompt_tokens": -1, "completion_tokens": 1 << 63}}),
    _event({"choices": {"a": 1}, "usage": []}),
    _event([]),
    b": a comment\n\n",
    b":\n\n",
    b"id: 7\nretry: 10\n\n",
    b'data: {"choices":\ndata: []}\n\n',
    b"data\n\n",
    b"\n\n",
    b"\r\n\r\n",
    b"\xef\xbb\xbf",
    b"data: \xff\xfe\n\n",
    b"data: " + b"[" * 2000 + b"\n\n",
    *(_DEEP % name for name in (b"error", b"choices", b"usage")),
    b'data: {"error":' + _DEEP[6:-2] % b"code" + b"}\n\n",
    b"event: error\n" + _DEEP % b"message",
    _delta("", finish_reason=["abort"]),
    _event({"type": "error", "error": {"message": "no", "code": 500}}),
    *(
        event
        for events in (_CHAT_EVENTS, _TEXT_EVENTS, _RESPONSE_EVENTS, _MESSAGE_EVENTS)
        for event in events
    ),
)
"""Events that are put where they do not belong."""
_GLUED: Final = (
    MARK,
    whole_json({"choices": [{"message": {"content": MARK.decode()}}]}),
    _stream([_delta(MARK.decode()), _DONE]),
    b"\r\n" + whole_json({"error": MARK.decode()}, 400),
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(MARK), MARK),
    b"data: " + MARK + b"\n\n",
)


def _choose(form: int, ending: int, answer: bytes) -> bytes:
    return bytes((form, ending)) + answer


_OTHER_ANSWERS: Final = (
    whole_json(_ERROR, 400),
    whole_json({"object": "error", "message": "not found"}, 404),
    *(
        b"HTTP/1.1 422 No\r\ncontent-length: %d\r\n\r\n" % (len(_DEEP) - 10 + len(name)) + _DEEP[6:-2] % name
        for name in (b"error", b"code", b"detail", b"message")
    ),
    b"HTTP/1.1 400 No\r\ncontent-length: 9000\r\n\r\n" + b"[" * 9000,
    whole_json({"detail": "busy"}, 503),
    whole_json({"error": {"message": "broken"}}, 500),
    b"HTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
    b"HTTP/1.1 301 Moved\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ncontent-length: 12000\r\n\r\n" + b"x" * 12000,
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 14\r\n\r\n" + _DONE,
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"".join(_CHAT_EVENTS),
)
ANSWERS_CORPUS: Final = (
    *(_choose(n, e, form.answer) for n, form in enumerate(FORMS) for e in range(len(ENDINGS))),
    *(_choose(n, 0, _stream([event, *_CHAT_EVENTS])) for n in (0, 2, 4, 6) for event in EVENTS[:8]),
    *(_choose(n, 0, answer) for n in (0, 1, 4, 7) for answer in _OTHER_ANSWERS),
)


def mutate_answer(data: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:  # noqa: C901 - one per change
    """Return *data* after one to four changes that keep more of its structure than bytes put in anywhere would."""
    for _ in range(draw.randint(1, 4)):
        chosen, answer = data[:2].ljust(2, b"\0"), data[2:]
        head, end, body = answer.partition(b"\r\n\r\n")
        match draw.randrange(10):
            case 0:
                body = _with_event(body, draw)
            case 1:
                answer += draw.choice(_GLUED)
                data = chosen + answer
                continue
            case 2:
                head = re.sub(
                    rb"content-length: \d+",
                    lambda found: b"content-length: %d" % _near(int(found[0][16:]), draw),
                    head,
                )
            case 3:
                fields = head.split(b"\r\n")
                fields.insert(draw.randint(1, len(fields)), draw.choice(_FIELDS))
                head = b"\r\n".join(fields)
            case 4:
                at = draw.randrange(len(body) + 1)
                body = body[:at] + bytes((draw.getrandbits(8),)) + body[at + draw.choice((0, 1, 8)) :]
            case 5:
                body = body[: draw.randrange(len(body) + 1)]
            case 6:
                head = re.sub(rb" \d{3} ", b" %d " % draw.choice(_STATUS), head, count=1)
            case 7:
                other = draw.choice(corpus)
                return chosen + other[2:]
            case 8:
                at = draw.randrange(len(body) + 1)
                body = body[:at] + draw.choice(_TOKENS) + body[at:]
            case _:
                chosen = bytes((draw.randrange(len(FORMS)), draw.randrange(len(ENDINGS))))
        data = chosen + head + end + body
    return data[:60_000]


_STATUS: Final = (
    100,
    101,
    199,
    200,
    201,
    204,
    206,
    299,
    301,
    304,
    400,
    404,
    413,
    422,
    429,
    499,
    500,
    501,
    503,
    599,
    999,
)
_FIELDS: Final = (
    *(
        b"transfer-encoding: chunked",
        b"transfer-encoding: gzip, chunked",
        b"content-length: 0",
        b"content-length: 5",
    ),
    *(
        b"content-length: 99999999999999999999",
        b"content-length: -1",
        b"content-length: +5",
        b"connection: close",
    ),
    *(
        b"content-type: text/event-stream",
        b"content-type: text/plain\x00",
        b"content-type: a\xffb",
        b"x: " + b"y" * 5000,
    ),
    *(
        b"retry-after: \x80",
        b"connection: upgrade\r\nupgrade: h2c",
        b"content-encoding: br",
        b" folded",
        b"no colon",
    ),
    *(
        b"trailer: a",
        b"keep-alive: timeout=0",
        b"retry-after: 1\r\nretry-after: 2",
        b"content-type: application/json",
    ),
)
_TOKENS: Final = (
    *(
        b"\r\n",
        b"\n",
        b"\n\n",
        b"\r",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"5;ext=1\r\n",
        b"data: [DONE]\n\n",
    ),
    *(
        b"[DONE]",
        b'"usage":',
        b'{"error"',
        b"event: error\n",
        b"null",
        b"1e999",
        b'"\\ud800"',
        b": ping\n\n",
        b"\0",
    ),
)


def _near(number: int, draw: random.Random) -> int:
    return max(0, draw.choice((0, 1, number - 1, number + 1, number // 2, number * 2, 9000, 10**18)))


def _with_event(body: bytes, draw: random.Random) -> bytes:
    """Put an event in between two chunks or events, take one out, or double one."""
    parts = re.split(rb"(?<=\n\n\r\n)", body) if b"\n\n\r\n" in body else re.split(rb"(?<=\n\n)", body)
    at = draw.randrange(len(parts))
    kind = draw.randrange(3)
    if kind == 0:
        event = draw.choice(EVENTS)
        chunked = b"\n\n\r\n" in body
        parts.insert(at, b"%x\r\n%b\r\n" % (len(event), event) if chunked else event)
    elif kind == 1:
        parts.pop(at)
    else:
        parts.insert(at, parts[at])
    return b"".join(parts)


def end_of(answer: bytes) -> int | None:  # noqa: PLR0911 - one per rule of the RFC
    """Return where a final answer in good form ends, as RFC 9112 has it; None where only its connection ends it."""
    start = 0
    while True:
        head, end, body = answer[start:].partition(b"\r\n\r\n")
        if not end:
            return None
        lines = head.split(b"\r\n")
        status = re.fullmatch(rb"HTTP/1\.[01] (\d{3}) [ -~]*", lines[0])
        fields = [line.split(b":", 1) for line in lines[1:]]
        if status is None or any(
            len(field) < 2 or not re.fullmatch(rb"[a-z-]+", field[0]) for field in fields
        ):
            return None
        if status[1][:1] != b"1":
            break
        if status[1] == b"101":
            return None
        start = len(answer) - len(body)
    start = len(answer) - len(body)
    if status[1] in {b"204", b"304"}:
        return start
    lengths = [value.strip() for name, value in fields if name == b"content-length"]
    codings = [value.strip() for name, value in fields if name == b"transfer-encoding"]
    if codings:
        return _end_of_chunks(answer, start) if codings == [b"chunked"] and not lengths else None
    if len(lengths) == 1 and lengths[0].isdigit() and len(body) >= int(lengths[0]):
        return start + int(lengths[0])
    return None


def _end_of_chunks(answer: bytes, at: int) -> int | None:
    while True:
        size = re.compile(rb"([0-9a-f]{1,8})\r\n").match(answer, at)
        if size is None:
            return None
        at = size.end() + int(size[1], 16)
        if answer[at : at + 2] != b"\r\n":
            return None
        at += 2
        if int(size[1], 16) == 0:
            return at


def check_answer(
    world: World, data: bytes, cut: Callable[[bytes, random.Random], list[bytes]], draw: random.Random
) -> None:
    """Hold a client's request against a worker that answers *data*; the next request meets a good worker."""
    form, ending, answer = FORMS[data[0] % len(FORMS)], ENDINGS[data[1] % len(ENDINGS)], data[2:]
    pair, odd_prefill = draw.random() < 0.3, draw.random() < 0.3
    count = 0

    def worker(_head: bytes, body: bytes) -> Answer:
        nonlocal count
        count += 1
        prefills = b'"do_remote_decode":true' in body
        if pair and prefills and not odd_prefill:
            return Answer([whole_json({"kv_transfer_params": {"remote_host": "h", "remote_block_ids": [1]}})])
        if SECOND in body:
            return Answer([whole_json(_TEXT_ANSWER | {"id": SECOND.decode()})])
        if pair and odd_prefill and not prefills:
            return Answer([form.answer])
        return Answer(cut(answer, draw), ending)

    leaves = draw.randrange(12) if draw.random() < 0.1 else None
    model = MODEL if pair else "plain"
    first = form.ask(model)
    second = request(b"/v1/completions", {"model": model, "prompt": SECOND.decode()}, b"connection: close")
    workers = dict.fromkeys((PREFILL, DECODE, OTHER, OTHER + 1), worker)
    try:
        answered = world.ask([first, second], workers, leaves_after=leaves, stalls=draw.random() < 0.1)
    except HungError as error:
        promise("no wait without end", kept=False, text=error)
        return
    assert count <= 8, f"a worker was asked {count} times"
    if leaves is not None:
        return
    assert answered, "the client was not answered at all"
    _check_first(answered[0], form, answer)
    if answered[0].whole and len(answered) > 1:
        _check_second(answered[1])


def _check_first(answered: ClientAnswer, form: Form, answer: bytes) -> None:
    ours = answered.status in STATUSES or 400 <= answered.status < 500
    promise("no status but the API's", ours, f"the client gets {answered.status}")
    end = end_of(answer)
    if end is not None and MARK not in answer[:end]:
        promise("one answer", MARK not in answered.body, "the client got what stands behind a complete one")
    assert SECOND not in answered.body
    if answered.status >= 500 and answered.whole:
        assert isinstance(orjson.loads(answered.body), dict)
        assert MARK not in answered.body, "what a worker says of its failure stays inside"
    if answered.status == 200 and answered.is_stream and answered.whole and form.ends:
        _check_stream(answered.body, form)


def _check_stream(body: bytes, form: Form) -> None:
    """Assert that a whole stream ends with its last event, and holds none that says that it failed."""
    events = [event for event in body.replace(b"\r\n", b"\n").split(b"\n\n") if event.strip(b"\n")]
    lines = [line for line in events[-1].split(b"\n") if not line.startswith(b":")]
    ended = any(line.replace(b": ", b":").startswith(form.ends.replace(b": ", b":")) for line in lines)
    promise("the end is the end", ended, f"a whole stream ends with {events[-1][:200]!r}")
    for event in events:
        promise("no failure is whole", not _is_error(event, form), event[:200])
        promise("no cut answer is whole", not is_cut(_name(event), _data(event), form), event[:200])


def _data(event: bytes) -> Any:
    data = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    try:
        return orjson.loads(b"\n".join(data))
    except orjson.JSONDecodeError:
        return None


def _name(event: bytes) -> bytes:
    names = [line[6:].strip() for line in event.split(b"\n") if line.startswith(b"event:")]
    return names[-1] if names else b""


def _is_error(event: bytes, form: Form) -> bool:
    """Say whether *event* is an error, as the API of *form* says it."""
    if form.ends.startswith(b"data"):
        value = _data(event)
        return isinstance(value, dict) and bool(value.get("error"))
    return _name(event) in {b"error", b"error" if form.path.endswith(b"messages") else b"response.failed"}


def is_cut(name: bytes, value: Any, form: Form) -> bool:
    """Say whether an event with *name* and the data *value* says that its answer was cut, in the API of *form*."""
    if not isinstance(value, dict):
        return False
    choices, delta, response = value.get("choices"), value.get("delta"), value.get("response")
    if form.path.endswith(b"messages"):
        says = name == b"message_delta" and value.get("type") == "message_delta" and isinstance(delta, dict)
        return says and "stop_reason" in delta and delta["stop_reason"] is None
    if form.path.endswith(b"responses"):
        says = name in {b"response.completed", b"response.incomplete"} and isinstance(response, dict)
        return says and response.get("status") == "cancelled"
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") in ("abort", "error") for choice in choices
    )


def _check_second(answered: ClientAnswer) -> None:
    if answered.status == 200:
        assert answered.whole
        assert orjson.loads(answered.body)["id"] == SECOND.decode()
    else:
        assert answered.status in STATUSES, answered.status
        assert MARK not in answered.body
