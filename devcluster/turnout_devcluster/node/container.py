"""One container of a pod: starting it, watching it, probing it, stopping it."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from turnout_devcluster.node import attempts, checks
from turnout_devcluster.node.api import pause
from turnout_devcluster.node.attempts import RunAttempt, RunFile
from turnout_devcluster.node.errors import NodeError
from turnout_devcluster.node.logs import last_words
from turnout_devcluster.node.model import ContainerState, Json, Refusal, Run, container_of
from turnout_devcluster.node.mounts import make_mounts
from turnout_devcluster.node.plan import ContainerPlan, PodFolder
from turnout_devcluster.node.prober import Prober
from turnout_devcluster.node.probes import Execute, Probe, ProbeKind, action_of, probes_of
from turnout_devcluster.node.processes import Process, run, spawn_shim

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from turnout_devcluster.node.context import PodView, Runtime

SPAWN_SECONDS: Final = 20.0
"""How long a start may take until its shim has recorded the result."""
SETTLE_SECONDS: Final = 2.0
"""How long a probed container that has started may keep its slot among the concurrent starts."""
REFUSAL_RETRY_SECONDS: Final = 3.0
MIN_GRACE_SECONDS: Final = 2.0
"""What remains between the end of preStop and SIGKILL at least, as in the kubelet."""
REAP_SECONDS: Final = 15.0
"""How long after SIGKILL the shim may take to record the end."""


def _now() -> float:
    return time.time()


def _kill_at(deadline: float, least: float) -> float:
    """Return when SIGKILL is due. A deadline of 0 is a deletion by force: at once."""
    return deadline if deadline <= 0 else max(deadline, least)


class Container:
    """One container. Its `state` is what decisions see."""

    def __init__(self, name: str, pod: PodView, runtime: Runtime) -> None:
        self.name = name
        self.state = ContainerState()
        self._pod = pod
        self._runtime = runtime
        self._plan: ContainerPlan | None = None
        self._process: Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._queued = False
        self._nudge = asyncio.Event()
        self._settled = asyncio.Event()
        self._hooked = True
        """Whether postStart has been run, or there is none."""

    def _keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        return self._runtime.supervisor.run(name, work, detail=self._detail)

    @property
    def _detail(self) -> str:
        return f"{self._pod.pod['metadata']['name']}/{self.name}"

    @property
    def spec(self) -> Json:
        """Its specification."""
        return container_of(self._pod.pod, self.name)

    # Starting

    def start(self) -> None:
        """Begin a run, unless one goes on."""
        if self._starting is None and not self.state.running:
            self._set(starting=True, refusal=None)
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(self._start_ended)

    def _start_ended(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        self._set(starting=False)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._runtime.supervisor.note("start", error, detail=self._detail)
            self._set(
                refusal=Refusal("CreateContainerError", str(error)),
                retry_at=_now() + REFUSAL_RETRY_SECONDS,
            )
        self._pod.wake()

    async def _start(self) -> None:
        self._queued = True
        async with self._runtime.starts:
            self._queued = False
            if self._pod.deleting:
                return
            try:
                plan = await self._pod.plan(self.name)
            except NodeError as error:
                plan = Refusal("CreateContainerConfigError", str(error))
            if isinstance(plan, Refusal):
                self._event("Warning", "Failed", plan.message)
                self._set(refusal=plan, retry_at=_now() + REFUSAL_RETRY_SECONDS)
                return
            self._plan = plan
            self._settled.clear()
            await self._begin(plan)
            if self.state.running and self._probing is not None:
                await pause(self._settled, SETTLE_SECONDS)

    async def _begin(self, plan: ContainerPlan) -> None:
        """Note the run, start its shim, and take up the result."""
        folder = PodFolder(str(self._pod.disk.path))
        make_mounts(Path(folder.root(self.name)), plan.mounts)
        record, disk = self._pod.record, self._pod.disk
        last = self.state.run
        kept = record.runs.setdefault(self.name, [])
        run_attempt = RunAttempt(
            attempt=0 if last is None else last.attempt + 1,
            token=secrets.token_hex(4),
            streak=0 if last is None else self._runtime.back_off.next_streak(last, self.state.streak),
        )
        record.runs[self.name] = [*kept, run_attempt][-attempts.KEPT_RUNS :]
        disk.container(self.name).mkdir(parents=True, exist_ok=True, mode=0o700)
        disk.save(record)
        disk.forget_old_runs(record, self.name)
        await spawn_shim(
            {
                "argv": list(plan.argv),
                "env": dict(plan.env),
                "cwd": plan.cwd,
                "log": str(disk.log_path(self.name, run_attempt.attempt)),
                "state": str(disk.state_path(self.name, run_attempt)),
                "supervisor_file": str(self._runtime.supervisor_file),
            },
            SPAWN_SECONDS,
        )
        file = disk.read_run(self.name, run_attempt)
        if file is None and disk.give_up(self.name, run_attempt):
            raise NodeError(f"container {self.name} could not be started within {SPAWN_SECONDS:g} s")
        file = file or disk.read_run(self.name, run_attempt)
        if file is None:
            raise NodeError(f"container {self.name}: its state file cannot be read")
        self._take_up(file, run_attempt.streak, adopted=None)

    def adopt(self, status: Json) -> None:
        """Find the newest run of an earlier agent again. *status* is the last one that it published."""
        runs = self._pod.record.runs.get(self.name) or []
        known = [
            (b, f) for b in runs if not self._is_void(b) and (f := self._pod.disk.read_run(self.name, b))
        ]
        if not known:
            return
        if len(known) > 1:
            self._set(previous=self._settle(known[-2][1]))
        run_attempt, file = known[-1]
        same = status.get("restartCount") == run_attempt.attempt
        self._take_up(file, run_attempt.streak, adopted=status if same else {})

    def _is_void(self, run_attempt: RunAttempt) -> bool:
        return self._pod.disk.give_up(self.name, run_attempt)

    def _settle(self, file: RunFile) -> Run:
        if file.run.running:
            return file.run if file.shim.alive else attempts.lost(file.run, _now())
        falls_back = self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not file.run.exit_code or file.run.message or not falls_back:
            return file.run
        return replace(file.run, message=last_words(self._pod.disk.log_path(self.name, file.run.attempt)))

    def _take_up(self, file: RunFile, streak: int, adopted: Json | None) -> None:
        """Make *file* the newest run: watch it and probe it, where it goes on."""
        now_is = self._settle(file)
        previous = self.state.run if adopted is None else self.state.previous
        self._set(run=now_is, previous=previous, streak=streak, refusal=None, retry_at=0.0)
        self._process = file.process
        if not now_is.running:
            self._set(started=False, ready=False)
            if now_is.reason == "StartError":
                self._event("Warning", "Failed", f"Error: {now_is.message}")
            self._pod.wake()
            return
        if adopted is None:
            self._event("Normal", "Started", f"Started container {self.name}")
        self._watching = self._keep("container", partial(self._watch, file))
        self._begin_probing(adopted)
        self._pod.wake()

    # Watching

    async def _watch(self, file: RunFile) -> None:
        """Wait for the end of a run and record it."""
        await file.shim.ended()
        self._stop_probing()
        run_attempt = self._pod.record.runs[self.name][-1]
        last = self._pod.disk.read_run(self.name, run_attempt)
        ended = self._settle(last) if last is not None else attempts.lost(file.run, _now())
        self._set(run=ended, started=False, ready=False)
        self._settled.set()
        self._nudge.set()
        self._pod.wake()

    # Probing

    def _begin_probing(self, adopted: Json | None) -> None:
        try:
            probes = probes_of(self.spec, self._pod.record.ip)
        except KeyError as error:
            self._event("Warning", "Unhealthy", str(error.args[0]))
            self._set(started=False, ready=False)
            return
        was = adopted or {}
        hook = (self.spec.get("lifecycle") or {}).get("postStart") if adopted is None else None
        started = bool(was.get("started")) or ("startup" not in probes and hook is None)
        ready = started and (bool(was.get("ready")) or "readiness" not in probes)
        self._set(started=started, ready=ready)
        if probes or hook is not None:
            self._hooked = hook is None
            self._probing = self._keep("probe", partial(self._probe, probes, hook))

    async def _probe(self, probes: dict[ProbeKind, Probe], hook: Json | None) -> None:
        """Run postStart once, then the probes. A hook that fails stops the container."""
        if hook is not None and not self._hooked:
            self._hooked = True
            if not await self._post_start(hook):
                return
        began_at = self.state.run.started_at if self.state.run else _now()
        prober = Prober(probes, self, self._execute, began_at, partial(self._keep, "probe"))
        await prober.run(started=self.state.started, ready=self.state.ready or None)

    def has_started(self) -> None:
        """Handle that the startup probe, if any, has passed."""
        if not self.state.started:
            needs_probe = "readinessProbe" in self.spec
            self._set(started=True, ready=not needs_probe)
            self._report_started()

    def is_ready(self, *, ready: bool) -> None:
        """Handle a result of the readiness probe."""
        if ready != self.state.ready:
            self._set(ready=ready)
            self._report_started()

    def _report_started(self) -> None:
        if self.state.ready:
            self._settled.set()
        self._pod.wake()

    def is_unhealthy(self, probe: Probe, message: str) -> None:
        """Handle a single failed probe."""
        self._event("Warning", "Unhealthy", f"{probe.kind} probe failed: {message}")

    def has_failed(self, probe: Probe) -> None:
        """Handle a startup or liveness probe that has failed for good: the container is stopped."""
        if not self._pod.deleting:
            self._event(
                "Normal", "Killing", f"container {self.name} failed its {probe.kind} probe, will be restarted"
            )
            self.stop_within(self._grace() if probe.grace is None else probe.grace)

    def _grace(self) -> float:
        grace = self._pod.pod["spec"].get("terminationGracePeriodSeconds")
        return 30.0 if grace is None else float(grace)

    def _stop_probing(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None

    # Hooks

    async def _execute(self, action: Execute, timeout_seconds: float) -> tuple[int, str]:
        """Run a probe's or hook's command with the container's environment, paths and folder."""
        if self._plan is None:
            try:
                plan = await self._pod.plan(self.name)
            except NodeError as error:
                return 127, str(error)
            if isinstance(plan, Refusal):
                return 127, plan.message
            self._plan = plan
        if not action.command:
            return 127, "exec names no command"
        argv = tuple(self._plan.rewrite(word) for word in action.command)
        return await run(argv, self._plan.env, self._plan.cwd, timeout_seconds)

    async def _post_start(self, hook: Json) -> bool:
        action = action_of(hook, self.spec, self._pod.record.ip)
        if action is None:
            return True
        answer = await checks.ask(action, self._execute, self._grace() or MIN_GRACE_SECONDS)
        if not answer.success:
            self._event("Warning", "FailedPostStartHook", answer.message)
            self.stop_within(self._grace())
        return answer.success

    async def _pre_stop(self, hook: Json, deadline: Callable[[], float]) -> None:
        """Run the hook until it ends, the container does, or *deadline* (Unix seconds) has passed."""
        try:
            action = action_of(hook, self.spec, self._pod.record.ip)
        except KeyError as error:
            self._event("Warning", "FailedPreStopHook", str(error.args[0]))
            return
        if action is None:
            return
        asking = asyncio.create_task(checks.ask(action, self._execute, max(0.1, deadline() - _now())))
        asking.add_done_callback(lambda _: self._nudge.set())
        try:
            while not asking.done() and self.state.running and (left := deadline() - _now()) > 0:
                self._nudge.clear()
                await pause(self._nudge, left)
        finally:
            asking.cancel()
            try:
                answer = await asking
                if not answer.success:
                    self._event("Warning", "FailedPreStopHook", answer.message)
            except asyncio.CancelledError:
                pass
            except Exception as error:  # noqa: BLE001 - SIGTERM must follow, whatever it is
                self._runtime.supervisor.note("stop", error, detail=self._detail)
                self._event("Warning", "FailedPreStopHook", str(error))

    # Stopping

    def stop_within(self, grace_seconds: float) -> None:
        """Begin to stop this run, as a failed probe does."""
        until = _now() + grace_seconds
        self.stop(lambda: until)

    def stop(self, deadline: Callable[[], float]) -> asyncio.Task[None]:
        """Stop the container: preStop, SIGTERM, and SIGKILL at *deadline* (Unix seconds, may move up)."""
        if self._stopping is None or self._stopping.done():
            self._stopping = self._keep("stop", partial(self._stop, deadline))
        return self._stopping

    def hurry(self) -> None:
        """Look at the deadline again."""
        self._settled.set()
        self._nudge.set()

    async def _stop(self, deadline: Callable[[], float]) -> None:
        self._settled.set()
        if self._starting is not None and self._queued:
            self._starting.cancel()
        if self._starting is not None:
            await asyncio.wait([self._starting], timeout=SPAWN_SECONDS)
        process, task = self._find_process(), self._watching
        if not self.state.running or process is None:
            return
        self._event("Normal", "Killing", f"Stopping container {self.name}")
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and deadline() > _now():
            await self._pre_stop(hook, deadline)
        process.signal_group(signal.SIGTERM)
        least = _now() + MIN_GRACE_SECONDS
        while self._is(process) and (left := _kill_at(deadline(), least) - _now()) > 0:
            self._nudge.clear()
            await pause(self._nudge, left)
        process.signal_group(signal.SIGKILL)
        if task is not None:
            await asyncio.wait([task], timeout=REAP_SECONDS)

    def _find_process(self) -> Process | None:
        """Return the container's first process, from the state file where its start was still on the way."""
        if self._process is None and self.state.running:
            file = self._pod.disk.read_run(self.name, self._pod.record.runs[self.name][-1])
            self._process = file.process if file is not None else None
        return self._process

    def _is(self, process: Process) -> bool:
        return self.state.running and self._process == process

    def kill(self) -> None:
        """Kill the container at once."""
        process = self._find_process()
        if process is not None and self.state.running:
            process.signal_group(signal.SIGKILL)
        self.hurry()

    async def detach(self) -> None:
        """Let go of the container and leave it running."""
        tasks = [t for t in (self._starting, self._watching, self._stopping, self._probing) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _set(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]  # fields of ContainerState

    def _event(self, kind: str, reason: str, note: str) -> None:
        self._runtime.events.record(
            self._pod.pod, "Warning" if kind == "Warning" else "Normal", reason, note, self.name
        )
