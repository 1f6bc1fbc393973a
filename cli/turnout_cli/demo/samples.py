"""One look per second at replay and fleet: the rows of the live table and of the plot."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from turnout_cli.replay.figures import Figures, Objectives, figures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_cli.demo.fleet import Fleet
    from turnout_cli.replay.replay import Progress

RECENT_SECONDS: Final = 60.0
"""What "the last minute" means, in the deployment's seconds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment. Times are the deployment's seconds."""

    at_seconds: float
    """Since the replay began."""
    total: int
    sent: int
    in_flight: int
    so_far: Figures
    recent: Figures
    """Of the requests that ended in the last minute."""
    prefill_desired: int
    prefill_ready: int
    decode_desired: int
    decode_ready: int
    kv_utilization: Mapping[str, float]
    """Mean share of KV cache in use by role, 0 to 1."""
    last_scaling: str
    """The last scaling sentence; empty before the first."""


def take_sample(
    at_seconds: float,
    progress: Progress,
    objectives: Objectives,
    fleet: Fleet,
    kv_utilization: Mapping[str, float],
) -> Sample:
    """Draw one sample from what replay and watch hold."""
    recent = list(
        takewhile(lambda outcome: outcome.ended_at > at_seconds - RECENT_SECONDS, reversed(progress.outcomes))
    )
    return Sample(
        at_seconds=at_seconds,
        total=progress.total,
        sent=progress.sent,
        in_flight=progress.in_flight,
        so_far=figures(progress.outcomes, objectives),
        recent=figures(recent, objectives),
        prefill_desired=fleet.prefill.desired,
        prefill_ready=fleet.prefill.ready,
        decode_desired=fleet.decode.desired,
        decode_ready=fleet.decode.ready,
        kv_utilization=dict(kv_utilization),
        last_scaling=fleet.scalings[-1].reason if fleet.scalings else "",
    )
