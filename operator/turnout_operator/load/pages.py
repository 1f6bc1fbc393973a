"""What the operator reads from a worker's and from a router's metrics page."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from turnout import metrics as catalog
from turnout.api.worker_facts import MAX_KV_TOKENS
from turnout_prom.exposition import samples

if TYPE_CHECKING:
    from collections.abc import Mapping

_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"
_BY_REASON: Final = "vllm:num_requests_waiting_by_reason"
_KV: Final = "vllm:kv_cache_usage_perc"
_CACHE: Final = "vllm:cache_config_info"
_PREFILL_TIME: Final = ("vllm:request_queue_time_seconds_sum", "vllm:request_prefill_time_seconds_sum")
WORKER: Final = frozenset({_RUNNING, _WAITING, _BY_REASON, _KV, _CACHE, *_PREFILL_TIME})
"""Metrics of a worker's page that are read."""
_DIGITS: Final = 12
"""More digits than any engine counts blocks with."""
MAX_REQUESTS: Final = 1_000_000
"""More requests at one worker than any engine has."""
MAX_COUNT: Final = 1e15
"""More than any counter of a router's has counted."""
MAX_SECONDS: Final = 1e12
"""More time than any counter of seconds has counted."""

FINISHED: Final = catalog.ROUTER_FINISHED.name
GOOD: Final = catalog.ROUTER_GOOD.name
ARRIVALS: Final = catalog.ROUTER_ARRIVALS.name
"""Read because it changes first: an idle deployment is decided about again."""
REQUESTS: Final = catalog.ROUTER_REQUESTS.name
REFUSED: Final = "refused"
"""Requests answered with 503, derived from REQUESTS."""
TTFT: Final = catalog.ROUTER_TIME_TO_FIRST_TOKEN.name
ITL: Final = catalog.ROUTER_INTER_TOKEN_LATENCY.name
_COUNTERS: Final = frozenset({FINISHED, GOOD, ARRIVALS})
_BUCKETS: Final = frozenset({f"{TTFT}_bucket", f"{ITL}_bucket"})
_HELD: Final = catalog.ROUTER_HELD.name
_HELD_SECONDS: Final = catalog.ROUTER_HELD_SECONDS.name
ROUTER: Final = _COUNTERS | _BUCKETS | {REQUESTS, _HELD, _HELD_SECONDS}
"""Metrics of a router's page that are read."""

_DEPLOYMENT: Final = 'deployment="'
"""Its value, NAMESPACE/NAME, holds nothing that would be escaped."""
_ROUNDING: Final = 0.01
"""By how much a share may exceed 1: engines round."""

Counters = dict[str, float]
"""Counters of one deployment on one router by name; buckets of histograms as ``NAME<=BOUND``."""


@dataclass(frozen=True, slots=True)
class WorkerPage:
    """The figures on a worker's page."""

    running: int
    waiting: int
    deferred: int
    """Those of the waiting that wait for their KV cache to arrive, not for room. 0 where the engine does not expose that."""
    kv_utilization: float
    """0 to 1; the fullest of its engines."""
    prefill_seconds: float | None
    """Time that requests have spent waiting for or in prefill so far, summed, in the engine's seconds. None: not exposed."""
    kv_tokens: int = 0
    """Tokens that its KV cache holds, of all its engines. 0: the page does not say."""


@dataclass(frozen=True, slots=True)
class RouterPage:
    """The figures of one deployment on a router's page."""

    counters: Counters = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    """Requests that it holds back now, by the role (prefill, decode) whose workers cannot start them yet. Empty: it
    exposes none, for it never holds any back."""
    held_seconds: Mapping[str, float] = field(default_factory=dict)
    """Time that it has held requests back so far, summed, by role, in the deployment's seconds."""


