"""What the router counts. Times are seconds of the deployment's own time (real seconds times its time scale).

Counts are plain numbers of the event loop's thread, put into Prometheus' form when they are asked for: its own client
takes a lock and checks its arguments at every step, which cost an eighth of a request's CPU time.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from turnout_router.tasks import LOOP, TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

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

_ONE: Final = ("deployment",)
_BY_HALF: Final = ("deployment", "half")
_COUNTERS: Final = (
    ("arrivals", "arrivals", "Requests that arrived for a deployment."),
    (
        "finished",
        "finished",
        "Requests that ran to their end, or failed for want of capacity or of a worker.",
    ),
    ("good", "good", "Finished requests that met both objectives."),
    ("prompt_tokens", "prompt_tokens", "Prompt tokens, from usage."),
    ("output_tokens", "output_tokens", "Output tokens, from usage."),
)
_GAUGES: Final = (
    ("in_flight", "Requests being served, those that wait included."),
    ("waiting", "Requests that wait for room."),
)
_HISTOGRAMS: Final = (
    ("first_token", "time_to_first_token_seconds", "From the request to the first token of a stream."),
    (
        "inter_token",
        "inter_token_latency_seconds",
        "Mean time between the tokens of a stream: (last - first) / (tokens - 1).",
    ),
    (
        "duration",
        "request_duration_seconds",
        "From the request to the end of its answer, of requests that ran to their end.",
    ),
)
_COUNTERS_BY: Final = (
    (
        "codes",
        "requests",
        "code",
        "Answered requests by HTTP status; 502 also a stream that broke, 499 a client that left.",
    ),
    ("shed", "shed", "reason", "Requests turned away for want of room, by why."),
    ("retries", "retries", "reason", "Requests sent to another worker, by what went wrong."),
    ("local_prefills", "local_prefills", "reason", "Prompts computed by the decode worker itself, by why."),
    ("scrapes", "scrapes", "outcome", "Metrics pages asked of workers: read, or what went wrong."),
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


class Standing:
    """Requests that wait in the router for want of one half: their number, and that number summed over time."""

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
        """Seconds that they have waited so far, all together."""
        return self._seconds + self._number * (self._clock() - self._since)


class DeploymentMetrics:
    """One deployment's counts. Whoever counts adds to them; `_COUNTERS` and its kin say what each means."""

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
        self.held: dict[str, Standing] = {}
        """By the half that they wait for; empty where nobody is ever held."""

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
        self.fleet_stale = Gauge(
            "turnout_router_fleet_stale",
            "1 while the fleet cannot be read and the last one known is used.",
            registry=self.registry,
        )
        self.unreadable = Gauge(
            "turnout_router_namespace_unreadable",
            "1 while the API server refuses this resource in this namespace (empty: in all of them).",
            ("namespace", "resource"),
            registry=self.registry,
        )
        self.fleet_updates = Counter(
            "turnout_router_fleet_updates",
            "Changes of the fleet that were taken over.",
            registry=self.registry,
        )
        self.fleet_rejected = Counter(
            "turnout_router_fleet_rejected",
            "Configurations and resources that were not taken over because they are invalid.",
            registry=self.registry,
        )
        failures = Counter(
            "turnout_router_task_failures",
            "Failures that were survived, by what failed; the log has each with its cause.",
            ["task"],
            registry=self.registry,
        )
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
        for field, name, meaning in _COUNTERS:
            counter = CounterMetricFamily(f"turnout_router_{name}", meaning, labels=_ONE)
            for key, one in deployments.items():
                counter.add_metric([key], getattr(one, field))
            yield counter
        for field, meaning in _GAUGES:
            gauge = GaugeMetricFamily(f"turnout_router_{field}", meaning, labels=_ONE)
            for key, one in deployments.items():
                gauge.add_metric([key], getattr(one, field))
            yield gauge
        for field, name, meaning in _HISTOGRAMS:
            histogram = HistogramMetricFamily(f"turnout_router_{name}", meaning, labels=_ONE)
            for key, one in deployments.items():
                getattr(one, field).add_to(histogram, key)
            yield histogram
        for field, name, label, meaning in _COUNTERS_BY:
            counter = CounterMetricFamily(f"turnout_router_{name}", meaning, labels=("deployment", label))
            for key, one in everyone.items():
                for value, count in tuple(getattr(one, field).items()):
                    counter.add_metric([key, str(value)], count)
            yield counter
        yield from _held(deployments)


def _held(deployments: dict[str, DeploymentMetrics]) -> Iterator[Metric]:
    number = GaugeMetricFamily(
        "turnout_router_held", "Requests held until a worker could begin with them.", labels=_BY_HALF
    )
    seconds = CounterMetricFamily(
        "turnout_router_held_seconds", "Time that requests were held, summed.", labels=_BY_HALF
    )
    for key, one in deployments.items():
        for half, standing in one.held.items():
            number.add_metric([key, half], standing.number)
            seconds.add_metric([key, half], standing.seconds)
    yield number
    yield seconds
