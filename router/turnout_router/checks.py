"""Asking ejected workers for their health, and trying them, so that a repaired one serves again without a client at stake."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import orjson

from turnout_router.errors import UpstreamError
from turnout_router.http import get, post
from turnout_router.relay import Collected
from turnout_router.tasks import CHECK

if TYPE_CHECKING:
    from turnout.routing import Backend
    from turnout_router.backends import Backends
    from turnout_runtime.supervision import Supervisor

TRIAL_ID: Final = b"turnout-trial"
"""The id of the router's own requests, by which they are known in a worker's log."""

_EVERY_SECONDS: Final = 0.5
_ANSWER_SECONDS: Final = 2.0
_AT_ONCE: Final = 64
_MOST_BYTES: Final = 64 * 1024
_SERVER_ERROR: Final = 500
_NOT_IMPLEMENTED: Final = 501
_UNAVAILABLE: Final = 503
_ANSWERS: Final = frozenset({_NOT_IMPLEMENTED, _UNAVAILABLE})
"""Of 5xx, those that an engine gives which works: its model completes no texts, or it is full."""


class HealthChecks:
    """Asks every ejected worker twice a second; healthy ones are known by the requests that they serve.

    One that answers, and whose ejection is over, is asked for one token. An engine that hangs still answers /health;
    so clients' requests go there again only once it has computed something. What it then says does not matter: a
    model that cannot complete texts answers 400, and that is an answer.
    """

    def __init__(self, backends: Backends, supervisor: Supervisor) -> None:
        self._backends = backends
        self._supervisor = supervisor
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._asked: set[str] = set()

    async def run(self) -> None:
        """Ask until cancelled. One worker that takes its time, or whose check fails, holds up none of the others."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            for backend in self._backends.ejected():
                if backend.id not in self._asked:
                    self._begin(backend)

    def _begin(self, backend: Backend) -> None:
        self._asked.add(backend.id)
        task = self._supervisor.once(CHECK, self._look_after(backend), detail=backend.id)
        task.add_done_callback(lambda _: self._asked.discard(backend.id))

    async def _look_after(self, backend: Backend) -> None:
        answered = await self._answers(backend)
        self._backends.checked(backend, answered=answered)
        if answered and (seconds := self._backends.begin_trial(backend)) is not None:
            await self._try(backend, seconds)

    async def _answers(self, backend: Backend) -> bool:
        answer = Collected(_MOST_BYTES)
        async with self._slots:
            pool = self._backends.pools.of((backend.host, backend.port))
            try:
                await pool.exchange(
                    get(b"/health", pool.host),
                    answer,
                    seconds=_ANSWER_SECONDS,
                    idle_seconds=None,
                    what="the answer to /health",
                )
            except UpstreamError:
                return False
        return answer.status < _SERVER_ERROR

    async def _try(self, backend: Backend, seconds: float) -> None:
        body = {"model": backend.names[0] if backend.names else None, "prompt": "Hello", "max_tokens": 1}
        pool = self._backends.pools.of((backend.host, backend.port))
        answer = Collected(_MOST_BYTES)
        try:
            await pool.exchange(
                post(b"/v1/completions", pool.host, orjson.dumps(body), ((b"x-request-id", TRIAL_ID),)),
                answer,
                seconds=seconds,
                idle_seconds=None,
                what="the answer to a trial",
            )
        except UpstreamError as error:
            self._backends.failed(backend, error)
            return
        if answer.status >= _SERVER_ERROR and answer.status not in _ANSWERS:
            message = f"it answered a trial with {answer.status}"
            self._backends.failed(backend, UpstreamError("status", message, answer.status))
        else:
            self._backends.passed_trial(backend)
