"""Probes one run of a container for as long as it goes on, and reports what the verdicts change."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from turnout_devcluster.node import checks
from turnout_devcluster.node.probes import Probe, ProbeKind, initial, observe

if TYPE_CHECKING:
    from collections.abc import Mapping


class Probed(Protocol):
    """Hears what the probes of a run find."""

    def has_started(self) -> None:
        """Hear that the startup probe, if any, has passed."""

    def is_ready(self, *, ready: bool) -> None:
        """Hear the readiness probe's verdict, also where it is what it was."""

    def has_failed(self, probe: Probe) -> None:
        """Hear that the startup or liveness probe has failed for good."""

    def is_unhealthy(self, probe: Probe, message: str) -> None:
        """Hear that one answer was a failure."""


class Prober:
    """Asks in each probe's period. *began_at* is when the run began (Unix seconds)."""

    def __init__(
        self, probes: Mapping[ProbeKind, Probe], probed: Probed, execute: checks.Executor, began_at: float
    ) -> None:
        self._probes = probes
        self._probed = probed
        self._execute = execute
        self._began_at = began_at

    async def run(self, *, started: bool, ready: bool | None) -> None:
        """Probe until cancelled: startup until it passes, then readiness and liveness side by side.

        *started* and *ready* are what was known before, where the run is an adopted one.
        """
        startup = self._probes.get("startup")
        if startup is not None and not started and not await self._probe(startup, passing=None):
            return
        self._probed.has_started()
        async with asyncio.TaskGroup() as group:
            for probe in (self._probes.get("readiness"), self._probes.get("liveness")):
                if probe is not None:
                    known = ready if probe.kind == "readiness" else None
                    group.create_task(self._probe(probe, passing=known))

    async def _probe(self, probe: Probe, *, passing: bool | None) -> bool:
        """Ask again and again. Return True once a startup probe has passed, False once a probe has failed."""
        state = initial(probe.kind, passing=passing)
        await asyncio.sleep(max(0.0, self._began_at + probe.initial_delay - time.time()))
        while True:
            asked_at = time.monotonic()
            answer = await checks.ask(probe.action, self._execute, probe.timeout)
            if not answer.success:
                self._probed.is_unhealthy(probe, answer.message)
            state = observe(probe, state, success=answer.success)
            if probe.kind == "readiness":
                self._probed.is_ready(ready=state.passing)
            elif probe.kind == "startup" and state.passing:
                return True
            elif not answer.success and state.run >= probe.failure_threshold:
                self._probed.has_failed(probe)
                return False
            await asyncio.sleep(max(0.0, probe.period - (time.monotonic() - asked_at)))
