"""Answers that no engine means: written in an odd way, nested deeply, cut within their length, with fields twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from support.router_fuzzing_answers import FORMS, LONG
from support.router_fuzzing_world import (
    DECODE,
    LIMITS,
    MODEL,
    OTHER,
    PREFILL,
    Answer,
    ClientAnswer,
    World,
    request,
    whole_json,
)
from turnout_router.api.usage import StreamTap

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
DEEP = b"[" * 990 + b"]" * 990
"""As deep as it is parsed, and deeper than Python can write it."""
FORM = {form.path + (b" stream" if form.ends else b""): form for form in FORMS}


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def ask(world: World, form: bytes, *pieces: bytes, ending: str = "close") -> ClientAnswer:
    """Return what a client gets where every worker answers with *pieces*, each in a read of its own."""

    def worker(_head: bytes, _body: bytes) -> Answer:
        return Answer(list(pieces), ending)

    (answer,) = world.ask([FORM[form].ask()], {OTHER: worker, OTHER + 1: worker})
    return answer


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize(
    "end",
    [
        b"data: [DONE]\n\n",
        b"data:[DONE] \n\n",
        b": bye\ndata: [DONE]\n\n",
        b"data: [DONE]\nid: 7\n\n",
        b"event: message\ndata: [DONE]\n\n",
        b"data: [DONE]\ndata\n\n\n",
    ],
)
def test_the_end_of_a_stream_is_found_however_it_is_written(end: bytes, line_end: bytes, size: int) -> None:
    """Other lines beside it, other line ends, a byte order mark at the beginning, cut anywhere."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
    text = b"\xef\xbb\xbf: ping\n\n" + TOKEN + b"\n\nevent: x\n" + TOKEN + usage + end
    stream = text.replace(b"\n", line_end)
    tap = StreamTap(drop_usage=False, max_event_bytes=1000)
    passed = b"".join(tap.feed(stream[at : at + size], 1.0) for at in range(0, len(stream), size))
    assert tap.done
    assert (tap.prompt_tokens, tap.output_tokens) == (7, 2)
    assert passed.count(b"data: {") == 3


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "text",
    [
        b'data: {"choices":[{"delta":{"content":"data: [DONE]\\n\\n"}}]}\n\n',
        b"data: {}\nd\0ata: [DONE]\n\n",
        b": data: [DONE]\n\n",
        b'data: {"a":1,\ndata: "b":"[DONE]"}\n\n',
        b"data: [DONE]\n",
    ],
)
def test_what_only_looks_like_the_end_is_none(text: bytes, size: int) -> None:
    """Text, comments, other fields, one of several lines of data, and an end without its empty line."""
    stream = TOKEN + text
    tap = StreamTap(drop_usage=False, max_event_bytes=1000)
    for at in range(0, len(stream), size):
        tap.feed(stream[at : at + size], 1.0)
    assert not tap.done


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"type":"error","error":{"message":"no"}}\n\n',
        b'data: {"object":"error","error" : {"message":"no","code":500}}\n\n',
        b'id: 1\ndata: {"error":"no"}\r\n\r\n',
        b'data: {"type":"error","error":{"message":"' + b"x" * 2 * LIMITS.event_bytes + b'"}}\n\n',
        b'data: {"error":{"code":' + DEEP + b"}}\n\n",
        b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}\n\n',
    ],
    ids=["typed", "object", "id", "large", "deep", "reason"],
)
def test_an_error_in_the_middle_of_a_stream_breaks_it_however_it_is_written(
    world: World, event: bytes
) -> None:
    """An error event of the router's, and no end."""
    half = len(event) * 2 // 3
    answer = ask(world, b"/v1/chat/completions stream", STREAM + TOKEN, event[:half], event[half:] + DONE)
    assert not answer.whole
    assert b"stream_broken" in answer.body
    assert b"[DONE]" not in answer.body


def test_an_error_field_without_a_value_is_none(world: World) -> None:
    """Some engines write every field of a chunk, set or not."""
    answer = ask(world, b"/v1/chat/completions stream", STREAM + TOKEN, b'data: {"error":null}\n\n', DONE)
    assert answer.whole
    assert answer.body == TOKEN + b'data: {"error":null}\n\n' + DONE


