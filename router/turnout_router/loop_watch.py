"""Stalls of the event loop: a timer that measures how late it is called."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from prometheus_client import Histogram

from turnout.metrics import ROUTER_LOOP_STALL

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PERIOD_SECONDS: Final = 0.05
"""How often it looks: twenty times a second cost a thousandth of a core, and a stall above the goal of 50 ms is never missed."""
_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class LoopWatch:
    """Observes the lateness of its own calls in `turnout_router_loop_stall_seconds`. `look` is called every `PERIOD_SECONDS`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: float | None = None
        self._stalls = Histogram(
            ROUTER_LOOP_STALL.name,
            ROUTER_LOOP_STALL.help,
            buckets=_BUCKETS,
            registry=registry,
        )

    def look(self) -> None:
        """Note how late this call is."""
        now = self._loop.time()
        if self._due is not None:
            self._stalls.observe(max(0.0, now - self._due))
        self._due = now + PERIOD_SECONDS
