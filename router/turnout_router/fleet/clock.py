"""The time of a deployment: a simulated engine may run faster than real time, and so does all that is measured of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class DeploymentClock:
    """A deployment's own time in seconds, of which *scale* pass in one second of the router's *clock*.

    Objectives, learned work, queues and latencies of a deployment are in its own time; deadlines and retries are in the
    router's. The time scale is applied nowhere else.
    """

    __slots__ = ("_clock", "scale")

    def __init__(self, clock: Callable[[], float], scale: float = 1.0) -> None:
        self._clock = clock
        self.scale = scale

    def now(self) -> float:
        """Return the deployment's time."""
        return self._clock() * self.scale

    def seconds(self, router_seconds: float) -> float:
        """Return how much of the deployment's time passes in *router_seconds*, a span or a point of the router's time."""
        return router_seconds * self.scale
