"""What a process tree has used: CPU seconds on its own clock, memory."""

from __future__ import annotations

import time
from pathlib import Path

_CPU_CLOCK = 2
"""CPUCLOCK_SCHED of linux/posix-timers.h: the sum over a process's threads, in nanoseconds."""


def tree(pid: int) -> list[int]:
    """Return *pid* and its descendants."""
    found = [pid]
    for parent in found:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except FileNotFoundError:
            continue
        found += (int(child) for child in children.split())
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of *pid*'s process tree, from each process's CPU clock."""
    return sum(time.clock_gettime((~process << 3) | _CPU_CLOCK) for process in tree(pid))


def memory_mb(pid: int, field: str) -> float:
    """Return *field* of /proc/PID/status (VmRSS: now, VmHWM: the most there was) over the tree, in MB."""
    total = 0
    for process in tree(pid):
        status = Path(f"/proc/{process}/status").read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))
    return total * 1024 / 1e6
