"""What a dev cluster's processes cost: resident memory and processor time, read from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from turnout_devcluster.processes import marked_processes

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

SERVICES = ("turnout-operator", "turnout-router", "turnout-worker")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process."""

    rss_mib: float
    cpu_seconds: float
    """Processor time since it began."""


def processes(cluster: Cluster) -> dict[int, str]:
    """Return what every process of the cluster is, by pid: a component of the control plane, or one of Turnout's."""
    components = {record.process.pid: record.name for record in cluster.components() if record.process}
    supervisor = cluster.supervisor()
    if supervisor is not None:
        components[supervisor.pid] = "supervisor"
    named = {process.pid: _service(process.pid) for process in marked_processes(cluster.state_dir)}
    return {**{pid: name for pid, name in named.items() if name}, **components}


def pid_at(cluster: Cluster, address: str, service: str) -> int:
    """Return the pid of *service* in the pod at *address*. Raise LookupError where it does not run."""
    mark = f"TURNOUT_BIND_ADDRESS={address}".encode()
    for process in marked_processes(cluster.state_dir):
        if _service(process.pid) == service and mark in _read(process.pid, "environ").split(b"\0"):
            return process.pid
    raise LookupError(f"no {service} at {address}")


def usage(pid: int) -> Usage | None:
    """Return what a process uses; None where it has ended."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    status = dict(line.split(b":", 1) for line in _read(pid, "status").splitlines() if b":" in line)
    if not fields or b"VmRSS" not in status:
        return None
    return Usage(int(status[b"VmRSS"].split()[0]) / 1024, (int(fields[11]) + int(fields[12])) / _TICKS)


def _service(pid: int) -> str:
    """Return which of Turnout's services a process is; empty for what only watches over one."""
    words = _read(pid, "cmdline").split(b"\0")[:2]
    names = {os.path.basename(word).decode(errors="replace") for word in words}  # noqa: PTH119 - bytes of a command line
    return next((service for service in SERVICES if service in names), "")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
