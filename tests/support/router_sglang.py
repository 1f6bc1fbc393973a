"""A mock of SGLang 0.5's disaggregation: workers that are sent a request at once, and meet in a room.

A prefill worker answers once a decode worker has come to its room, a decode worker once the prefill worker is there. One that
waits alone waits until its request is cancelled, as SGLang does for minutes.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Role = Literal["prefill", "decode"]
NO_TRANSFER_HOST = "2.2.2.2"


@dataclass
class Rooms:
    """Which workers have come to which room."""

    arrived: dict[tuple[int, Role], asyncio.Event] = field(default_factory=dict)

    def event(self, room: int, role: Role) -> asyncio.Event:
        return self.arrived.setdefault((room, role), asyncio.Event())


@dataclass
class SGLangWorker:
    """One worker. *behavior*: ok, status (500), full (503), refuses (400), breaks (in the middle of its stream)."""

    role: Role
    rooms: Rooms
    bootstrap_port: int
    behavior: str = "ok"
    url: str = ""
    host: str = ""
    received: list[dict[str, Any]] = field(default_factory=list)
    cancelled: int = 0
    trials: int = 0

    @property
    def id(self) -> str:
        return self.url.removeprefix("http://")

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = await request.json()
        is_trial = body.get("bootstrap_host") == NO_TRANSFER_HOST
        if is_trial:
            self.trials += 1
        else:
            self.received.append(body)
        if self.behavior == "status":
            return web.json_response({"error": {"message": "of the test", "code": 500}}, status=500)
        if self.behavior == "full":
            return web.json_response({"error": {"message": "The queue is full.", "code": 503}}, status=503)
        if self.behavior == "refuses":
            payload = {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}
            return web.json_response(payload, status=400)
        try:
            if not is_trial:
                await self._meet(body["bootstrap_room"])
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _meet(self, room: int) -> None:
        self.rooms.event(room, self.role).set()
        other: Role = "decode" if self.role == "prefill" else "prefill"
        await self.rooms.event(room, other).wait()

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = f"by {self.role}"
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return web.json_response({"id": "x", "choices": [choice], "usage": usage})
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for word in (text, " and", " more"):
            chunk = {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            await answer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            if self.behavior == "breaks":
                assert request.transport is not None
                request.transport.close()
        if self.behavior == "endless":
            await asyncio.Event().wait()
        last = {"choices": [], "usage": usage}
        await answer.write(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        return answer


@asynccontextmanager
async def sglang_worker(role: Role, rooms: Rooms, bootstrap_port: int = 8998) -> AsyncIterator[SGLangWorker]:
    """Run a worker."""
    worker = SGLangWorker(role, rooms, bootstrap_port)
    app = web.Application(handler_args={"handler_cancellation": True})
    app.router.add_get("/health", worker.health)
    app.router.add_post("/v1/chat/completions", worker.serve)
    app.router.add_post("/v1/completions", worker.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        worker.host, worker.url = host, f"http://{host}:{port}"
        yield worker
    finally:
        await runner.cleanup()


@asynccontextmanager
async def sglang_workers(*roles: Role) -> AsyncIterator[list[SGLangWorker]]:
    """Run a worker of each of *roles*, which meet in the same rooms; bootstrap ports are 9000, 9001, ..."""
    rooms = Rooms()
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(sglang_worker(role, rooms, 9000 + number))
            for number, role in enumerate(roles)
        ]
