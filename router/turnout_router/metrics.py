"""The router's metrics. Times are seconds of the deployment's own time (real seconds times its time scale).

Counts are plain numbers of the event loop's thread, converted to Prometheus' form when they are scraped: its own client
takes a lock and checks its arguments at every step, which cost an eighth of a request's CPU time.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from turnout import metrics as catalog
from turnout_router.families import counter_family, gauge_family, histogram_family
from turnout_router.tasks import LOOP, TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import HistogramMetricFamily, Metric

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

_INFINITE: Final = float("inf")

NO_DEPLOYMENT: Final = ""
"""Label of requests that named no deployment: unknown names, malformed bodies, wrong keys."""

_COUNTERS: Final = (
    ("arrivals", catalog.ROUTER_ARRIVALS),
    ("finished", catalog.ROUTER_FINISHED),
    ("good", catalog.ROUTER_GOOD),
    ("prompt_tokens", catalog.ROUTER_PROMPT_TOKENS),
    ("output_tokens", catalog.ROUTER_OUTPUT_TOKENS),
)
_GAUGES: Final = (
    ("in_flight", catalog.ROUTER_IN_FLIGHT),
    ("waiting", catalog.ROUTER_WAITING),
)
_HISTOGRAMS: Final = (
    ("first_token", catalog.ROUTER_TIME_TO_FIRST_TOKEN),
    ("inter_token", catalog.ROUTER_INTER_TOKEN_LATENCY),
    ("duration", catalog.ROUTER_REQUEST_DURATION),
)
_COUNTERS_BY: Final = (
    ("codes", catalog.ROUTER_REQUESTS),
    ("shed", catalog.ROUTER_SHED),
    ("retries", catalog.ROUTER_RETRIES),
    ("local_prefills", catalog.ROUTER_LOCAL_PREFILLS),
    ("scrapes", catalog.ROUTER_SCRAPES),
)


class Distribution:
    """A histogram: how many observations fell into each bucket (value <= bound), and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count *value*."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, label: str) -> None:
        """Write it into *family*, cumulative as Prometheus has it."""
        buckets = []
        below = 0
        for bound, count in zip((*self._bounds, _INFINITE), self._counts, strict=True):
            below += count
            buckets.append((str(float(bound)) if bound < _INFINITE else "+Inf", below))
        family.add_metric([label], buckets, self._sum)


class WaitingTime:
    """Requests that wait in the router for a worker of one role: their number, and that number summed over time."""

    __slots__ = ("_clock", "_number", "_seconds", "_since")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._number = 0
        self._seconds = 0.0
        self._since = clock()

    def add(self, number: int) -> None:
        """Count so many more, or fewer."""
        self._seconds, self._since = self.seconds, self._clock()
        self._number += number

    @property
    def number(self) -> int:
        """How many wait now."""
        return self._number

    @property
    def seconds(self) -> float:
        """Seconds that requests have waited so far, in total."""
        return self._seconds + self._number * (self._clock() - self._since)


