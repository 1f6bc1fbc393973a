"""Health checks and trials of ejected workers, so that a repaired one serves again without risk for a client's request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import orjson

from turnout.routing import WorkerPair
from turnout.routing.admission import NORMAL
from turnout_router.api.endpoints import TEXT
from turnout_router.api.identity import RequestIdentity
from turnout_router.api.openai import parse
from turnout_router.errors import UpstreamError
from turnout_router.fleet.worker_tasks import WorkerTasks
from turnout_router.http1.sink import CollectingSink
from turnout_router.request.recording import NoRecorder
from turnout_router.request.served import ServedRequest
from turnout_router.tasks import CHECK
from turnout_router.upstream.fetch import fetch

if TYPE_CHECKING:
    from turnout.routing import Backend
    from turnout_router.fleet.backends import Backends
    from turnout_router.fleet.deployment import DeploymentRuntime
    from turnout_router.settings import UpstreamLimits
    from turnout_runtime.supervision import Supervisor

TRIAL_ID: Final = b"turnout-trial"
"""The id of the router's own requests, which marks them in a worker's log."""

_EVERY_SECONDS: Final = 0.5
_ANSWER_SECONDS: Final = 2.0
_AT_ONCE: Final = 64
_MOST_BYTES: Final = 64 * 1024
_SERVER_ERROR: Final = 500
_NOT_IMPLEMENTED: Final = 501
_UNAVAILABLE: Final = 503
_TRIAL: Final = {"prompt": "Hello", "max_tokens": 1, "stream": True}
"""Streamed, so that the first byte has to come within the time that a worker on trial has."""
_ANSWERS: Final = frozenset({_NOT_IMPLEMENTED, _UNAVAILABLE})
"""The 5xx of a working engine: its model completes no texts, or it is full."""


class HealthChecks:
    """Checks every ejected worker twice a second; the state of healthy ones follows from the requests that they serve.

    A worker that answers, and whose ejection is over, gets a request for one token. An engine that hangs still answers
    /health; so clients' requests go there again only once it has computed something. The content of the answer does not
    matter: a model that cannot complete texts answers 400, and that is an answer.
    """

    def __init__(self, backends: Backends, limits: UpstreamLimits, supervisor: Supervisor) -> None:
        self._backends = backends
        self._limits = limits
        self._recorder = NoRecorder()
        self._tasks = WorkerTasks(supervisor, CHECK)
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Check until cancelled. A slow worker, or a check that fails, does not delay the others."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            for backend in self._backends.ejected():
                if backend.id not in self._tasks.running:
                    self._tasks.start(backend, self._check(backend))

    async def _check(self, backend: Backend) -> None:
        answered = await self._answers(backend)
        deployment = self._backends.of(backend.deployment)
        if deployment is None:
            return
        deployment.health.checked(backend, answered=answered)
        if answered and deployment.health.begin_trial(backend):
            await self._try(deployment, backend)

    async def _answers(self, backend: Backend) -> bool:
        what = "the answer to /health"
        async with self._slots:
            pool = self._backends.pools.of((backend.host, backend.port))
            try:
                answer = await fetch(pool, b"/health", what, limit_bytes=_MOST_BYTES, seconds=_ANSWER_SECONDS)
            except UpstreamError:
                return False
        return answer.status < _SERVER_ERROR

    async def _try(self, deployment: DeploymentRuntime, backend: Backend) -> None:
        """Have *backend* serve a request of one token, pinned to it, and judge its outcome."""
        sink = CollectingSink(_MOST_BYTES)
        model = backend.names[0] if backend.names else ""
        request = ServedRequest(
            sink=sink,
            completion=parse(TEXT, orjson.dumps(_TRIAL | {"model": model})),
            deployment=deployment,
            identity=RequestIdentity(TRIAL_ID, TRIAL_ID, (), ()),
            recorder=self._recorder,
            limits=self._limits,
            tier=NORMAL,
            clock=asyncio.get_running_loop().time,
            pinned=WorkerPair(backend, None, None),
        )
        outcome = await request.run()
        if (
            outcome.ending == "shutdown"
        ):  # a request ends with an answer where it is cancelled, a task does not
            raise asyncio.CancelledError
        failure = request.attempts.failure
        if failure is None or failure.status in _ANSWERS:
            deployment.health.passed_trial(backend)
        else:
            deployment.health.failed(backend, failure)
