"""What the routers counted for one deployment over a window. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from turnout_operator.load import pages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_operator.load.pages import Counters


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the routers counted for one deployment over a window."""

    increases: Counters
    span_seconds: float
    """Length of the window, in real seconds."""
    answered: bool
    """Whether any router answered the last scrape."""
    held: Mapping[str, int] = field(default_factory=dict)
    """Requests that the routers which answered hold back now, by the phase that cannot start them."""

    @property
    def is_quiet(self) -> bool:
        """Whether no request has come to a router in this window, or ended, and none is held."""
        return not any(self.increases.values()) and not any(self.held.values())

    @property
    def goodput_percent(self) -> float | None:
        """Share of the finished requests that met both objectives. None: none finished."""
        finished = self.increases.get(pages.FINISHED, 0.0)
        return min(100.0, 100.0 * self.increases.get(pages.GOOD, 0.0) / finished) if finished > 0 else None
