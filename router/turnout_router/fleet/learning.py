"""What workers report of their models (`GET /v1/models`): read now and then, for clients and for the router's own checks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from turnout.routing.facts import ModelCard, ModelFacts, model_facts
from turnout_router.collector import collector_off
from turnout_router.errors import UpstreamError
from turnout_router.fleet.worker_tasks import WorkerTasks
from turnout_router.tasks import MODEL
from turnout_router.upstream.fetch import fetch

if TYPE_CHECKING:
    from turnout.routing import Backend, Fleet
    from turnout_router.fleet.backends import Backends
    from turnout_runtime.supervision import Supervisor

LOOK_SECONDS: Final = 1.0
"""Interval of the check for workers whose list is due: that of a new worker is known about as soon."""
ASK_SECONDS: Final = 60.0
"""Until the next request to a worker that answered."""
RETRY_SECONDS: Final = 10.0
"""Until the next request to a worker that did not."""
ANSWER_SECONDS: Final = 2.0
AT_ONCE: Final = 8
"""Requests at a time."""
MAX_ANSWER_BYTES: Final = 256 * 1024
MAX_CARDS: Final = 1024
MAX_TEXT: Final = 1024
"""Characters of a name or a path."""
_OK: Final = 200

_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]


class _Card(msgspec.Struct, gc=False):
    id: _Text
    root: _Text | None = None
    parent: _Text | None = None
    max_model_len: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)] | None = None
    created: Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)] | None = None


class _Answer(msgspec.Struct, gc=False):
    data: Annotated[list[_Card], msgspec.Meta(max_length=MAX_CARDS)]


_ANSWERS: Final = msgspec.json.Decoder(_Answer)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class _Report:
    """What one worker reported last, and its revision then. No cards: nothing yet."""

    deployment: str
    revision: str
    cards: tuple[ModelCard, ...]


class Facts:
    """What is known of each deployment's model. Bounded by the fleet's workers and `MAX_ANSWER_BYTES` of each."""

    def __init__(self) -> None:
        self._reports: dict[str, _Report] = {}
        self._adapters: dict[str, frozenset[str]] = {}
        self._facts: dict[str, ModelFacts] = {}

    def of(self, deployment: str) -> ModelFacts | None:
        """Return what is known of the model of *deployment*, None if no worker has reported anything."""
        return self._facts.get(deployment)

    def retain(self, fleet: Fleet) -> None:
        """Keep reports of the workers of *fleet* alone, and only those of their present revision."""
        present = {b.id: b for group in fleet.backends.values() for b in group}
        self._reports = {
            id_: report
            for id_, report in self._reports.items()
            if (now := present.get(id_)) is not None
            and (now.deployment, now.revision) == (report.deployment, report.revision)
        }
        self._adapters = {key: route.adapters for key, route in fleet.deployments.items()}
        self._facts = {}
        for key in {report.deployment for report in self._reports.values()}:
            self._combine(key)

    def learn(self, backend: Backend, cards: tuple[ModelCard, ...]) -> None:
        """Take note of the *cards* that *backend* reports. Without any, nothing changes."""
        report = _Report(backend.deployment, backend.revision, cards)
        if cards and self._reports.get(backend.id) != report:
            self._reports[backend.id] = report
            self._combine(backend.deployment)

    def _combine(self, deployment: str) -> None:
        reports = [
            (each.revision, each.cards) for each in self._reports.values() if each.deployment == deployment
        ]
        self._facts[deployment] = model_facts(reports, self._adapters.get(deployment, frozenset()))


class Learner:
    """Requests each worker's list of models: when it is new or of another revision, and then once a minute."""

    def __init__(self, backends: Backends, supervisor: Supervisor) -> None:
        self._backends = backends
        self._tasks = WorkerTasks(supervisor, MODEL)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._due: dict[str, tuple[str, float]] = {}  # revision, and when the next request is due

    async def run(self) -> None:
        """Request until cancelled. A slow worker does not delay the others."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            busy = self._tasks.running | {backend.id for backend in self._backends.ejected()}
            known, self._due = self._due, {}
            for backend in [b for group in self._backends.fleet.backends.values() for b in group]:
                due = known.get(backend.id)
                if due is None or due[0] != backend.revision:
                    due = backend.revision, 0.0
                self._due[backend.id] = due
                if due[1] <= loop.time() and backend.id not in busy:
                    self._tasks.start(backend, self._ask(backend))

    async def _ask(self, backend: Backend) -> None:
        self._put_off(backend, RETRY_SECONDS)  # also where something is raised
        async with self._slots:
            cards = await self._answer_of(backend)
        if cards and self._is_present(backend):
            self._backends.facts.learn(backend, cards)
            self._put_off(backend, ASK_SECONDS)

    def _put_off(self, backend: Backend, seconds: float) -> None:
        if self._due.get(backend.id, ("", 0.0))[0] == backend.revision:
            self._due[backend.id] = backend.revision, asyncio.get_running_loop().time() + seconds

    def _is_present(self, backend: Backend) -> bool:
        """Return whether *backend* is still part of the fleet, in the same revision."""
        group = self._backends.fleet.backends.get(backend.deployment, ())
        return any(b.id == backend.id and b.revision == backend.revision for b in group)

    async def _answer_of(self, backend: Backend) -> tuple[ModelCard, ...]:
        """Return what *backend* answers; nothing where it does not, or what cannot be read."""
        pool = self._backends.pools.of((backend.host, backend.port))
        what = "the answer to /v1/models"
        try:
            answer = await fetch(
                pool, b"/v1/models", what, limit_bytes=MAX_ANSWER_BYTES, seconds=ANSWER_SECONDS
            )
        except UpstreamError:
            return ()
        return cards_in(answer.body) if answer.status == _OK else ()


def cards_in(body: bytes) -> tuple[ModelCard, ...]:
    """Return the models that *body* lists, none where it is no such list."""
    try:
        with collector_off(len(body)):
            cards = _ANSWERS.decode(body).data
    except _UNREADABLE:
        return ()
    return tuple(
        ModelCard(each.id, each.root, each.parent, each.max_model_len, each.created) for each in cards
    )
