"""Promises that the router breaks today, each with the smallest input that shows it. What mends one takes it out here."""

from __future__ import annotations

from typing import Final, NamedTuple


class Known(NamedTuple):
    """An input of a kind, and the seed with which it breaks a promise."""

    kind: str
    data: bytes
    seed: int = 0


_TOKEN: Final = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
_DONE: Final = b"data: [DONE]\n\n"
_ERROR: Final = b'data: {"error":{"message":"no","code":500}}\n\n'
_STREAM: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
_JSON: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

BROKEN: Final[dict[str, Known]] = {
    "bodies are counted": Known("answers", b"\1\0" + _JSON, 364),
    "no status but the API's": Known("answers", b"\1\0HTTP/1.1 301 Moved\r\ncontent-length: 0\r\n\r\n"),
    "fields stand once": Known(
        "answers",
        b"\1\0HTTP/1.1 404 No\r\ncontent-type: a/b\r\ncontent-type: c/d\r\ncontent-length: 2\r\n\r\n{}",
    ),
    "one answer": Known(
        "answers", b"\1\0" + _JSON + b'HTTP/1.1 200 X\r\ncontent-length: 19\r\n\r\n"of-another-answer"', 2
    ),
    "nothing stands behind an answer": Known(
        "answers", b"\0\2HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n" + b"x" * 8990
    ),
    "the end is the end": Known("answers", b"\0\1" + _STREAM + _TOKEN + _DONE + _TOKEN),
    "no failure is whole": Known(
        "answers", b"\0\1" + _STREAM + _TOKEN + b'data: {"type":"error","error":{"message":"no"}}\n\n' + _DONE
    ),
    "no cut answer is whole": Known(
        "answers", b"\0\1" + _STREAM + b'data: {"choices":[{"delta":{},"finish_reason":"abort"}]}\n\n' + _DONE
    ),
    "400 is the client's own fault": Known(
        "pairs", b'{"kv_transfer_params":{"a":' + b"[" * 300 + b"]" * 300 + b"}}"
    ),
    "the admin port does not fail": Known(
        "admin",
        b"GET /admin/decisions?limit=%C2%B2 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer the-token-of-this-fuzz\r\n\r\n",
    ),
    # Text that looks like the end, within the last bytes of a piece; `error` without a value.
    "cuts change nothing": Known(
        "events", b"\0\1" + _TOKEN + b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n', 1
    ),
    "a whole stream is whole": Known("events", b"\0\0" + _TOKEN + b'data: {"error":null}\n\n' + _DONE),
    # What a worker says after its last event.
    "a whole stream is whole, with more behind the end": Known("events", b"\0\0" + _TOKEN + _DONE + _ERROR),
    "nothing stands behind the end, with more behind the end": Known(
        "events", b"\0\0" + _TOKEN + _DONE + _TOKEN
    ),
    "cuts change nothing, with more behind the end": Known(
        "events", b"\0\0" + _TOKEN + _DONE + b'data: {"type":"error","error":"no"}\n\n'
    ),
    # Events with other lines than engines write: comments, ids, several lines of data.
    "a whole stream is whole, with odd events": Known("events", b"\0\1" + _TOKEN + b": a comment\n" + _DONE),
    "nothing stands behind the end, with odd events": Known(
        "events", b"\0\1" + _TOKEN + b'event: x\ndata: {"usage":{}}\n\n' + _DONE
    ),
    "cuts change nothing, with odd events": Known("events", b"\1\0" + _TOKEN + b"d\0ata: [DONE]\n\n"),
    "no cut stream is whole, with odd events": Known(
        "events", b'\0\0data: {"error":{"code":500}}\nid: 1\n\n' + _DONE
    ),
    # Lines that end in another way, or in several; empty lines too many; a byte order mark.
    "a whole stream is whole, with odd lines": Known("events", b"\0\1" + _TOKEN + b"data: [DONE]\n\r\n"),
    "nothing stands behind the end, with odd lines": Known("events", b"\0\1" + _DONE + b"\n" + _TOKEN),
    "cuts change nothing, with odd lines": Known("events", b"\0\0" + _TOKEN + b"\n" + _TOKEN[:-1] + _DONE),
    "no cut stream is whole, with odd lines": Known(
        "events", b'\0\0\ndata: {"error":{"code":500}}\nid: 1\n\n' + _DONE
    ),
    "events pass as they are, with odd lines": Known(
        "events", b"\2\0event: x\r\r\ndata: 1\r\n\r\nevent: response.completed\r\ndata: {}\r\n\r\n"
    ),
    "events pass as they are, with odd events": Known(
        "events", b"\0\1" + _TOKEN + b'event: x\ndata: {"usage":{}}\n\n' + _DONE
    ),
}
