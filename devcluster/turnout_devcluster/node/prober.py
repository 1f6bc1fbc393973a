"""Probes one run of a container for as long as it goes on, and reports what the verdicts change."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from turnout_devcluster.node import checks
from turnout_devcluster.node.probes import Probe, ProbeKind, initial, observe

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping


_LASTING: Final[tuple[ProbeKind, ...]] = ("readiness", "liveness")


class Probed(Protocol):
    """Receives the results of a run's probes."""

    def has_started(self) -> None:
        """Handle that the startup probe, if any, has passed."""

    def is_ready(self, *, ready: bool) -> None:
        """Handle a result of the readiness probe, also where it is unchanged."""

    def has_failed(self, probe: Probe) -> None:
        """Handle a startup or liveness probe that has failed for good."""

    def is_unhealthy(self, probe: Probe, message: str) -> None:
        """Handle a single failed probe."""


class Prober:
    """Asks in each probe's period. *began_at* is when the run began (Unix seconds)."""

    def __init__(
        self,
        probes: Mapping[ProbeKind, Probe],
        probed: Probed,
        execute: checks.Executor,
        began_at: float,
        keep: Callable[[Callable[[], Coroutine[Any, Any, None]]], asyncio.Task[None]],
    ) -> None:
        """*keep* runs a probe, and runs it again where it raises what is no verdict."""
        self._keep = keep
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
        tasks = [
            self._keep(partial(self._probe_on, probe, ready if kind == "readiness" else None))
            for kind in _LASTING
            if (probe := self._probes.get(kind)) is not None
        ]
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _probe_on(self, probe: Probe, passing: bool | None) -> None:  # noqa: FBT001 - what was known
        await self._probe(probe, passing=passing)

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