def worker_page(text: str) -> WorkerPage | None:
    """Read a worker's page; None where the figures that matter are not on it, or cannot be true.

    A worker is not trusted: it may be any program. A figure that is no number, negative or beyond what an engine can have
    invalidates the whole page, as if the worker had not answered.
    """
    sums: dict[str, float] = {}
    kv: float | None = None
    deferred = 0.0
    kv_tokens = 0
    for name, labels, value in samples(text, WORKER):
        if name == _CACHE:
            kv_tokens += _tokens(labels)
            continue
        if name == _KV:
            if not 0.0 <= value <= 1.0 + _ROUNDING:  # false for NaN, too
                return None
            kv = max(kv or 0.0, min(1.0, value))
            continue
        if not 0.0 <= value <= (MAX_SECONDS if name in _PREFILL_TIME else MAX_REQUESTS):
            return None
        if name == _BY_REASON:
            deferred += value if labels.get("reason") == "deferred" else 0.0
        else:
            sums[name] = sums.get(name, 0.0) + value
    if kv is None or _RUNNING not in sums or _WAITING not in sums:
        return None
    spent = sum(sums[name] for name in _PREFILL_TIME) if all(name in sums for name in _PREFILL_TIME) else None
    return WorkerPage(
        int(sums[_RUNNING]), int(sums[_WAITING]), int(deferred), kv, spent, min(kv_tokens, MAX_KV_TOKENS)
    )


def _tokens(labels: Mapping[str, str]) -> int:
    """Return the tokens of a KV cache that has *labels* as its configuration, 0 where they are no numbers."""
    counts = [labels.get(name, "") for name in ("num_gpu_blocks", "block_size")]
    if not all(count.isdecimal() and len(count) <= _DIGITS for count in counts):
        return 0
    blocks, size = map(int, counts)
    return blocks * size


def router_page(text: str) -> Mapping[str, RouterPage]:
    """Read a router's page: what it says of each deployment. Samples that cannot be true are skipped."""
    counted: dict[str, Counters] = defaultdict(lambda: defaultdict(float))
    held: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, labels, value in samples(text, ROUTER):
        deployment, role = labels.get("deployment"), labels.get("role", "")
        if deployment is None or not 0.0 <= value <= MAX_COUNT:
            continue
        counters = counted[deployment]
        if name in _COUNTERS:
            counters[name] += value
        elif name == REQUESTS:
            if labels.get("code") == "503":
                counters[REFUSED] += value
        elif name == _HELD:
            held[deployment][role] += int(value)
        elif name == _HELD_SECONDS:
            seconds[deployment][role] += value
        elif (bound := _bound(labels.get("le", ""))) is not None:
            counters[bucket(name.removesuffix("_bucket"), bound)] += value
    return {
        deployment: RouterPage(dict(counters), dict(held[deployment]), dict(seconds[deployment]))
        for deployment, counters in counted.items()
    }


class RouterPages:
    """The pages of one router, one after the other: what it said last of each deployment.

    A router has some forty lines per deployment that matter, and most of them stand still. So a deployment's lines are
    parsed only when they have changed: until then its `RouterPage` is the same object. A deployment for which nothing
    has been counted yet has none.
    """

    def __init__(self) -> None:
        self._digest = b""
        self._lines: dict[str, list[str]] = {}
        self._pages: dict[str, RouterPage] = {}

    def read(self, text: str) -> Mapping[str, RouterPage]:
        """Take in a page, and return what it says of each deployment."""
        digest = hashlib.blake2b(text.encode()).digest()
        if digest == self._digest:
            return self._pages
        self._digest = digest
        lines: defaultdict[str, list[str]] = defaultdict(list)
        for line in text.split("\n"):
            _, found, rest = line.partition(_DEPLOYMENT)
            if found:
                lines[rest[: rest.find('"')]].append(line)
        counted = {name: its for name, its in lines.items() if not all(line.endswith(" 0.0") for line in its)}
        changed = [line for name, its in counted.items() if self._lines.get(name) != its for line in its]
        read = router_page("\n".join(changed))
        self._pages = {
            **{
                name: page for name, page in self._pages.items() if self._lines.get(name) == counted.get(name)
            },
            **read,
        }
        self._lines = counted
        return self._pages


def bucket(histogram: str, bound: float) -> str:
    """Name of the counter that holds a histogram's bucket."""
    return f"{histogram}<={bound:g}"


def _bound(text: str) -> float | None:
    """Return the upper bound of a bucket; None where it is no number."""
    try:
        bound = float(text)
    except ValueError:
        return None
    return None if math.isnan(bound) else bound
