"""Asking ejected workers for their health, so that a repaired one serves again without a client's request at stake."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from turnout_router.errors import UpstreamError
from turnout_router.http import get
from turnout_router.relay import Collected

if TYPE_CHECKING:
    from turnout.routing import Backend
    from turnout_router.backends import Backends

_EVERY_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 2.0
_AT_ONCE: Final = 64
_MOST_BYTES: Final = 64 * 1024
_SERVER_ERROR: Final = 500


class HealthChecks:
    """Asks every ejected worker once a second; healthy ones are known by the requests that they serve."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            async with asyncio.TaskGroup() as group:
                for backend in self._backends.ejected():
                    group.create_task(self._check(backend))

    async def _check(self, backend: Backend) -> None:
        answer = Collected(_MOST_BYTES)
        async with self._slots:
            try:
                await self._backends.pools.of((backend.host, backend.port)).exchange(
                    get(b"/health", f"{backend.host}:{backend.port}".encode()),
                    answer,
                    seconds=_ANSWER_SECONDS,
                    idle_seconds=None,
                    what="the answer to /health",
                )
            except UpstreamError:
                answered = False
            else:
                answered = answer.status < _SERVER_ERROR
        self._backends.checked(backend, answered=answered)