class DeploymentMetrics:
    """One deployment's counters, which other modules increment; `_COUNTERS` and the like describe each of them."""

    __slots__ = (
        "arrivals",
        "codes",
        "duration",
        "finished",
        "first_token",
        "good",
        "held",
        "in_flight",
        "inter_token",
        "local_prefills",
        "output_tokens",
        "prompt_tokens",
        "retries",
        "scrapes",
        "shed",
        "waiting",
    )

    def __init__(self) -> None:
        self.arrivals = 0
        self.finished = 0
        self.good = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.in_flight = 0
        self.waiting = 0
        self.shed: dict[str, int] = {}
        self.first_token = Distribution(_TTFT_BUCKETS)
        self.inter_token = Distribution(_ITL_BUCKETS)
        self.duration = Distribution(_DURATION_BUCKETS)
        self.codes: dict[int, int] = {}
        self.retries: dict[str, int] = {}
        self.local_prefills: dict[str, int] = {}
        self.scrapes: dict[str, int] = {}
        self.held: dict[str, WaitingTime] = {}
        """By the role of the worker that they wait for; empty where the deployment has no dispatch queue."""

    def answered(self, status: int) -> None:
        """Count an answer."""
        self.codes[status] = self.codes.get(status, 0) + 1

    def retried(self, reason: str) -> None:
        """Count a retry."""
        self.retries[reason] = self.retries.get(reason, 0) + 1

    def turned_away(self, reason: str) -> None:
        """Count a request for which there was no room."""
        self.shed[reason] = self.shed.get(reason, 0) + 1

    def scraped(self, outcome: str) -> None:
        """Count a metrics page that was asked for."""
        self.scrapes[outcome] = self.scrapes.get(outcome, 0) + 1

    def prefilled_locally(self, reason: str) -> None:
        """Count a prompt that the decode worker computes itself."""
        self.local_prefills[reason] = self.local_prefills.get(reason, 0) + 1


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.fleet_stale = self._gauge(catalog.ROUTER_FLEET_STALE)
        self.unreadable = self._gauge(catalog.ROUTER_NAMESPACE_UNREADABLE)
        self.fleet_updates = self._counter(catalog.ROUTER_FLEET_UPDATES)
        self.fleet_rejected = self._counter(catalog.ROUTER_FLEET_REJECTED)
        failures = self._counter(catalog.ROUTER_TASK_FAILURES)
        self._task_failures = {name: failures.labels(name) for name in TASKS}
        self._deployments: dict[str, DeploymentMetrics] = {}
        self.registry.register(self)

    def task_failed(self, name: str) -> None:
        """Count a failure of the task *name*, one of `TASKS`."""
        self._task_failures.get(name, self._task_failures[LOOP]).inc()

    def of(self, deployment: str) -> DeploymentMetrics:
        """Return the metrics of *deployment*."""
        known = self._deployments.get(deployment)
        if known is None:
            known = self._deployments[deployment] = DeploymentMetrics()
        return known

    def retain(self, deployments: Iterable[str]) -> None:
        """Forget deployments that are gone, so that the number of series stays that of the fleet."""
        wanted = {NO_DEPLOYMENT, *deployments}
        for key in [key for key in self._deployments if key not in wanted]:
            del self._deployments[key]

    def collect(self) -> Iterator[Metric]:
        """Return all that is counted per deployment, in Prometheus' form."""
        everyone = dict(self._deployments)
        deployments = {key: one for key, one in everyone.items() if key != NO_DEPLOYMENT}
        for field, metric in _COUNTERS:
            counter = counter_family(metric)
            for key, one in deployments.items():
                counter.add_metric([key], getattr(one, field))
            yield counter
        for field, metric in _GAUGES:
            gauge = gauge_family(metric)
            for key, one in deployments.items():
                gauge.add_metric([key], getattr(one, field))
            yield gauge
        for field, metric in _HISTOGRAMS:
            histogram = histogram_family(metric)
            for key, one in deployments.items():
                getattr(one, field).add_to(histogram, key)
            yield histogram
        for field, metric in _COUNTERS_BY:
            counter = counter_family(metric)
            for key, one in everyone.items():
                for value, count in tuple(getattr(one, field).items()):
                    counter.add_metric([key, str(value)], count)
            yield counter
        yield from _held(deployments)

    def _gauge(self, metric: catalog.Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def _counter(self, metric: catalog.Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)


def _held(deployments: dict[str, DeploymentMetrics]) -> Iterator[Metric]:
    number = gauge_family(catalog.ROUTER_HELD)
    seconds = counter_family(catalog.ROUTER_HELD_SECONDS)
    for key, one in deployments.items():
        for role, waiting in one.held.items():
            number.add_metric([key, role], waiting.number)
            seconds.add_metric([key, role], waiting.seconds)
    yield number
    yield seconds
