"""A model of prefill and decode pools in virtual time, coarse enough to run an hour of traffic in a second.

Requests are single; time goes in ticks. A prefill replica computes one prompt after the other. A decode replica gives
every request of its batch tokens at the rate of the H100 fit for an 8B model, and takes no more than its KV cache
holds. Pods need a node and a start-up time before they serve, and finish what they have before they leave.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final

from turnout.scaling.facts import LoadFacts, PoolFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from turnout.terms import Role

PROMPT_TOKENS: Final = 8000
OUTPUT_TOKENS: Final = 300
CONTEXT_TOKENS: Final = PROMPT_TOKENS + OUTPUT_TOKENS / 2
KV_REQUESTS: Final = int(435_000 / CONTEXT_TOKENS)
OVERHEAD_MS: Final = 3.5
TICK_SECONDS: Final = 0.25
INTERVAL_SECONDS: Final = 5.0
WINDOW_SECONDS: Final = 60.0


def prefill_seconds(tokens: float) -> float:
    """Time to compute a prompt alone (H100 fit of Llama-3.1-8B plus the engine's overhead)."""
    return (4.51 + 0.01749 * tokens + 5.20e-7 * tokens**2 + OVERHEAD_MS) / 1000


PROMPT_SECONDS: Final = prefill_seconds(PROMPT_TOKENS)


def iteration_seconds(batch: int) -> float:
    """Time of one decode iteration (the same fit)."""
    return (6.42 + 0.0107 * batch + 4.166e-5 * batch * CONTEXT_TOKENS + OVERHEAD_MS) / 1000


@dataclass(eq=False)
class Replica:
    """One pod of either role."""

    ready_at: float
    draining: bool = False
    free_at: float = 0.0
    """Prefill: when everything assigned is computed."""
    prompts: deque[tuple[float, float]] = field(default_factory=deque)
    """Prefill: start and end of what is assigned and not over."""
    tokens: float = 0.0
    """Decode: tokens that a request which had been here from the start would have."""
    batch: list[tuple[float, float, float]] = field(default_factory=list)
    """Decode: heap of (tokens at the end, time of the first token, time to first token)."""

    def load(self, now: float) -> float:
        """Return what a balancer compares."""
        return max(0.0, self.free_at - now) + len(self.batch)

    def idle(self, now: float) -> bool:
        """Whether nothing is left to do."""
        return self.free_at <= now and not self.batch


@dataclass
class Fleet:
    """Both pools, their traffic, and what clients experience."""

    rate: Callable[[float], float]
    """Arrivals per second at a time."""
    random: Random
    nodes: float = inf
    """Pods that find a node."""
    startup_seconds: float = 60.0
    ttft_objective_seconds: float = 1.0
    itl_objective_seconds: float = 0.04
    prefill_seconds: float = PROMPT_SECONDS
    now: float = 0.0
    pools: dict[Role, list[Replica]] = field(default_factory=lambda: {"prefill": [], "decode": []})
    pending: dict[Role, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    to_decode: list[tuple[float, float]] = field(default_factory=list)
    """Heap of (end of prefill, arrival)."""
    recent: deque[tuple[float, bool, bool]] = field(default_factory=deque)
    """Time, first token late, tokens late: of what finished within the window."""
    finished: int = 0
    good: int = 0
    replica_seconds: float = 0.0
    next_arrival: float = 0.0

    def start(self, replicas: Mapping[Role, int]) -> None:
        """Begin with *replicas* that are ready."""
        for role, n in replicas.items():
            self.pools[role] = [Replica(0.0) for _ in range(n)]

    def asked(self) -> dict[Role, int]:
        """Replicas that are meant to stay."""
        return {
            role: self.pending[role] + sum(not one.draining for one in pool)
            for role, pool in self.pools.items()
        }

    def scale(self, desired: Mapping[Role, int]) -> None:
        """Ask for *desired*: pods without a node go first, then those not ready, then the least loaded."""
        for role, n in desired.items():
            change = n - self.asked()[role]
            withdrawn = min(self.pending[role], max(0, -change))
            self.pending[role] += max(0, change) - withdrawn
            pool = [one for one in self.pools[role] if not one.draining]
            pool.sort(key=lambda one: (one.ready_at <= self.now, one.load(self.now)))
            for one in pool[: max(0, -change - withdrawn)]:
                one.draining = True

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self._place()
            self._arrive()
            self._hand_over()
            self._decode()
            self.now += TICK_SECONDS
            self.replica_seconds += TICK_SECONDS * sum(len(pool) for pool in self.pools.values())

    def _place(self) -> None:
        for role, pool in self.pools.items():
            pool[:] = [
                one for one in pool if not (one.draining and (one.idle(self.now) or one.ready_at > self.now))
            ]
            while self.pending[role] and sum(map(len, self.pools.values())) < self.nodes:
                self.pending[role] -= 1
                pool.append(Replica(self.now + self.startup_seconds))

    def _ready(self, role: Role) -> list[Replica]:
        return [one for one in self.pools[role] if one.ready_at <= self.now and not one.draining]

    def _arrive(self) -> None:
        ready = self._ready("prefill")
        while ready and self.next_arrival <= self.now + TICK_SECONDS:
            at = self.next_arrival
            self.next_arrival = at + self.random.expovariate(max(self.rate(at), 1e-3))
            one = min(ready, key=lambda one: one.free_at)
            begin = max(at, one.free_at)
            one.free_at = begin + self.prefill_seconds
            one.prompts.append((begin, one.free_at))
            heapq.heappush(self.to_decode, (one.free_at, at))

    def _hand_over(self) -> None:
        ready = self._ready("decode")
        while ready and self.to_decode and self.to_decode[0][0] <= self.now + TICK_SECONDS:
            one = min(ready, key=lambda one: len(one.batch))
            if len(one.batch) >= KV_REQUESTS:
                return
            computed, arrival = heapq.heappop(self.to_decode)
            first = max(computed, self.now)
            heapq.heappush(one.batch, (one.tokens + OUTPUT_TOKENS, first, first - arrival))

    def _decode(self) -> None:
        for one in self.pools["decode"]:
            one.tokens += TICK_SECONDS / iteration_seconds(len(one.batch))
            while one.batch and one.batch[0][0] <= one.tokens:
                _, first, ttft = heapq.heappop(one.batch)
                late = ttft > self.ttft_objective_seconds
                slow = (self.now - first) / OUTPUT_TOKENS > self.itl_objective_seconds
                self.finished += 1
                self.good += not late and not slow
                self.recent.append((self.now, late, slow))

    def observe(self) -> LoadFacts:
        """Return what an operator would see now."""
        since = self.now - WINDOW_SECONDS
        while self.recent and self.recent[0][0] < since:
            self.recent.popleft()
        n = len(self.recent)
        return LoadFacts(
            (self._facts("prefill"), self._facts("decode")),
            goodput_percent=100 * sum(not (late or slow) for _, late, slow in self.recent) / n if n else None,
            finished=n,
            ttft_missed_share=sum(late for _, late, _ in self.recent) / n if n else None,
            itl_missed_share=sum(slow for _, _, slow in self.recent) / n if n else None,
            routers_answered=True,
            window_seconds=WINDOW_SECONDS,
        )

    def _facts(self, role: Role) -> PoolFacts:
        ready = self._ready(role)
        for one in ready:
            while one.prompts and one.prompts[0][1] <= self.now:
                one.prompts.popleft()
        running = sum(len(one.batch) + sum(begin <= self.now for begin, _ in one.prompts) for one in ready)
        waiting = sum(begin > self.now for one in ready for begin, _ in one.prompts)
        if role == "decode":
            waiting = sum(computed <= self.now for computed, _ in self.to_decode)
        kv = [len(one.batch) / KV_REQUESTS for one in ready]
        return PoolFacts(
            role,
            self.asked()[role],
            len(ready),
            starting=sum(one.ready_at > self.now and not one.draining for one in self.pools[role]),
            unschedulable=self.pending[role],
            draining=sum(one.draining for one in self.pools[role]),
            running=running,
            waiting=waiting,
            kv_utilization_mean=sum(kv) / len(kv) if kv else None,
            kv_utilization_max=max(kv, default=None),
            scraped=len(ready),
        )
