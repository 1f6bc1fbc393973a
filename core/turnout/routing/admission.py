"""Admission control: a request is admitted, waits, or is refused, so that an overload does not become a collapse.

An engine serves best with a queue of its own; beyond that, requests only get older there. So each deployment has a
bounded number of requests and tokens per worker that decodes. Further requests wait here, in the order of tier and arrival,
for a bounded time and in bounded number. Beyond that the youngest of the lowest tier is refused first.

Counts are of one router. With several, each sees its share of the traffic and of the room alike, so size the bounds by
workers divided by routers where that matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from turnout.terms import Priority

Tier = Literal[0, 1, 2]
"""The order of tiers: `HIGH` before `NORMAL` before `LOW`."""
HIGH: Final = 0
NORMAL: Final = 1
LOW: Final = 2
TIERS: Final[tuple[Tier, ...]] = (HIGH, NORMAL, LOW)

TIER_OF: Final[Mapping[Priority, Tier]] = {"High": HIGH, "Normal": NORMAL, "Low": LOW}
"""The tier of a budget's priority."""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """The room of one deployment.

    `requests_per_worker`: twice vLLM's default batch of 1024 on H100-class accelerators, so that its own queue, by
    which pools are scaled, can be seen. `tokens_per_worker`: prompt and expected output tokens, some times what the
    largest caches hold. `waiting`, `waiting_tokens`: requests that wait here, over all tiers, and their tokens: some
    minutes of work for a few workers. `wait_seconds`: how long one waits, in real time.
    """

    requests_per_worker: int = 2048
    tokens_per_worker: int = 4_000_000
    waiting: int = 1024
    waiting_tokens: int = 16_000_000
    wait_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class AdmissionBounds:
    """A deployment's own `AdmissionLimits`; None: the router's default applies."""

    requests_per_worker: int | None = None
    tokens_per_worker: int | None = None
    waiting: int | None = None
    waiting_tokens: int | None = None
    wait_seconds: float | None = None

    def over(self, limits: AdmissionLimits) -> AdmissionLimits:
        """Return *limits*, overridden by the values that are set here."""
        return AdmissionLimits(
            limits.requests_per_worker if self.requests_per_worker is None else self.requests_per_worker,
            limits.tokens_per_worker if self.tokens_per_worker is None else self.tokens_per_worker,
            limits.waiting if self.waiting is None else self.waiting,
            limits.waiting_tokens if self.waiting_tokens is None else self.waiting_tokens,
            limits.wait_seconds if self.wait_seconds is None else self.wait_seconds,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a request. `displaced` is the tier whose youngest waiting request is refused for it."""

    does: Literal["enter", "wait", "leave"]
    displaced: Tier | None = None


_ENTER: Final = Verdict("enter")
_WAIT: Final = Verdict("wait")
_LEAVE: Final = Verdict("leave")


def has_room(requests: int, tokens: int, cost_tokens: int, workers: int, limits: AdmissionLimits) -> bool:
    """Return whether a request of *cost_tokens* fits beside *requests* with *tokens* on *workers* that decode.

    A request that is larger than all the room fits when it is alone. Without workers there is no room to keep: the
    request goes on, and is refused because there is no worker.
    """
    if requests == 0 or workers <= 0:
        return True
    return (
        requests < limits.requests_per_worker * workers
        and tokens + cost_tokens <= limits.tokens_per_worker * workers
    )


def judge(
    waiting: Sequence[int],
    waiting_tokens: Sequence[int],
    tokens: int,
    tier: Tier,
    limits: AdmissionLimits,
    *,
    room: bool,
) -> Verdict:
    """Return the verdict on a request of *tokens* and *tier*; *room*: see `has_room`.

    *waiting* and *waiting_tokens* are the requests that wait, and their tokens, by tier. A request never overtakes
    waiting ones of the same or a higher tier. If the queue is full, requests of lower tiers are displaced, one by one: call
    this again after the named one has left. None is displaced if even all of them would not be enough. A request may
    always wait alone, however large it is.
    """
    if room and not any(waiting[: tier + 1]):
        return _ENTER
    if _may_queue(sum(waiting), sum(waiting_tokens), tokens, limits):
        return _WAIT
    if _may_queue(sum(waiting[: tier + 1]), sum(waiting_tokens[: tier + 1]), tokens, limits):
        for lower in reversed(TIERS):
            if lower > tier and waiting[lower]:
                return Verdict("wait", displaced=lower)
    return _LEAVE


def _may_queue(requests: int, queued_tokens: int, tokens: int, limits: AdmissionLimits) -> bool:
    return requests < limits.waiting and (requests == 0 or queued_tokens + tokens <= limits.waiting_tokens)
