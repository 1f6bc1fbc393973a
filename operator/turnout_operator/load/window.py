"""Counters over a sliding window: increases, summed over sources that come, go and start again from zero. Pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_operator.load.pages import Counters

MAX_STEPS: Final = 512
"""Steps that a window holds; older ones are dropped even where it is longer."""
_NOTHING: Final[Counters] = {}
"""What most steps of most deployments hold, kept once."""


class CounterWindow:
    """Increases of counters over the last *seconds*."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last: dict[str, Counters] = {}
        self._steps: deque[tuple[float, Counters]] = deque(maxlen=MAX_STEPS)
        self._since: float | None = None

    def add(self, now: float, sources: Mapping[str, Counters]) -> None:
        """Take in the counters of every source that answered at *now* (seconds, monotonic).

        A source seen for the first time only gives its level: what it counted before is not of this window. One that
        counts less than before has started again from zero. One that is missing keeps its level for later.
        """
        increase: Counters = {}
        for source, counters in sources.items():
            before = self._last.get(source)
            if before is not None and before is not counters:
                # Counters appear with their first request: to a source known already, from zero.
                for name, value in counters.items():
                    old = before.get(name, 0.0)
                    gained = value - old if value >= old else value
                    if gained:
                        increase[name] = increase.get(name, 0.0) + gained
            self._last[source] = counters
        if self._since is None:
            self._since = now
        self._steps.append((now, increase or _NOTHING))
        while self._steps and self._steps[0][0] <= now - self.seconds:
            self._since = self._steps.popleft()[0]

    def forget(self, present: frozenset[str]) -> None:
        """Drop the levels of sources that are not *present* any more."""
        self._last = {source: counters for source, counters in self._last.items() if source in present}

    def span(self, now: float) -> float:
        """Return the seconds that the sums are about."""
        return 0.0 if self._since is None else max(0.0, now - self._since)

    def sums(self) -> Counters:
        """Return the increases within the window by name; where there is any, counters that stood still among them."""
        if not any(step for _, step in self._steps):
            return {}
        total: Counters = {name: 0.0 for counters in self._last.values() for name in counters}
        for _, step in self._steps:
            for name, value in step.items():
                total[name] = total.get(name, 0.0) + value
        return total
