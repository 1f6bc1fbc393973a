"""The fleet in use: one `DeploymentRuntime` for each of its deployments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnout.routing import Fleet
from turnout.routing.admission import AdmissionLimits
from turnout_router.fleet.deployment import ASSUMED_KV_TOKENS, DeploymentRuntime, RouterParts
from turnout_router.fleet.learning import Facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing import Backend, HealthPolicy
    from turnout.routing.load_tracker import LoadTracker
    from turnout_router.fleet.kvevents import ExactMode
    from turnout_router.fleet.peers.sender import PeerSender
    from turnout_router.metrics import Metrics
    from turnout_router.upstream.pools import ConnectionPools


class Backends:
    """Keeps the fleet and its deployments' runtimes up to date."""

    def __init__(
        self,
        pools: ConnectionPools,
        metrics: Metrics,
        policy: HealthPolicy,
        clock: Callable[[], float],
        admission: AdmissionLimits | None = None,
    ) -> None:
        self.fleet = Fleet()
        self.pools = pools
        self.facts = Facts()
        """What workers report of their models."""
        self._metrics = metrics
        self._parts = RouterParts(pools, policy, clock, admission or AdmissionLimits(), self.facts)
        self._runtimes: dict[str, DeploymentRuntime] = {}

    def of(self, deployment: str) -> DeploymentRuntime | None:
        """Return the runtime of *deployment*, None where the fleet has none of that name."""
        return self._runtimes.get(deployment)

    def update(self, fleet: Fleet) -> None:
        """Use *fleet* from now on."""
        self.fleet = fleet
        self.facts.retain(fleet)
        for key in [key for key in self._runtimes if key not in fleet.deployments]:
            self._runtimes.pop(key).close()
        self._metrics.retain(fleet.deployments)
        for key, route in fleet.deployments.items():
            runtime = self._runtimes.get(key)
            if runtime is None:
                metrics = self._metrics.of(key)
                runtime = self._runtimes[key] = DeploymentRuntime(route, self._parts, metrics)
            runtime.update(route, fleet.backends.get(key, ()))
        present = [b for group in fleet.backends.values() for b in group]
        if self._parts.exact is not None or any(b.kv_events is not None for b in present):
            self._follow_events(fleet)
        self.pools.retain((b.host, b.port) for b in present)
        self._metrics.fleet_updates.inc()

    def report_to(self, sender: PeerSender) -> None:
        """Report this router's requests to other routers through *sender*."""
        self._parts.sender = sender

    def stop(self) -> None:
        """Follow no worker's events any more."""
        if self._parts.exact is not None:
            self._parts.exact.stop()

    def _follow_events(self, fleet: Fleet) -> None:
        exact = self._parts.exact
        if exact is None:
            exact = self._parts.exact = self._exact_mode()
        trackers = {key: one.policy.tracker for key, one in self._runtimes.items() if one.policy is not None}
        exact.update(fleet, trackers)

    def _exact_mode(self) -> ExactMode:
        from turnout_router.fleet.kvevents import ExactMode  # noqa: PLC0415 - ZeroMQ is loaded only where it is used

        return ExactMode(
            self.pools, self._parts.clock, self._metrics.registry, lambda b: b.kv_tokens or ASSUMED_KV_TOKENS
        )

    def load_tracker_of(self, deployment: str) -> tuple[LoadTracker, float] | None:
        """Return the tracker of *deployment* and its time scale; None where no prefix-aware policy serves it."""
        runtime = self._runtimes.get(deployment)
        if runtime is None or runtime.policy is None:
            return None
        return runtime.policy.tracker, runtime.clock.scale

    def compared(self) -> list[Backend]:
        """Return the workers among which a prefix-aware policy has a choice."""
        return [backend for runtime in self._runtimes.values() for backend in runtime.compared]

    def ejected(self) -> list[Backend]:
        """Return the workers that are ejected now."""
        return [
            backend
            for runtime in self._runtimes.values()
            if not runtime.health.all_healthy
            for backend in runtime.backends
            if runtime.health.is_ejected(backend)
        ]

    def describe(self) -> dict[str, Any]:
        """Return the fleet with loads and health, for people."""
        return {
            "deployments": {key: one.describe() for key, one in self._runtimes.items()},
            "names": {name: dict(served.targets) for name, served in self.fleet.names.items()},
            "retryBudgets": {key: one.retry_tokens for key, one in self._runtimes.items()},
        }
