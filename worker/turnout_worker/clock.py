"""Time as the simulated engine sees it: real time, stretched."""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 - part of the public signatures


class ScaledClock:
    """Engine seconds = real seconds since the start x scale. *wall* gives real seconds that never go back."""

    __slots__ = ("_origin", "_wall", "scale")

    def __init__(self, scale: float, wall: Callable[[], float]) -> None:
        self.scale = scale
        self._wall = wall
        self._origin = wall()

    def now(self) -> float:
        """Return the engine's time."""
        return (self._wall() - self._origin) * self.scale

    def wall_at(self, engine_time: float) -> float:
        """Return when, by the real clock, the engine's clock will say *engine_time*."""
        return self._origin + engine_time / self.scale
