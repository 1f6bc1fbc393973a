"""Scaling at the edge: reads the load of the deployments that are due, decides, keeps memory and last decision."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from turnout.api import load_deployment
from turnout.api.loading import InvalidResource
from turnout.scaling.decide import decide
from turnout.scaling.decision import Decision, Memory
from turnout_operator.kube.kinds import LLM_DEPLOYMENT
from turnout_operator.load import collector as scrapes
from turnout_operator.load.collector import Target
from turnout_operator.load.facts import load_facts
from turnout_operator.plan.claims import Settlement
from turnout_operator.plan.observed import observed_pod
from turnout_operator.plan.plan import Observed, current_desired
from turnout_operator.plan.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.api import LLMDeployment
    from turnout_operator.kube.client import Raw
    from turnout_operator.load.collector import Collector
    from turnout_operator.metrics import Metrics
    from turnout_operator.observe.store import Key, Store
    from turnout_operator.plan.observed import ObservedPod
    from turnout_runtime.supervision import Supervisor

LOG: Final = logging.getLogger(__name__)

TASK: Final = "scaling"
"""Name under which failures are counted."""
INTERVAL_SECONDS: Final = 5.0
"""Time between two decisions, in the deployment's seconds."""
MIN_INTERVAL_SECONDS: Final = 1.0
"""The same in real seconds: no deployment is read more often."""


@dataclass(slots=True)
class _State:
    due_at: float = 0.0
    """Monotonic time of the next decision."""
    memory: Memory = field(default_factory=Memory)
    decision: Decision | None = None
    reading: bool = False
    """Whether its workers are being read: one that takes long is not read twice at a time."""


class Scaler:
    """Decides for every deployment, each at its own pace."""

    def __init__(
        self,
        store: Store,
        collector: Collector,
        metrics: Metrics,
        router_namespace: str,
        tasks: Supervisor,
        *,
        acts: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._acts = acts
        """Whether this operator acts in a namespace. What is another's is neither read nor decided about."""
        self._collector = collector
        self._metrics = metrics
        self._router_namespace = router_namespace
        self._states: dict[Key, _State] = {}

    def decision(self, key: Key) -> Decision | None:
        """Return the last decision about a deployment. None: none was made since this operator began to act."""
        state = self._states.get(key)
        return None if state is None else state.decision

    def reasons(self) -> dict[str, str]:
        """Return the sentence of the last decision by deployment, also where it changed nothing."""
        return {str(key): state.decision.reason for key, state in self._states.items() if state.decision}

    def pods(self, key: Key) -> list[ObservedPod]:
        """Return the worker pods of a deployment with the load they told last."""
        found = (
            observed_pod(raw, self._collector.load(key, raw["metadata"].get("uid", "")))
            for raw in self._store.pods(key)
        )
        return [pod for pod in found if pod is not None]

    def tick(self, decided: Callable[[Key], None]) -> None:
        """Begin to read and decide for what is due; *decided* is called with each deployment once that is done.

        Each is a task of its own: what one deployment's workers do to their reader delays no other's decision.
        """
        now = time.monotonic()
        present = frozenset(key for key in self._store.keys(LLM_DEPLOYMENT) if self._acts(key.namespace))
        due: dict[Key, LLMDeployment] = {}
        for key in present:
            state = self._states.setdefault(key, _State())
            raw = self._store.get(LLM_DEPLOYMENT, key)
            if raw is None or state.reading or now < state.due_at:
                continue
            state.due_at = now + INTERVAL_SECONDS
            try:
                due[key] = load_deployment(raw)
            except InvalidResource:
                state.decision = None  # its condition says why
            except Exception as error:  # noqa: BLE001 - the others are still to be looked at
                self._tasks.note(TASK, error, detail=str(key))
        self._states = {key: state for key, state in self._states.items() if key in present}
        self._collector.forget(present)
        if not due:
            return
        routers = self._tasks.once(
            scrapes.TASK, self._collector.read_routers(_targets(self._store.routers(self._router_namespace)))
        )
        for key, deployment in due.items():
            state = self._states[key]
            interval = max(MIN_INTERVAL_SECONDS, INTERVAL_SECONDS / _scale(deployment))
            state.due_at, state.reading = now + interval, True
            self._tasks.once(
                TASK,
                self._round(key, deployment, interval, routers=routers, decided=decided),
                detail=str(key),
            )

    async def _round(
        self,
        key: Key,
        deployment: LLMDeployment,
        interval: float,
        *,
        routers: asyncio.Task[None],
        decided: Callable[[Key], None],
    ) -> None:
        scale, state = _scale(deployment), self._states.get(key)
        if state is None:
            return
        try:
            await asyncio.wait([routers])
            await self._collector.read(key, _targets(self._store.pods(key)), scale)
            if self._states.get(key) is state:
                self._decide(key, deployment, interval, scale)
        finally:
            state.reading = False
        decided(key)

    def _decide(self, key: Key, deployment: LLMDeployment, interval: float, scale: int) -> None:
        state, raw = self._states[key], self._store.get(LLM_DEPLOYMENT, key)
        if raw is None:
            return
        try:
            policy = policy_of(deployment.spec, interval * scale)
        except ValueError:
            state.decision = None  # its condition says why
            return
        pods = self.pods(key)
        observed = Observed(
            deployment, raw.get("status") or {}, self._store.children(key), pods, Settlement((), ())
        )
        facts = load_facts(
            policy,
            current_desired(observed),
            pods,
            self._collector.traffic(key),
            self._collector.occupancy(key),
            now=time.time(),
            scale=scale,
        )
        decision = decide(facts, policy, state.memory, time.monotonic() * scale)
        state.memory, state.decision = decision.memory, decision
        action = _action(decision)
        self._metrics.decisions.labels(
            str(key), action, decision.limit.reason if decision.limit else ""
        ).inc()
        if decision.changed:
            LOG.info("%s: %s%s", key, decision.reason, "" if decision.apply else " (not applied)")


def _action(decision: Decision) -> str:
    before, after = sum(decision.current.values()), sum(decision.desired.values())
    if not decision.changed:
        return "keep"
    return "up" if after > before else "down" if after < before else "rebalance"


def _scale(deployment: LLMDeployment) -> int:
    engine = deployment.spec.engine
    return engine.simulated.time_scale


def _targets(pods: tuple[Raw, ...]) -> list[Target]:
    """Return the pods that can be read: ready, with an address."""
    found = []
    for raw in pods:
        status, meta = raw.get("status", {}), raw["metadata"]
        ready = any(
            item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions", [])
        )
        if ready and status.get("podIP") and not meta.get("deletionTimestamp"):
            worker = observed_pod(raw)
            found.append(Target(meta["uid"], status["podIP"], None if worker is None else worker.role))
    return found
