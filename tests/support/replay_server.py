"""An HTTP server that answers exactly the bytes a test gives it, one script per request."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def text_event(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


def usage_event(prompt: int, output: int) -> bytes:
    return (
        b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,'
        % (
            prompt,
            output,
        )
        + b'"prompt_tokens_details":{"cached_tokens":3}}}\n\n'
    )


DONE = b"data: [DONE]\n\n"


def whole_answer(output: int) -> bytes:
    """Return a complete stream of *output* tokens."""
    events = [text_event("word") for _ in range(output)]
    return HEAD + b"".join(map(chunk, [*events, usage_event(5, output), DONE])) + END


@dataclass
class ScriptedServer:
    """`answers` in turn; the last one repeats. None hangs; an answer that lacks its end closes the connection."""

    answers: Sequence[bytes | None]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    close_after: bool = False
    """Close each connection after one answer, without saying so."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.splitlines()
                    if line.lower().startswith(b"content-length")
                )
                body = await reader.readexactly(length)
                answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
                self.requests.append(head + body)
                if answer is None:
                    await reader.read()
                    return
                writer.write(answer)
                await writer.drain()
                if self.close_after or not answer.endswith(END):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def scripted(*answers: bytes | None, close_after: bool = False) -> AsyncIterator[ScriptedServer]:
    """Run a scripted server on a free loopback port."""
    script = ScriptedServer(answers, close_after=close_after)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        server.close()
