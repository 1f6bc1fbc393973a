"""A worker that costs next to nothing: canned answers over a raw protocol, so that the router is what is measured.

Run as ``python mock_backend.py PORT``. A POST is answered with one completion; where it asks for a stream, with
`max_tokens` events, as often as its first message says ("One token every 8 ms."), for not every router passes fields
on that it does not know.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

import orjson
import uvloop

_PROMPT_TOKENS = 500
_ANSWER = {
    "id": "chatcmpl-6a1f",
    "object": "chat.completion",
    "created": 1_780_000_000,
    "model": "bench",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "word " * 60, "tool_calls": []},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": _PROMPT_TOKENS, "completion_tokens": 60, "total_tokens": _PROMPT_TOKENS + 60},
}


def _whole(document: object) -> bytes:
    body = json.dumps(document, separators=(",", ":")).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


def _event(**changes: Any) -> bytes:
    document = {
        "id": "chatcmpl-6a1f",
        "object": "chat.completion.chunk",
        "created": 1_780_000_000,
        "model": "bench",
        "choices": [{"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}],
    } | changes
    data = b"data: %b\n\n" % json.dumps(document, separators=(",", ":")).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


COMPLETION = _whole(_ANSWER)
OTHER = _whole({"object": "list", "status": "ok", "data": [{"id": "bench", "object": "model"}]})
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
FIRST = _event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
TOKEN = _event()
LAST = _event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USAGE = _event(choices=[], usage=_ANSWER["usage"])
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Worker(asyncio.Protocol):
    """One connection: one request after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport
        self._data = b""
        self._left = 0
        self._pause_seconds = 0.0
        self._end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole."""
        self._data = data = self._data + data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = data[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        length = 0 if at < 0 else int(head[at + 17 : head.index(b"\r\n", at + 2)])
        if at < 0 and b"\r\ntransfer-encoding:" in head:
            if not data.endswith(b"0\r\n\r\n"):
                return
        elif len(data) < end + length:
            return
        self._data = b""
        if not head.startswith(b"post"):
            self._transport.write(OTHER)
        elif b'"stream"' in data and b'"stream":false' not in data:
            self._stream(orjson.loads(data[data.index(b"{", end) : data.rindex(b"}") + 1]))
        else:
            self._transport.write(COMPLETION)

    def _stream(self, request: dict[str, Any]) -> None:
        cap = request.get("max_tokens")  # sglang-router calls it by its newer name
        self._left = int(request["max_completion_tokens"] if cap is None else cap)
        self._pause_seconds = int(request["messages"][0]["content"].split()[-2]) / 1000
        wants_usage = (request.get("stream_options") or {}).get("include_usage")
        self._end = LAST + (USAGE if wants_usage else b"") + DONE
        self._transport.write(STREAM_HEAD + FIRST)
        self._loop.call_later(self._pause_seconds, self._tick)

    def _tick(self) -> None:
        if self._transport.is_closing():
            return
        if self._left == 0:
            self._transport.write(self._end)
            return
        self._left -= 1
        self._transport.write(TOKEN)
        self._loop.call_later(self._pause_seconds, self._tick)


async def main() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Worker(loop), "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
