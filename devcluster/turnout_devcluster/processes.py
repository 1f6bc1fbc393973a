"""Processes by an identity that is never reused, and those that belong to a cluster.

A process id alone may come to name another process; together with the start time of /proc/PID/stat it does not.
Everything a cluster runs carries ``TURNOUT_DEV_CLUSTER=<state dir>`` in its environment, so whatever is left
of a cluster can be found without having been written down.

Only the standard library is imported here: the guard runs without site-packages.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MARKER: Final = "TURNOUT_DEV_CLUSTER"
"""Environment variable that names the state folder of the cluster a process belongs to."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_SWEEP_SECONDS: Final = 0.05
_STATE_FIELD: Final = 0
_PARENT_FIELD: Final = 1
_START_FIELD: Final = 19
"""Indices into /proc/PID/stat behind the parenthesized name: fields 3, 4 and 22 of proc(5)."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, identified by pid and start time, unlike any other that had or will have the same pid."""

    pid: int
    start_ticks: int
    """Start time in clock ticks since boot."""

    def __str__(self) -> str:
        return f"{self.pid} {self.start_ticks}"

    @classmethod
    def parse(cls, text: str) -> ProcessId | None:
        """Read what ``str()`` wrote; None when it is something else."""
        words = text.split()
        if len(words) != 2 or not all(word.isdigit() for word in words):  # noqa: PLR2004 - pid and start time
            return None
        return cls(int(words[0]), int(words[1]))


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def identify(pid: int) -> ProcessId | None:
    """Return the identity of the process that has *pid* now, None when there is none or only a zombie."""
    fields = _stat_fields(pid)
    if fields is None or fields[_STATE_FIELD] in "ZX":
        return None
    return ProcessId(pid, int(fields[_START_FIELD]))


def is_alive(process: ProcessId) -> bool:
    """Whether *process* still runs."""
    return identify(process.pid) == process


def send_signal(process: ProcessId, number: signal.Signals) -> bool:
    """Signal *process*, and never another that got its pid. False when it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_gone(process: ProcessId, seconds: float) -> bool:
    """Wait until *process* has ended, at most *seconds*; whether it has."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(process):
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def marked_processes(directory: Path) -> list[ProcessId]:
    """Return the processes of the cluster whose state folder is *directory*, with all their descendants.

    The descendants catch programs that were started with a cleaned environment.
    """
    needle = f"{MARKER}={directory}".encode()
    parents: dict[int, int] = {}
    found: dict[int, ProcessId] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        fields = _stat_fields(pid)
        if fields is None or fields[_STATE_FIELD] in "ZX":
            continue
        parents[pid] = int(fields[_PARENT_FIELD])
        # The environment of another user's process is unreadable, and that process is none of the cluster's.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found[pid] = ProcessId(pid, int(fields[_START_FIELD]))
    grown = True
    while grown:
        grown = False
        for pid, parent in parents.items():
            if parent in found and pid not in found:
                identity = identify(pid)
                if identity is not None:
                    found[pid] = identity
                    grown = True
    return list(found.values())


def end_marked(
    directory: Path, *, exempt: frozenset[int], term_seconds: float, kill_seconds: float
) -> list[ProcessId]:
    """End every process of a cluster: SIGTERM, after *term_seconds* SIGKILL, until none is left.

    Returns those that are still there after *kill_seconds* more: normally none. *exempt* holds pids to spare.
    """
    started = time.monotonic()
    termed: set[ProcessId] = set()
    while True:
        rest = [process for process in marked_processes(directory) if process.pid not in exempt]
        elapsed = time.monotonic() - started
        if not rest or elapsed > term_seconds + kill_seconds:
            return rest
        for process in rest:
            if elapsed >= term_seconds:
                send_signal(process, signal.SIGKILL)
            elif process not in termed:
                termed.add(process)
                send_signal(process, signal.SIGTERM)
        time.sleep(_SWEEP_SECONDS)


def dying_with_parent() -> Callable[[], None]:
    """Return a ``preexec_fn`` that has the kernel kill the child when the thread that started it ends."""
    import ctypes  # noqa: PLC0415 - the guard imports this module and should stay small

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return arm


def become_subreaper() -> None:
    """Have orphans among this process's descendants handed to it instead of to init."""
    import ctypes  # noqa: PLC0415 - the guard imports this module and should stay small

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
