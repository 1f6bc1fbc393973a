"""One pass over one resource: observe, plan, carry out, report. What to do is decided in ``plan``."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from turnout.api import load_budget, load_route
from turnout.api.loading import InvalidResource
from turnout_operator.effects import transient
from turnout_operator.errors import ChildNameTaken
from turnout_operator.kube.kinds import LLM_DEPLOYMENT, LLM_ROUTE, TOKEN_BUDGET
from turnout_operator.plan.budget import budget_status, invalid_budget
from turnout_operator.plan.conditions import MAX_MESSAGE
from turnout_operator.plan.notices import CHILD_NAME_TAKEN, overridden, taken
from turnout_operator.plan.plan import plan
from turnout_operator.plan.route import invalid_route, route_status, targets_of
from turnout_operator.plan.status import condition, invalid, with_overrides

if TYPE_CHECKING:
    from turnout_operator.effects import Executor
    from turnout_operator.errors import ApiError
    from turnout_operator.kube.client import Raw
    from turnout_operator.metrics import Metrics
    from turnout_operator.name_claims import NameClaims
    from turnout_operator.observe.observer import Observer
    from turnout_operator.observe.store import Key, Store
    from turnout_operator.plan.config import PlanConfig
    from turnout_operator.plan.effects import Plan
    from turnout_operator.scaler import Scaler

LOG: Final = logging.getLogger(__name__)

TAKEN_REQUEUE_SECONDS: Final = 15.0
"""How soon to look again whether a child's name is free: its object is not watched."""


class Reconciler:
    """Brings resources to what they should be, one pass at a time."""

    def __init__(
        self,
        store: Store,
        *,
        observer: Observer,
        executor: Executor,
        scaler: Scaler,
        name_claims: NameClaims,
        metrics: Metrics,
        config: PlanConfig,
    ) -> None:
        self._store = store
        self._observer = observer
        self._executor = executor
        self._scaler = scaler
        self._name_claims = name_claims
        self._metrics = metrics
        self._config = config
        self._measured: set[Key] = set()
        """Deployments that have metrics."""

    async def deployment(self, key: Key) -> float | None:
        """Bring an LLMDeployment to what it should be; return when to look again, in seconds. Raise ApiError."""
        raw = self._store.get(LLM_DEPLOYMENT, key)
        if raw is None:
            if (
                key in self._measured
            ):  # removing metrics is costly, and each deleted child causes another pass
                self._measured.discard(key)
                self._metrics.forget(str(key))
            self._executor.write_history.forget_owner((LLM_DEPLOYMENT, key))
            return None
        if raw["metadata"].get("deletionTimestamp"):
            return None  # the garbage collector takes what it owns
        now = time.time()
        try:
            observed = self._observer.observe(key)
            if observed is None:
                return None
            planned = plan(observed, self._scaler.decision(key), self._config, now)
        except ValueError as error:
            LOG.warning("%s cannot be used: %s", key, error)
            await self._executor.write_status(raw, invalid(raw, str(error), now))
            return None
        planned = self._executor.sift(planned)
        failed = await self._executor.change(raw, planned)
        status = planned.status if failed is None else _with_failure(planned.status, failed)
        said = self._executor.write_history.sentences((LLM_DEPLOYMENT, key))
        status = with_overrides(status, said, raw, now)
        written = await self._executor.write_status(raw, status)
        before = raw.get("status") or {}
        # A status that is not written, because another writer overwrites it again and again, must post no Events each time.
        news = (*planned.notices, *taken(before, status), *overridden(before, status)) if written else ()
        await self._executor.post(raw, news if failed else (*news, *planned.milestones))
        self._report(key, planned, status, acted=failed is None, changed=written)
        if isinstance(failed, ChildNameTaken):
            return TAKEN_REQUEUE_SECONDS  # the condition reports it; it ends when a person acts
        if failed is not None:
            raise failed
        # No watch event follows when a status may be written again, or when the report of overwritten fields ends.
        due = None if written else self._executor.status_due_in(raw, status) or None
        ends = self._executor.write_history.changes_in((LLM_DEPLOYMENT, key))
        waits = (planned.requeue_seconds, due, None if ends is None else ends + 1.0)
        return min((wait for wait in waits if wait is not None), default=None)

    async def route(self, key: Key) -> None:
        """Bring the status of an LLMRoute up to date. Raise ApiError."""
        raw = self._store.get(LLM_ROUTE, key)
        if raw is None:
            self._executor.write_history.forget_owner((LLM_ROUTE, key))
        if raw is None or raw["metadata"].get("deletionTimestamp"):
            return
        now = time.time()
        present = {
            target for target in targets_of(raw) if self._store.get(LLM_DEPLOYMENT, key._replace(name=target))
        }
        try:
            status = route_status(
                load_route(raw),
                present,
                self._name_claims.assignment(LLM_ROUTE, key),
                raw.get("status") or {},
                now,
            )
        except InvalidResource as error:
            status = invalid_route(raw, str(error), now)
        await self._executor.write_status(raw, status)

    async def budget(self, key: Key) -> None:
        """Bring the status of a TokenBudget up to date. Raise ApiError."""
        raw = self._store.get(TOKEN_BUDGET, key)
        if raw is None or raw["metadata"].get("deletionTimestamp"):
            return
        now = time.time()
        try:
            status = budget_status(
                load_budget(raw),
                self._name_claims.assignment(TOKEN_BUDGET, key),
                self._config.namespace,
                raw.get("status") or {},
                now,
            )
        except InvalidResource as error:
            status = invalid_budget(raw, str(error), now)
        await self._executor.write_status(raw, status)

    def _report(self, key: Key, planned: Plan, status: Raw, *, acted: bool, changed: bool) -> None:
        self._measured.add(key)
        for role in ("prefill", "decode"):
            pool = planned.status.get(role)
            if pool is not None:
                self._metrics.desired.labels(str(key), role).set(pool["desired"])
                self._metrics.ready.labels(str(key), role).set(pool["ready"])
        goodput = planned.status.get("goodputPercent")
        if goodput is not None:
            self._metrics.goodput.labels(str(key)).set(goodput)
        done = [
            *(f"applied {manifest['kind']} {manifest['metadata']['name']}" for manifest in planned.apply),
            *(f"patched {patch.name}" for patch in planned.patches),
            *(f"deleted {removal.kind} {removal.name}" for removal in planned.delete),
        ]
        if done and acted:
            LOG.info("%s: %s; %s", key, planned.summary or "brought up to date", ", ".join(done))
        elif changed:
            ready = condition(status, "Ready")
            LOG.info("%s: %s", key, ready.get("message", planned.summary))


def _with_failure(status: dict[str, Any], error: ApiError | ChildNameTaken) -> dict[str, Any]:
    """Return *status* with the failure in the condition Ready, unless the error is transient."""
    if transient(error):
        return status
    conditions = []
    for item in status["conditions"]:
        if item["type"] != "Ready":
            conditions.append(item)
        elif isinstance(error, ChildNameTaken):
            message = f"{error}; {item['message']}"
            conditions.append({**item, "reason": CHILD_NAME_TAKEN, "message": message[:MAX_MESSAGE]})
        elif item["status"] == "True":
            conditions.append(
                {**item, "message": f"{item['message']}; changes are refused: {error}"[:MAX_MESSAGE]}
            )
        else:
            conditions.append(
                {**item, "reason": "ApplyFailed", "message": f"the API server refuses: {error}"[:MAX_MESSAGE]}
            )
    return {**status, "conditions": conditions}