def test_the_end_in_one_read_with_a_large_events_end_is_found(world: World) -> None:
    """And the part of a large event that looks like it is none."""
    large = b'data: {"choices":[{"delta":{"content":"' + b"x" * 2 * LIMITS.event_bytes
    whole = ask(world, b"/v1/chat/completions stream", STREAM + TOKEN, large, b'"}}]}\n\n' + DONE)
    cut = ask(world, b"/v1/chat/completions stream", STREAM + TOKEN, large, DONE)
    assert whole.whole
    assert whole.body.endswith(b'"}}]}\n\n' + DONE)
    assert not cut.whole
    assert b"stream_broken" in cut.body


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_nothing_is_put_into_a_body_that_breaks_off_within_its_length(world: World, ending: str) -> None:
    """No event for a client that reads so many bytes of JSON."""
    sent = b"x" * (LIMITS.hold_bytes + 500)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    answer = ask(world, b"/v1/chat/completions", head % (len(sent) + 40) + sent, ending=ending)
    assert not answer.whole
    assert answer.body == sent


def test_fields_that_a_worker_sends_twice_go_out_once(world: World) -> None:
    """The first one counts, for the router as for the client."""
    fields = b"content-type: application/json\r\nretry-after: 1\r\nContent-Type: text/event-stream\r\nretry-after: 2"
    answer = ask(
        world,
        b"/v1/chat/completions",
        b"HTTP/1.1 200 OK\r\n" + fields + b"\r\ncontent-length: 2\r\n\r\n{}",
    )
    assert (answer.status, answer.body) == (200, b"{}")
    assert (answer.fields[b"content-type"], answer.fields[b"retry-after"]) == (b"application/json", b"1")


@pytest.mark.parametrize("form", FORM)
@pytest.mark.parametrize(
    "payload",
    [
        b'{"code":' + DEEP + b"}",
        b'{"error":{"type":' + DEEP + b',"message":"no"}}',
        b'{"detail":[' + DEEP + b"]}",
        b'{"detail":[{"loc":[' + DEEP + b'],"msg":' + DEEP + b"}]}",
        b"[" * 9000,
        b'\xff\xfe"',
        b"null",
        b"",
    ],
    ids=["code", "type", "detail", "finding", "no JSON", "no UTF-8", "null", "empty"],
)
def test_a_refusal_is_passed_on_whatever_its_body_is(world: World, form: bytes, payload: bytes) -> None:
    """Its status, and a body of the API's form; `World` asserts that nothing failed inside."""
    head = b"HTTP/1.1 422 No\r\ncontent-length: %d\r\n\r\n" % len(payload)
    answer = ask(world, form, head + payload)
    assert (answer.status, answer.whole) == (422, True)
    assert answer.fields[b"content-type"] == b"application/json"
    assert payload.startswith(b'{"error"') or isinstance(orjson.loads(answer.body)["error"]["message"], str)


@pytest.mark.parametrize("form", ["chat/completions", "responses", "messages"])
@pytest.mark.parametrize("name", ["x", "type", "message"])
def test_a_mistake_at_the_beginning_of_a_stream_may_be_nested_deeply(
    world: World, form: str, name: str
) -> None:
    """The status that it stands for, in the API's form."""
    payload = b'{"error":{"code":400,"%b":%b}}' % (name.encode(), DEEP)
    answer = ask(
        world, b"/v1/%b stream" % form.encode(), STREAM + b"event: error\ndata: " + payload + b"\n\n" + DONE
    )
    assert answer.status == 400
    assert isinstance(orjson.loads(answer.body)["error"]["message"], str)


@pytest.mark.parametrize(
    ("depth", "is_handed_over"), [(250, True), (500, True), (1000, False), (9000, False)]
)
def test_a_cache_that_is_described_too_deeply_is_none(
    world: World, depth: int, *, is_handed_over: bool
) -> None:
    """The request is served without it."""
    asked: list[bytes] = []
    payload = b'{"kv_transfer_params":{"a":' + b"[" * depth + b"]" * depth + b"}}"

    def prefill(_head: bytes, _body: bytes) -> Answer:
        return Answer([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(payload) + payload])

    def decode(_head: bytes, body: bytes) -> Answer:
        asked.append(body)
        return Answer([whole_json({"choices": [{"index": 0, "text": "one", "finish_reason": "stop"}]})])

    (answer,) = world.ask(
        [request(b"/v1/completions", {"model": MODEL, "prompt": LONG})], {PREFILL: prefill, DECODE: decode}
    )
    assert answer.status == 200
    assert [b"[[[[" in body for body in asked] == [is_handed_over]
