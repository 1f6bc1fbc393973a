"""What the router counts. Times are seconds of the deployment's own time (real seconds times its time scale).

Children of labelled metrics are looked up once per deployment and kept, for a look-up costs more than the count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

_TTFT_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80)
_ITL_BUCKETS: Final = (
    0.0025,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.025,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.2,
    0.5,
    1,
)
_DURATION_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300, 600)

NO_DEPLOYMENT: Final = ""
"""Label of requests that named no deployment: unknown names, malformed bodies, wrong keys."""


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        one = ("deployment",)
        two = ("deployment", "reason")
        self.requests = Counter(
            "turnout_router_requests",
            "Answered requests by HTTP status; 502 also a stream that broke, 499 a client that left.",
            ("deployment", "code"),
            registry=registry,
        )
        self.arrivals = Counter(
            "turnout_router_arrivals", "Requests that arrived for a deployment.", one, registry=registry
        )
        self.finished = Counter(
            "turnout_router_finished",
            "Requests that ran to their end, or failed for want of capacity or of a worker.",
            one,
            registry=registry,
        )
        self.good = Counter(
            "turnout_router_good", "Finished requests that met both objectives.", one, registry=registry
        )
        self.prompt_tokens = Counter(
            "turnout_router_prompt_tokens", "Prompt tokens, from usage.", one, registry=registry
        )
        self.output_tokens = Counter(
            "turnout_router_output_tokens", "Output tokens, from usage.", one, registry=registry
        )
        self.in_flight = Gauge("turnout_router_in_flight", "Requests being served.", one, registry=registry)
        self.first_token = Histogram(
            "turnout_router_time_to_first_token_seconds",
            "From the request to the first token of a stream.",
            one,
            buckets=_TTFT_BUCKETS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "turnout_router_inter_token_latency_seconds",
            "Mean time between the tokens of a stream: (last - first) / (tokens - 1).",
            one,
            buckets=_ITL_BUCKETS,
            registry=registry,
        )
        self.duration = Histogram(
            "turnout_router_request_duration_seconds",
            "From the request to the end of its answer, of requests that ran to their end.",
            one,
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self.retries = Counter(
            "turnout_router_retries",
            "Requests sent to another worker, by what went wrong.",
            two,
            registry=registry,
        )
        self.local_prefills = Counter(
            "turnout_router_local_prefills",
            "Prompts computed by the decode worker itself, by why.",
            two,
            registry=registry,
        )
        self.fleet_stale = Gauge(
            "turnout_router_fleet_stale",
            "1 while the fleet cannot be read and the last one known is used.",
            registry=registry,
        )
        self.fleet_updates = Counter(
            "turnout_router_fleet_updates", "Changes of the fleet that were taken over.", registry=registry
        )
        self.fleet_rejected = Counter(
            "turnout_router_fleet_rejected",
            "Configurations and resources that were not taken over because they are invalid.",
            registry=registry,
        )
        self._deployments: dict[str, DeploymentMetrics] = {}

    def of(self, deployment: str) -> DeploymentMetrics:
        """Return the metrics of *deployment*."""
        known = self._deployments.get(deployment)
        if known is None:
            known = self._deployments[deployment] = DeploymentMetrics(self, deployment)
        return known

    def retain(self, deployments: Iterable[str]) -> None:
        """Forget deployments that are gone, so that the number of series stays that of the fleet."""
        wanted = {NO_DEPLOYMENT, *deployments}
        for key in [key for key in self._deployments if key not in wanted]:
            self._deployments.pop(key).remove()


class DeploymentMetrics:
    """The children of one deployment's label."""

    def __init__(self, metrics: Metrics, deployment: str) -> None:
        self._metrics = metrics
        self._deployment = deployment
        self._codes: dict[int, Counter] = {}
        self._retries: dict[str, Counter] = {}
        self._local: dict[str, Counter] = {}
        if deployment != NO_DEPLOYMENT:
            self.arrivals = metrics.arrivals.labels(deployment)
            self.finished = metrics.finished.labels(deployment)
            self.good = metrics.good.labels(deployment)
            self.prompt_tokens = metrics.prompt_tokens.labels(deployment)
            self.output_tokens = metrics.output_tokens.labels(deployment)
            self.in_flight = metrics.in_flight.labels(deployment)
            self.first_token = metrics.first_token.labels(deployment)
            self.inter_token = metrics.inter_token.labels(deployment)
            self.duration = metrics.duration.labels(deployment)

    def answered(self, status: int) -> None:
        """Count an answer."""
        counter = self._codes.get(status)
        if counter is None:
            counter = self._codes[status] = self._metrics.requests.labels(self._deployment, str(status))
        counter.inc()

    def retried(self, reason: str) -> None:
        """Count a retry."""
        counter = self._retries.get(reason)
        if counter is None:
            counter = self._retries[reason] = self._metrics.retries.labels(self._deployment, reason)
        counter.inc()

    def prefilled_locally(self, reason: str) -> None:
        """Count a prompt that the decode worker computes itself."""
        counter = self._local.get(reason)
        if counter is None:
            counter = self._local[reason] = self._metrics.local_prefills.labels(self._deployment, reason)
        counter.inc()

    def remove(self) -> None:
        """Take this deployment's series away."""
        m, key = self._metrics, self._deployment
        for code in self._codes:
            m.requests.remove(key, str(code))
        for reason in self._retries:
            m.retries.remove(key, reason)
        for reason in self._local:
            m.local_prefills.remove(key, reason)
        single = (m.arrivals, m.finished, m.good, m.prompt_tokens, m.output_tokens, m.in_flight)
        for metric in (*single, m.first_token, m.inter_token, m.duration):
            metric.remove(key)
