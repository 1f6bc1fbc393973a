"""The part of the demo under traffic: replay, watches, samples and screen on one event loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx

from turnout.quantities import seconds
from turnout_cli.demo.fleet import ApiServer, FleetWatch
from turnout_cli.demo.kv import pool_utilization
from turnout_cli.demo.samples import Sample, take_sample
from turnout_cli.replay.client import Client, Target
from turnout_cli.replay.figures import Objectives, ReplayOutcome
from turnout_cli.replay.replay import Replay, ReplaySettings

if TYPE_CHECKING:
    from turnout.api import LastScaling, LLMDeployment
    from turnout_cli.demo.screen import Screen
    from turnout_cli.demo.setup import Serving
    from turnout_simulator.traces import Trace

SAMPLE_SECONDS: Final = 1.0
"""Wall seconds between samples."""
KV_SECONDS: Final = 2.0
"""Wall seconds between two readings of all workers' metrics: rendering them costs the workers."""
DEADLINE_SECONDS: Final = 60.0
"""Wall seconds to wait for an answer: minutes of the deployment's time."""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of the traffic."""

    outcomes: tuple[ReplayOutcome, ...]
    samples: tuple[Sample, ...]
    scalings: tuple[LastScaling, ...]
    wall_seconds: float


def objectives_of(deployment: LLMDeployment) -> Objectives:
    """Return what a request to *deployment* must meet to be good."""
    slo = deployment.spec.slo
    return Objectives(seconds(slo.time_to_first_token), seconds(slo.inter_token_latency))


async def run_traffic(serving: Serving, trace: Trace, server: ApiServer, screen: Screen) -> Run:
    """Replay *trace* against *serving* and watch until the last request has ended."""
    scale = serving.deployment.spec.engine.simulated.time_scale
    settings = ReplaySettings(model=serving.model, time_scale=scale, deadline_seconds=DEADLINE_SECONDS)
    async with (
        Client(Target.parse(serving.router_url)) as client,
        FleetWatch(server, serving.deployment) as watched,
        httpx.AsyncClient() as http,
    ):
        replay = Replay(trace, client, settings)
        observer = _Observer(replay, watched, http, screen)
        with screen:
            watching = [asyncio.create_task(observer.sample()), asyncio.create_task(observer.read_kv())]
            replaying = asyncio.create_task(replay.run())
            try:
                # An observer never ends by itself: one that is done has failed, and is to say so.
                await asyncio.wait([replaying, *watching], return_when=asyncio.FIRST_COMPLETED)
                for task in (task for task in (*watching, replaying) if task.done()):
                    task.result()
            finally:
                for task in (*watching, replaying):
                    task.cancel()
                await asyncio.gather(*watching, replaying, return_exceptions=True)
            observer.take()
        return Run(
            outcomes=tuple(replay.progress.outcomes),
            samples=tuple(observer.samples),
            scalings=watched.fleet.scalings,
            wall_seconds=observer.wall_seconds,
        )


class _Observer:
    """Takes samples of a replay, shows and keeps them: one per second of a replay that has an end."""

    def __init__(self, replay: Replay, watched: FleetWatch, http: httpx.AsyncClient, screen: Screen) -> None:
        self.samples: list[Sample] = []
        self._objectives = objectives_of(watched.fleet.deployment)
        self._time_scale = watched.fleet.deployment.spec.engine.simulated.time_scale
        self._replay = replay
        self._watched = watched
        self._http = http
        self._screen = screen
        self._kv: dict[str, float] = {}
        self._began = time.monotonic()

    @property
    def wall_seconds(self) -> float:
        """Since the replay began."""
        return time.monotonic() - self._began

    def take(self) -> None:
        """Take, keep and show one sample now."""
        wall = self.wall_seconds
        fleet = self._watched.fleet
        sample = take_sample(
            wall * self._time_scale, self._replay.progress, self._objectives, fleet, self._kv
        )
        self.samples.append(sample)
        note = f"status not current: {fleet.stale}" if fleet.stale else ""
        self._screen.show(sample, wall_seconds=wall, note=note)

    async def sample(self) -> None:
        """Take a sample every second, until cancelled."""
        while True:
            self.take()
            await asyncio.sleep(SAMPLE_SECONDS)

    async def read_kv(self) -> None:
        """Keep the pools' KV utilization current, until cancelled."""
        while True:
            self._kv = await pool_utilization(self._http, self._watched.fleet.workers)
            await asyncio.sleep(KV_SECONDS)
