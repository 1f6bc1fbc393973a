"""Requests of a trace sent at their times, open loop: a slow server does not slow the arrivals down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson

from turnout_cli.replay.errors import RequestError
from turnout_cli.replay.judge import judge
from turnout_simulator.prompts import prompt_text

if TYPE_CHECKING:
    from turnout_cli.replay.client import Client, ServerAnswer
    from turnout_cli.replay.figures import ReplayOutcome
    from turnout_simulator.traces import Trace, TraceRequest

CHAT_PATH: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How a trace is replayed."""

    model: str
    """The name that requests ask for."""
    time_scale: float = 1.0
    """Seconds of the trace that pass in one second; latencies are multiplied by it."""
    deadline_seconds: float = 120.0
    """Longest wait for a whole answer, in wall seconds."""
    max_in_flight: int = 2000
    """Most requests under way at once. Further ones wait; their lag shows for how long."""


@dataclass(slots=True)
class Progress:
    """Where a replay stands. Read it while the replay runs."""

    total: int
    sent: int = 0
    outcomes: list[ReplayOutcome] = field(default_factory=list)
    """Requests that ended, in the order of their ends; one per request of the trace at most."""

    @property
    def in_flight(self) -> int:
        """Requests that were sent and have not ended."""
        return self.sent - len(self.outcomes)


class Replay:
    """One replay of a trace through a client. `progress` shows its state while `run` runs."""

    def __init__(self, trace: Trace, client: Client, settings: ReplaySettings) -> None:
        self.progress = Progress(total=len(trace.requests))
        self._trace = trace
        self._client = client
        self._settings = settings
        self._room = asyncio.Semaphore(settings.max_in_flight)
        self._began = 0.0

    async def run(self) -> None:
        """Send every request at its time divided by the time scale; return when all have ended.

        Failures are outcomes, not errors. Cancelling drops what is under way.
        """
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for index, request in enumerate(self._trace.requests):
                due = request.arrival_seconds / self._settings.time_scale
                await asyncio.sleep(max(0.0, self._began + due - loop.time()))
                await self._room.acquire()
                self.progress.sent += 1
                tasks.create_task(self._send(index, request, due))

    async def _send(self, index: int, request: TraceRequest, due: float) -> None:
        settings = self._settings
        body = request_body(request, settings.model)
        sent_at = self._elapsed()
        result: ServerAnswer | RequestError
        try:
            result = await self._client.post(CHAT_PATH, body, deadline_seconds=settings.deadline_seconds)
        except RequestError as error:
            result = error
        finally:
            self._room.release()
        self.progress.outcomes.append(
            judge(
                result,
                index=index,
                output_tokens=request.output_tokens,
                sent_at=sent_at,
                lag_seconds=max(0.0, sent_at - due),
                ended_at=self._elapsed(),
                time_scale=settings.time_scale,
            )
        )

    def _elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self._began


def request_body(request: TraceRequest, model: str) -> bytes:
    """Return the chat completion that *request* asks for: its prompt, exactly its number of output tokens."""
    return orjson.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt_text(request)}],
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
