"""A worker of raw asyncio whose every fault can be asked for: hangs, resets, garbage, cut and endless streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from turnout_router.request.checks import TRIAL_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class Received:
    """One request as the worker got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class MockWorker:
    """How it behaves, and what it has seen.

    `behavior`: ok, status (answers `status`), hang (does not answer as long as it is so), reset (closes without an answer), garbage,
    cut (streams 50 % of the tokens and dies), cut_cleanly (ends there as if that were all), endless (streams until the other side leaves), stream_error (an error
    event after 50 % of the tokens), bad_params (a prefill without a cache), head_then_cut (200, then closes), head_then_hang,
    cut_in_head, endless_head, cannot_fetch (500 where it is to take over another one's cache), gated (waits for `gate` before it answers).
    """

    behavior: str = "ok"
    status: int = 500
    tokens: int = 6
    pause_seconds: float = 0.0
    piece: str = "tok "
    usage: bool = True
    """Whether its answers say how many tokens they have."""
    single_use: bool = False
    """Whether a second request on a connection is met with a reset."""
    healthy: bool = True
    """What it answers when it is asked for its health."""
    checks: int = 0
    trials: int = 0
    """Requests of the router's own, by which it tries whether a worker has recovered; they are not in `received`."""
    page: bytes = b""
    """Its metrics page; empty: 404."""
    scrapes: int = 0
    page_gate: asyncio.Event | None = None
    """What pages wait for, where it is given."""
    models: bytes = b""
    """What it answers to GET /v1/models; empty: 404."""
    models_asked: int = 0
    tokenized: bytes = b""
    """What it answers to /tokenize, where it is not the answer to a prompt."""
    reused: int = 0
    received: list[Received] = field(default_factory=list)
    left: int = 0
    """Requests whose other side closed the connection before the answer was complete."""
    sent_bytes: int = 0
    open_connections: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def id(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def running(self) -> int:
        return self._running

    _running: int = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        try:
            while await self._one(reader, writer):
                if self.single_use:
                    await reader.readuntil(b"\r\n\r\n")
                    self.reused += 1
                    writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        if first.split()[1] == "/health":
            self.checks += 1
            self._json(writer, {}, 200 if self.healthy else 503)
            return True
        if first.split()[1] == "/metrics":
            await self._metrics(writer)
            return True
        if first.split()[:2] == ["GET", "/v1/models"]:
            self.models_asked += 1
            self._raw_json(writer, self.models or b"{}", 200 if self.models else 404)
            return True
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        if headers.get("x-request-id") == TRIAL_ID.decode():
            self.trials += 1
        else:
            self.received.append(Received(first.split()[1], headers, body))
        if self.tokenized and first.split()[1] == "/tokenize":
            self._raw_json(writer, self.tokenized)
            return True
        self._running += 1
        answering = asyncio.create_task(self._answer(body, writer))
        leaving = asyncio.create_task(reader.read(1))
        try:
            done, _ = await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering not in done:
                self.left += 1
                return False
            return answering.result()
        finally:
            self._running -= 1
            for task in (answering, leaving):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await task

    async def _metrics(self, writer: asyncio.StreamWriter) -> None:
        self.scrapes += 1
        if self.page_gate is not None:
            await self.page_gate.wait()
        status = 200 if self.page else 404
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(self.page), self.page))

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:  # noqa: C901, PLR0911, PLR0912 - one per behavior
        match self.behavior:
            case "hang":
                while self.behavior == "hang":  # noqa: ASYNC110 - tests assign it like any other field
                    await asyncio.sleep(0.01)
            case "gated":
                await self.gate.wait()
            case "reset":
                writer.transport.abort()
                return False
            case "cut_in_head":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: appl")
                await writer.drain()
                writer.transport.abort()
                return False
            case "endless_head":
                writer.write(b"HTTP/1.1 200 OK\r\n")
                while True:
                    writer.write(b"x-more: " + b"a" * 1000 + b"\r\n")
                    await writer.drain()
            case "cannot_fetch" if (body.get("kv_transfer_params") or {}).get("remote_host"):
                self._json(writer, {"object": "error", "message": "no such blocks"}, 500)
                return True
            case "garbage":
                writer.write(b"this is not HTTP at all\r\n\r\n")
                await writer.drain()
                return False
            case "status":
                self._json(writer, {"object": "error", "message": "secret of the worker"}, self.status)
                return True
        if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
            given = None if self.behavior == "bad_params" else self._params(body)
            self._json(writer, {"id": "p", "choices": [], "kv_transfer_params": given})
            return True
        if body.get("stream"):
            return await self._stream(body, writer)
        usage = self._usage()
        text = self.piece * self.tokens
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        if self.behavior == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{")
            await writer.drain()
            writer.transport.abort()
            return False
        answer = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
        }
        self._json(writer, answer | ({"usage": usage} if self.usage else {}))
        await writer.drain()
        return True

    def _usage(self) -> dict[str, int]:
        return {"prompt_tokens": 7, "completion_tokens": self.tokens, "total_tokens": 7 + self.tokens}

    def _params(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "remote_block_ids": [[1, 2]],
            "remote_host": self.host,
            "remote_port": 5600,
            "tp_size": 1,
            "n": len(body),
        }

    def _json(self, writer: asyncio.StreamWriter, value: dict[str, Any], status: int = 200) -> None:
        self._raw_json(writer, json.dumps(value).encode(), status)

    def _raw_json(self, writer: asyncio.StreamWriter, data: bytes, status: int = 200) -> None:
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\nx-secret: inside\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(data), data)
        )

    async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        if self.behavior == "head_then_cut":
            await writer.drain()
            writer.transport.abort()
            return False
        if self.behavior == "head_then_hang":
            await writer.drain()
            await asyncio.Event().wait()
        await self._event(writer, self._chunk(body, {"role": "assistant", "content": ""}))
        count = 0
        while count < self.tokens or self.behavior == "endless":
            await self._event(writer, self._chunk(body, {"content": self.piece}))
            count += 1
            if count * 2 >= self.tokens and self.behavior in {"cut", "cut_cleanly"}:
                if self.behavior == "cut":
                    writer.transport.abort()
                else:
                    writer.write(b"0\r\n\r\n")
                    await writer.drain()
                return False
            if count * 2 >= self.tokens and self.behavior == "stream_error":
                await self._event(writer, {"error": {"message": "secret of the worker", "code": 500}})
                break
            if self.pause_seconds:
                await asyncio.sleep(self.pause_seconds)
        else:
            await self._event(writer, self._chunk(body, {}, finish="length"))
        if self.usage and (body.get("stream_options") or {}).get("include_usage"):
            await self._event(writer, self._chunk(body, None) | {"choices": [], "usage": self._usage()})
        await self._raw(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _chunk(
        self, body: dict[str, Any], delta: dict[str, Any] | None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
        }

    async def _event(self, writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
        await self._raw(writer, b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")

    async def _raw(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.sent_bytes += len(data)
        await writer.drain()


@asynccontextmanager
async def mock_worker(**behavior: Any) -> AsyncIterator[MockWorker]:
    """Run a `MockWorker` on a free port."""
    worker = MockWorker(**behavior)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await worker._serve(reader, writer)

    server = await asyncio.start_server(serve, worker.host, worker.port)
    worker.port = server.sockets[0].getsockname()[1]
    try:
        yield worker
    finally:
        server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
