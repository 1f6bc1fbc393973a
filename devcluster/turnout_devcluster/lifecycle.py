"""The steps by which a cluster comes and goes. Their caller holds the cluster's lock."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from turnout_devcluster import apiclient, logfiles
from turnout_devcluster.components import API_SERVER, CONTROLLER_MANAGER, ETCD, NODE
from turnout_devcluster.errors import StartError, StopError
from turnout_devcluster.processes import MARKER, end_marked, send_signal, wait_gone
from turnout_devcluster.record import load_records, log_tail, running_supervisor

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from turnout_devcluster.config import ClusterConfig
    from turnout_devcluster.layout import ClusterFiles
    from turnout_devcluster.progress import Progress

STOP_SECONDS: Final = 30.0
"""How long processes that were killed may take to be gone."""

_SUPERVISOR: Final = "supervisor"
_SUPERVISOR_SECONDS: Final = 30.0
_START_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.1


def start_supervisor(files: ClusterFiles, claim: socket.socket) -> None:
    """Start the supervisor, detached, and return when it has written its process id; it inherits the network's *claim*.

    :raises StartError: with its last words, when it ends at once.
    """
    with logfiles.open_append(files.log(_SUPERVISOR)) as log:
        child = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "turnout_devcluster.supervisor"),
                *("--state-dir", str(files.directory), "--claim-fd", str(claim.fileno())),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, MARKER: str(files.directory)},
            start_new_session=True,
            pass_fds=(claim.fileno(),),
        )
    deadline = time.monotonic() + _SUPERVISOR_SECONDS
    while running_supervisor(files) is None:
        if child.poll() is not None or time.monotonic() > deadline:
            raise StartError(
                f"The supervisor of {files.directory.name} did not start. Last lines of its log:\n"
                f"{log_tail(files.log(_SUPERVISOR))}"
            )
        time.sleep(_POLL_SECONDS)
    child.returncode = 0  # it is meant to outlive this process, which will not wait for it


def wait_usable(files: ClusterFiles, config: ClusterConfig, progress: Progress) -> None:
    """Return when the API server is ready, the default service account exists and the nodes are Ready.

    :raises StartError: after two minutes without one of them, with the log of the component that is to blame.
    """
    _wait(files, config, API_SERVER, "/readyz is ok", apiclient.is_ready)
    progress.line("the API server is ready")
    what = "the default service account exists"
    _wait(files, config, CONTROLLER_MANAGER, what, apiclient.has_default_account)
    if config.expected_nodes:
        _wait(files, config, NODE, f"{config.expected_nodes} nodes are Ready", _nodes_ready)
        progress.line(f"{config.expected_nodes} nodes are ready")


def take_down(files: ClusterFiles) -> None:
    """End every process of the cluster and remove its files.

    :raises StopError: when a process cannot be ended.
    """
    supervisor = running_supervisor(files)
    if supervisor is not None:
        send_signal(supervisor, signal.SIGTERM)
        wait_gone(supervisor, STOP_SECONDS)
    clear_remains(files)


def clear_remains(files: ClusterFiles) -> None:
    """End what still runs of a cluster that has no supervisor any more, and remove its files.

    :raises StopError: when a process cannot be ended.
    """
    me = frozenset({os.getpid()})
    rest = end_marked(files.directory, exempt=me, term_seconds=0.0, kill_seconds=STOP_SECONDS)
    if rest:
        pids = ", ".join(str(process.pid) for process in rest)
        raise StopError(
            f"Processes of the cluster {files.directory.name} cannot be killed: {pids}. End them and try again."
        )
    if files.directory.exists():
        shutil.rmtree(files.directory)


def _wait(
    files: ClusterFiles,
    config: ClusterConfig,
    blamed: str,
    what: str,
    condition: Callable[[ClusterConfig, ClusterFiles], bool],
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition(config, files):
        if running_supervisor(files) is None:
            raise StartError(_failure(files, _SUPERVISOR, what))
        if time.monotonic() > deadline:
            raise StartError(_failure(files, blamed, what))
        time.sleep(_POLL_SECONDS)


def _nodes_ready(config: ClusterConfig, files: ClusterFiles) -> bool:
    nodes = apiclient.node_readiness(config, files)
    return len(nodes) >= config.expected_nodes and all(nodes.values())


def _failure(files: ClusterFiles, blamed: str, what: str) -> str:
    records = {record.name: record for record in load_records(files)}
    # An API server that waits for etcd is not the one to ask.
    if blamed == API_SERVER and ETCD in records and records[ETCD].restarts:
        blamed = ETCD
    record = records.get(blamed)
    ended = f" {blamed} {record.last_exit}." if record is not None and record.last_exit else ""
    return (
        f"The cluster {files.directory.name} did not come up: waited in vain until {what}.{ended} "
        f"Last lines of {blamed}'s log:\n{log_tail(files.log(blamed))}"
    )
