"""Iterations in a row over an unchanging batch, in closed form.

Each decode step appends a token to every context, so that the next one takes a constant *growth* longer. The end of
the j-th step after *start* is therefore::

    start + j first + growth j (j - 1) / 2

Times are computed from the start of the row and not from step to step: the result does not depend on how often
the state is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt


@dataclass(frozen=True, slots=True)
class Steps:
    """*count* iterations from *start* on. All in seconds."""

    start: float
    first: float
    """How long the first one takes; above 0."""
    growth: float
    """How much longer each takes than the one before; 0 or more."""
    count: int

    def end(self, steps: int) -> float:
        """When the *steps*-th is over."""
        return self.start + steps * self.first + self.growth * (steps * (steps - 1) / 2)

    def over_by(self, now: float, at_least: int) -> int:
        """How many are over at *now*, given that *at_least* are."""
        if now == inf or self.end(self.count) <= now:
            return self.count
        span = now - self.start
        if self.growth > 0:
            middle = self.first - self.growth / 2
            steps = int((sqrt(middle * middle + 2 * self.growth * max(span, 0.0)) - middle) / self.growth)
        else:
            steps = int(span / self.first)
        steps = max(at_least, min(self.count, steps))
        while steps < self.count and self.end(steps + 1) <= now:  # the root is off by rounding at most
            steps += 1
        while steps > at_least and self.end(steps) > now:
            steps -= 1
        return steps
