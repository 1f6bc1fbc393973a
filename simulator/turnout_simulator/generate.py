"""Traffic of our own making with the published statistics of conversation traces, for where no trace is at hand.

Conversations begin as a renewal process with Gamma-distributed gaps (burstier than Poisson, as ServeGen,
arXiv 2505.09999, and BurstGPT, arXiv 2401.17644, find in production) under a slow swell, the shape of a day
in small. Every prompt opens with one system-prompt block that all share. A further turn carries the whole
conversation so far plus a new message, after a log-normal pause. Targets are those of Mooncake's conversation
trace (Qin et al., FAST'25, and the trace itself): 12,035 tokens in and 343 out on average, a median prompt of
6,900, some 3.4 requests a second, and 36.6 % of the blocks seen before at their place.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from turnout_simulator.traces import BLOCK_TOKENS, Trace, TraceRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEM_BLOCK: Final = 0
"""Id of the block that every prompt begins with."""

MIN_INPUT_TOKENS: Final = 890
"""Shortest prompt of Mooncake's conversation trace: system prompt and a question."""


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A log-normal distribution by its median and the standard deviation of the logarithm."""

    median: float
    sigma: float

    def draw(self, rng: random.Random) -> float:
        """Return one value, in the unit of the median."""
        return rng.lognormvariate(math.log(self.median), self.sigma)


@dataclass(frozen=True, slots=True)
class TrafficShape:
    """What the generator aims at. The defaults reproduce Mooncake's conversation trace."""

    requests_per_second: float = 3.4
    gap_variation: float = 1.5
    """Coefficient of variation of the gaps between conversations: 1 is Poisson, more is burstier."""
    swell: float = 0.4
    """How far the rate swings around its mean, as a share of it: lowest at either end, highest in between."""
    first_prompt: LogNormal = field(default=LogNormal(5400, 1.25))
    """Tokens of a conversation's first prompt, system prompt included."""
    message: LogNormal = field(default=LogNormal(900, 1.0))
    """Tokens that the user adds in a further turn."""
    answer: LogNormal = field(default=LogNormal(372, 0.4))
    """Tokens of a usual answer."""
    short_answer: LogNormal = field(default=LogNormal(12, 1.0))
    """Tokens of a short one: a title, a yes or no, a classification."""
    short_answer_share: float = 0.14
    another_turn: float = 0.4
    """Chance that a turn is followed by another one."""
    pause_seconds: LogNormal = field(default=LogNormal(60, 0.9))
    """From one turn of a conversation to the next."""
    max_input_tokens: int = 126_000
    max_output_tokens: int = 2_000
    warm_up_seconds: float = 600.0
    """Conversations begin this long before the trace does, so that it opens amid running ones."""


@dataclass(frozen=True, slots=True)
class _Turn:
    arrival_seconds: float
    conversation: int
    input_tokens: int
    known_blocks: tuple[int, ...]
    """Whole blocks that the conversation's earlier turns have filled."""


def generate(duration_seconds: float, *, seed: int, shape: TrafficShape | None = None) -> Trace:
    """Return *duration_seconds* of conversation traffic. The same arguments give the same trace.

    Raise ValueError for a duration or rate that is not positive and for a swell or a chance outside [0, 1).
    """
    shape = shape or TrafficShape()
    if duration_seconds <= 0 or shape.requests_per_second <= 0:
        raise ValueError("duration_seconds and requests_per_second must be greater than 0")
    if not (0 <= shape.swell < 1 and 0 <= shape.another_turn < 1):
        raise ValueError("swell and another_turn must be at least 0 and less than 1")
    rng = random.Random(seed)  # noqa: S311 - reproducible traffic, no secret
    requests: list[TraceRequest] = []
    next_block = SYSTEM_BLOCK + 1
    waiting: list[tuple[float, int, _Turn]] = [
        (begin, number, _Turn(begin, number, _first_prompt(rng, shape), (SYSTEM_BLOCK,)))
        for number, begin in enumerate(_conversation_starts(rng, duration_seconds, shape))
    ]
    heapq.heapify(waiting)
    while waiting:
        arrival, number, turn = heapq.heappop(waiting)
        if arrival >= duration_seconds:
            break
        needed = -(-turn.input_tokens // BLOCK_TOKENS)
        fresh = max(0, needed - len(turn.known_blocks))
        blocks = (*turn.known_blocks[:needed], *range(next_block, next_block + fresh))
        next_block += fresh
        output = _output(rng, shape)
        if arrival >= 0:
            requests.append(TraceRequest(arrival, turn.input_tokens, output, blocks))
        longer = turn.input_tokens + output + max(1, round(shape.message.draw(rng)))
        if rng.random() < shape.another_turn and longer <= shape.max_input_tokens:
            whole = turn.input_tokens // BLOCK_TOKENS
            later = arrival + shape.pause_seconds.draw(rng)
            heapq.heappush(waiting, (later, number, _Turn(later, number, longer, blocks[:whole])))
    name = f"generated conversation traffic (seed {seed}, statistics of Mooncake's conversation trace)"
    return Trace(name, tuple(requests))


def _conversation_starts(rng: random.Random, duration_seconds: float, shape: TrafficShape) -> Iterator[float]:
    """Yield when conversations begin, from `warm_up_seconds` before the trace to its end.

    Gaps are drawn on a clock that runs as fast as the rate is high, which bends a renewal process to a
    changing rate without changing its burstiness.
    """
    turns_each = 1 / (1 - shape.another_turn)
    gamma_shape = 1 / shape.gap_variation**2
    moment = -shape.warm_up_seconds
    while True:
        share = min(1.0, max(0.0, moment / duration_seconds))
        rate = shape.requests_per_second / turns_each * (1 - shape.swell * math.cos(2 * math.pi * share))
        moment += rng.gammavariate(gamma_shape, 1 / gamma_shape) / rate
        if moment >= duration_seconds:
            return
        yield moment


def _first_prompt(rng: random.Random, shape: TrafficShape) -> int:
    return min(shape.max_input_tokens, max(MIN_INPUT_TOKENS, round(shape.first_prompt.draw(rng))))


def _output(rng: random.Random, shape: TrafficShape) -> int:
    answer = shape.short_answer if rng.random() < shape.short_answer_share else shape.answer
    return min(shape.max_output_tokens, max(1, round(answer.draw(rng))))
