"""What is known of a deployment now, put together once and read by scaling and reconciling alike.

It is made anew only where something has changed: an object of the API server's, the figures of workers or routers, or
an assignment of names. A spec is parsed once per version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnout.api import load_deployment
from turnout.api.loading import InvalidResource
from turnout_operator.kube.kinds import LLM_DEPLOYMENT
from turnout_operator.load.pace import interval_seconds
from turnout_operator.plan.observed import Observed, Specification, observe
from turnout_operator.plan.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from turnout_operator.kube.client import Raw
    from turnout_operator.load.collector import Collector
    from turnout_operator.name_claims import NameClaims
    from turnout_operator.observe.store import Key, Store


@dataclass(slots=True)
class _Known:
    """What was made of one deployment last."""

    version: tuple[str, str]
    """Its uid and resourceVersion."""
    specification: Specification | None
    problem: str = ""
    """Why there is no specification."""
    changes: tuple[int, int] = (-1, -1)
    """How often objects, and figures, had changed when *observed* was made."""
    observed: Observed | None = None


class Observer:
    """Reads the store and the collector."""

    def __init__(self, store: Store, collector: Collector, name_claims: NameClaims) -> None:
        self._store = store
        self._collector = collector
        self._name_claims = name_claims
        self._known: dict[Key, _Known] = {}

    def observe(self, key: Key) -> Observed | None:
        """Return what is known of a deployment; None where there is none. Raise InvalidResource for a spec that cannot be used."""
        raw = self._store.get(LLM_DEPLOYMENT, key)
        if raw is None:
            return None
        known = self._parsed(key, raw)
        if known.specification is None:
            raise InvalidResource(known.problem)
        changes = self._store.changes(key), self._collector.reads(key)
        names = self._name_claims.assignment(LLM_DEPLOYMENT, key)
        if known.observed is None or known.changes != changes or known.observed.names != names:
            known.observed = observe(
                known.specification,
                raw.get("status") or {},
                self._store.children(key),
                self._store.pods(key),
                load=lambda uid: self._collector.load(key, uid),
                names=names,
                traffic=self._collector.traffic(key),
                occupancy=self._collector.occupancy(key),
            )
            known.changes = changes
        return known.observed

    def forget(self, present: Collection[Key]) -> None:
        """Drop all deployments that are not *present* any more."""
        for key in [key for key in self._known if key not in present]:
            del self._known[key]

    def _parsed(self, key: Key, raw: Raw) -> _Known:
        version = raw["metadata"].get("uid", ""), raw["metadata"].get("resourceVersion", "")
        known = self._known.get(key)
        if known is None or known.version != version:
            known = self._known[key] = _parse(version, raw)
        return known


def _parse(version: tuple[str, str], raw: Raw) -> _Known:
    try:
        # What the status says is read as it is: it may be of any version of the operator.
        deployment = load_deployment({part: value for part, value in raw.items() if part != "status"})
        scale = deployment.spec.engine.simulated.time_scale
        policy = policy_of(deployment.spec, interval_seconds(scale) * scale)
    except ValueError as error:  # InvalidResource, or a duration of an older schema
        return _Known(version, None, str(error))
    return _Known(version, Specification(deployment, policy))
