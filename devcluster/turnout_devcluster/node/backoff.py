"""How long a container that ended waits for its next start.

The kubelet's rule with other figures: the first restart comes at once, the second after *base*, and each
further one doubles that up to *cap*. A run that lasted twice the cap starts the count anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout_devcluster.node.model import Run


@dataclass(frozen=True, slots=True)
class BackOff:
    """Bounds of the wait, in seconds. The kubelet's are 10 and 300; a dev cluster should not bore."""

    base_seconds: float = 1.0
    cap_seconds: float = 60.0

    def delay(self, run: Run, streak: int) -> float:
        """Return how long after its end *run*, reached by *streak* restarts in a row, is restarted."""
        if streak == 0 or self._lasted(run):
            return 0.0
        # The exponent is bounded so that a thousand restarts overflow nothing.
        return min(self.cap_seconds, self.base_seconds * 2.0 ** min(streak - 1, 30))

    def next_streak(self, run: Run, streak: int) -> int:
        """Return the streak of the run after *run*."""
        return 1 if self._lasted(run) else streak + 1

    def _lasted(self, run: Run) -> bool:
        return run.lasted_seconds >= 2 * self.cap_seconds
