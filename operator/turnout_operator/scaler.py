"""Runs scaling: reads the load of deployments that are due, decides, and keeps memory and last decision."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from turnout.api.loading import InvalidResource
from turnout.scaling.decide import decide
from turnout.scaling.decision import Memory, ScalingDecision
from turnout_operator.kube.kinds import LLM_DEPLOYMENT
from turnout_operator.load import collector as scrapes
from turnout_operator.load.collector import Target
from turnout_operator.load.facts import load_facts
from turnout_operator.load.pace import (
    INTERVAL_SECONDS,
    RESYNC_SECONDS,
    interval_seconds,
    pause_seconds,
)
from turnout_operator.plan.pods import is_ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_operator.kube.client import Raw
    from turnout_operator.load.collector import Collector
    from turnout_operator.metrics import Metrics
    from turnout_operator.observe.observer import Observer
    from turnout_operator.observe.store import Key, Store
    from turnout_operator.plan.observed import Observed
    from turnout_runtime.supervision import Supervisor

LOG: Final = logging.getLogger(__name__)

TASK: Final = "scaling"
"""Name under which failures are counted."""
ROUTERS_SECONDS: Final = 2.0
"""Time between two readings of the routers while a deployment is busy. For one whose time runs fast they are read as often
as it is."""
IDLE_ROUTERS_SECONDS: Final = 5.0
"""The same while none is: then they are read to see whether a request has come."""
MAX_ROUNDS: Final = 1000
"""Deployments whose round begins in the same tick; others follow in the next."""


@dataclass(slots=True)
class _State:
    due_at: float = 0.0
    """Monotonic time of the next decision."""
    awake_at: float = 0.0
    """Monotonic time before which a change does not bring it forward."""
    interval: float = INTERVAL_SECONDS
    """Time between two decisions while it is busy, in real seconds."""
    busy: bool = True
    """Whether the next decision follows after one such interval."""
    memory: Memory = field(default_factory=Memory)
    decision: ScalingDecision | None = None
    reading: bool = False
    """Whether its workers are being read: one that takes long is not read twice at a time."""
    reported: object = None
    """Summary of the decision that was reported last."""
    reported_at: float = 0.0
    """Monotonic time of that report."""


class Scaler:
    """Decides for every deployment, each at its own pace (`turnout_operator.load.pace`)."""

    def __init__(
        self,
        store: Store,
        observer: Observer,
        collector: Collector,
        metrics: Metrics,
        *,
        router_namespace: str,
        tasks: Supervisor,
        acts: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._store = store
        self._observer = observer
        self._tasks = tasks
        self._acts = acts
        """Whether this operator acts in a namespace. It neither reads nor decides about deployments in others."""
        self._collector = collector
        self._metrics = metrics
        self._router_namespace = router_namespace
        self._states: dict[Key, _State] = {}
        self._routers_due_at = 0.0

    def decision(self, key: Key) -> ScalingDecision | None:
        """Return the last decision about a deployment. None: none was made since this operator began to act."""
        state = self._states.get(key)
        return None if state is None else state.decision

    def reasons(self) -> dict[str, str]:
        """Return the sentence of the last decision by deployment, also where it changed nothing."""
        return {str(key): state.decision.reason for key, state in self._states.items() if state.decision}

    def wake(self, key: Key) -> None:
        """Bring the next decision about a deployment forward, because it has changed."""
        state = self._states.get(key)
        if state is not None:
            state.due_at = min(state.due_at, state.awake_at)

    def tick(self, decided: Callable[[Key], None]) -> None:
        """Start to read and decide for each deployment that is due; *decided* is called where the decision is a new one.

        Each is a task of its own: slow workers of one deployment delay no other's decision.
        """
        now = time.monotonic()
        present = frozenset(self._store.keys(LLM_DEPLOYMENT))
        for key in self._states.keys() - present:
            del self._states[key]
        self._observer.forget(present)
        for key in present - self._states.keys():
            self._states[key] = _State()
        self._collector.forget(present)
        if now >= self._routers_due_at and present:
            states = self._states.values()
            most = ROUTERS_SECONDS if any(state.busy for state in states) else IDLE_ROUTERS_SECONDS
            self._routers_due_at = now + min(most, *(state.interval for state in states))
            routers = [
                Target(raw["metadata"]["uid"], raw["status"]["podIP"])
                for raw in self._store.routers(self._router_namespace)
                if _can_be_read(raw)
            ]
            self._tasks.once(scrapes.TASK, self._collector.read_routers(routers))
        for key in self._collector.take_news():
            self.wake(key)
        due = [
            key
            for key, state in self._states.items()
            if now >= state.due_at and not state.reading and self._acts(key.namespace)
        ]
        for key in sorted(due, key=lambda key: self._states[key].due_at)[:MAX_ROUNDS]:
            state = self._states[key]
            state.due_at, state.reading = now + state.interval, True
            self._tasks.once(TASK, self._round(key, state, decided), detail=str(key))

    async def _round(self, key: Key, state: _State, decided: Callable[[Key], None]) -> None:
        began = time.monotonic()
        state.awake_at = began + state.interval
        try:
            observed = self._usable(key, state)
            if observed is not None:
                await self._read(key, observed)
                observed = self._usable(key, state)
            if observed is None or self._states.get(key) is not state:
                return
            decision = self._decide(key, observed, state)
        finally:
            state.reading = False
        state.interval = interval_seconds(_scale(observed))
        state.awake_at = began + state.interval
        pause = pause_seconds(observed, decision, state.interval)
        state.due_at, state.busy = began + pause, pause <= state.interval
        summary = _summary(observed, decision)
        if decision.changed or summary != state.reported or began - state.reported_at >= RESYNC_SECONDS:
            state.reported, state.reported_at = summary, began
            decided(key)

    def _usable(self, key: Key, state: _State) -> Observed | None:
        try:
            return self._observer.observe(key)
        except InvalidResource:
            state.decision = None  # its condition says why
            return None

    async def _read(self, key: Key, observed: Observed) -> None:
        workers = [
            Target(pod.uid, pod.address, pod.role) for pod in observed.pods if pod.ready and pod.address
        ]
        await self._collector.read(key, workers, _scale(observed))

    def _decide(self, key: Key, observed: Observed, state: _State) -> ScalingDecision:
        scale = _scale(observed)
        facts = load_facts(
            observed.policy,
            observed.desired,
            observed.pods,
            observed.traffic,
            observed.occupancy,
            now=time.time(),
            scale=scale,
        )
        decision = decide(facts, observed.policy, state.memory, time.monotonic() * scale)
        state.memory, state.decision = decision.memory, decision
        action = _action(decision)
        self._metrics.decisions.labels(
            str(key), action, decision.limit.reason if decision.limit else ""
        ).inc()
        if decision.changed:
            LOG.info("%s: %s%s", key, decision.reason, "" if decision.apply else " (not applied)")
        return decision


def _summary(observed: Observed, decision: ScalingDecision) -> Any:
    """Return the part of a decision and of the load that status reports: where it changes, the status is written."""
    goodput = observed.goodput_percent
    return dict(decision.desired), decision.apply, decision.limit, None if goodput is None else int(goodput)


def _action(decision: ScalingDecision) -> str:
    before, after = sum(decision.current.values()), sum(decision.desired.values())
    if not decision.changed:
        return "keep"
    return "up" if after > before else "down" if after < before else "rebalance"


def _scale(observed: Observed) -> int:
    return observed.deployment.spec.engine.simulated.time_scale


def _can_be_read(router: Raw) -> bool:
    return is_ready(router) and bool(router["status"].get("podIP"))
