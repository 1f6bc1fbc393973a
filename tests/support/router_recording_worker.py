"""A worker that remembers every byte of what it was sent, and gives the answers that a test sets."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JSON = "application/json"
EVENTS = "text/event-stream"


@dataclass
class RecordingWorker:
    """`answer` is sent for every request, unless it asks to keep a cache: then `prefilled` is.

    `cut`: the connection is lost after the answer, which is streamed and has no end. `dribble`, where it is given, is sent
    instead: its first part at once, the second one ten bytes at a time.
    """

    answer: bytes = b"{}"
    status: int = 200
    type: str = JSON
    cut: bool = False
    dribble: tuple[bytes, bytes] | None = None
    prefilled: bytes = b'{"kv_transfer_params":{"remote_host":"h","remote_port":1}}'
    paths: list[str] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""

    @property
    def sent(self) -> dict[str, Any]:
        """The last body, read."""
        value: dict[str, Any] = orjson.loads(self.bodies[-1])
        return value

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, and close it, whatever ends that."""
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            fields = {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
            if first.startswith("GET "):  # the router's own questions: health, metrics
                writer.write(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n")
                continue
            body = await reader.readexactly(int(fields["content-length"]))
            self.paths.append(first.split()[1])
            self.heads.append(fields)
            self.bodies.append(body)
            if self.dribble is not None:
                begin, rest = self.dribble
                writer.write(begin)
                for at in range(0, len(rest), 10):
                    writer.write(rest[at : at + 10])
                    await writer.drain()
                    await asyncio.sleep(0.02)
                break
            prefills = b'"do_remote_decode":true' in body
            answer, type_ = (self.prefilled, JSON) if prefills else (self.answer, self.type)
            start = f"HTTP/1.1 {self.status} X\r\ncontent-type: {type_}\r\n"
            if self.cut and not prefills:
                writer.write(f"{start}transfer-encoding: chunked\r\n\r\n{len(answer):x}\r\n".encode())
                writer.write(answer + b"\r\n")
                await writer.drain()
                break
            writer.write(f"{start}content-length: {len(answer)}\r\n\r\n".encode() + answer)
            await writer.drain()


@asynccontextmanager
async def recording_worker(**behavior: Any) -> AsyncIterator[RecordingWorker]:
    """Run a `RecordingWorker` on a free port."""
    worker = RecordingWorker(**behavior)
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        task.add_done_callback(serving.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await worker.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    worker.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield worker
    finally:
        server.close()
        for task in tuple(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
