"""One dev cluster: brought up, used, taken down.

::

    with Cluster.up("demo", nodes=2, accelerators={"H100-SXM": 16}) as cluster:
        cluster.kubectl("get", "nodes")

The processes belong to a supervisor (``supervisor.py``) that outlives the caller, unless the cluster was given an
owner: then it ends when that process does, whatever way.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, Self

from turnout_devcluster import apiclient, logfiles
from turnout_devcluster.binaries import find_binaries
from turnout_devcluster.client import Client
from turnout_devcluster.components import API_SERVER, ETCD, NODE, has_node_agent
from turnout_devcluster.config import ClusterConfig, load_config
from turnout_devcluster.errors import StartError, StopError, UnknownClusterError
from turnout_devcluster.files import exclusive
from turnout_devcluster.layout import ClusterFiles, existing_clusters
from turnout_devcluster.network import choose_ports, claim_network
from turnout_devcluster.prepare import prepare
from turnout_devcluster.processes import MARKER, ProcessId, end_marked, identify, send_signal, wait_gone
from turnout_devcluster.progress import Progress
from turnout_devcluster.record import load_records, log_tail, running_supervisor

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

DEFAULT_NAME: Final = "turnout"
DEFAULT_ACCELERATORS: Final = {"H100-SXM": 16}

_LOCK_SECONDS: Final = 1800.0
"""Longer than a cold build takes."""
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1


class Cluster:
    """A dev cluster that runs. Make one with ``up`` or ``attach``; as a context manager it is taken down."""

    def __init__(self, files: ClusterFiles, config: ClusterConfig) -> None:
        self._files = files
        self.config = config
        self._client = Client(files.kubeconfig, files.bin)

    @classmethod
    def up(
        cls,
        name: str = DEFAULT_NAME,
        *,
        nodes: int = 2,
        accelerators: Mapping[str, int] | None = None,
        owner_pid: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Start the cluster *name* and return when it can be used; one that runs already is returned as it is.

        *nodes* is the number of nodes per accelerator type, *accelerators* how many each of those pretends to
        have. With *owner_pid* the cluster ends with that process. Usable means: /readyz is 200, the default
        service account exists, the nodes are Ready.

        :raises DevClusterError: with the reason, and the log of the component that is to blame.
        """
        say = progress or Progress()
        files = ClusterFiles.of(name)
        binaries = find_binaries(say)
        lock = exclusive(
            files.lock,
            deadline_seconds=_LOCK_SECONDS,
            waiting=lambda: say.line(f"waiting: the cluster {name} is being started or stopped elsewhere"),
        )
        with lock:
            if running_supervisor(files) is not None:
                cluster = cls(files, load_config(files))
                say.line(f"the cluster {name} runs already")
                cluster._wait_usable(say)
                return cluster
            _clear_remains(files)
            addresses, claim = claim_network(name)
            with claim:
                config = ClusterConfig(
                    name=name,
                    addresses=addresses,
                    ports=choose_ports(addresses),
                    nodes=nodes,
                    accelerators=dict(DEFAULT_ACCELERATORS if accelerators is None else accelerators),
                    owner=None if owner_pid is None else _owner(owner_pid),
                )
                prepare(files, config, binaries)
                say.line(f"starting the cluster {name} at {config.server}")
                _start_supervisor(files, claim)
            cluster = cls(files, config)
            try:
                cluster._wait_usable(say)
            except BaseException:
                _take_down(files)
                raise
            return cluster

    @classmethod
    def attach(cls, name: str = DEFAULT_NAME) -> Self:
        """Return the cluster *name*, whether its processes run or not.

        :raises UnknownClusterError: when there is none of that name.
        """
        files = ClusterFiles.of(name)
        if not files.config.is_file():
            there = ", ".join(existing_clusters()) or "none"
            raise UnknownClusterError(
                f"There is no dev cluster {name!r}; there are: {there}. Start it with 'turnout dev up --name {name}'."
            )
        return cls(files, load_config(files))

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.config.name

    @property
    def files(self) -> ClusterFiles:
        """Where everything of it lies."""
        return self._files

    @property
    def state_dir(self) -> Path:
        """Its folder."""
        return self._files.directory

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self._files.kubeconfig

    def binary(self, tool: str) -> Path:
        """Return the path of *tool*, such as kubectl or helm."""
        return self._client.binary(tool)

    def env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return an environment in which kubectl and helm mean this cluster."""
        return self._client.env(base)

    def kubectl(self, *args: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run kubectl and return its stdout.

        :raises CommandError: when it fails, with its stderr in the message.
        """
        return self._client.run("kubectl", *args, stdin=stdin, timeout=timeout)

    def helm(self, *args: str, stdin: str | None = None, timeout: float = 300) -> str:
        """Run helm and return its stdout.

        :raises CommandError: when it fails, with its stderr in the message.
        """
        return self._client.run("helm", *args, stdin=stdin, timeout=timeout)

    def pid(self, component: str) -> int | None:
        """Return the pid of *component* (``etcd``, ``kube-apiserver``, ..., ``node``), None while it is down."""
        for record in load_records(self._files):
            if record.name == component and record.process is not None:
                return record.process.pid
        return None

    def kill(self, component: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill *component* and return when that process is gone. The supervisor starts it again.

        :raises StopError: when it does not run, or does not end.
        """
        for record in load_records(self._files):
            if record.name == component and record.process is not None:
                send_signal(record.process, number)
                if wait_gone(record.process, _STOP_SECONDS):
                    return
        raise StopError(
            f"The component {component!r} of the cluster {self.name} does not run or does not end."
        )

    def is_running(self) -> bool:
        """Whether its supervisor is alive."""
        return running_supervisor(self._files) is not None

    def down(self) -> None:
        """End every process of the cluster and remove its files. One that is down already stays so.

        :raises StopError: when a process cannot be ended.
        """
        with exclusive(self._files.lock, deadline_seconds=_LOCK_SECONDS, waiting=lambda: None):
            _take_down(self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    def _wait_usable(self, say: Progress) -> None:
        started = time.monotonic()
        self._wait(API_SERVER, "the API server is ready", apiclient.is_ready)
        say.line(f"the API server is ready after {time.monotonic() - started:.1f} s")
        self._wait(
            "kube-controller-manager", "the default service account is there", apiclient.has_default_account
        )
        if self.config.nodes and has_node_agent():
            expected = self.config.nodes * max(1, len(self.config.accelerators))
            self._wait(NODE, f"{expected} nodes are Ready", _nodes_ready(expected))
        say.line(f"usable after {time.monotonic() - started:.1f} s")

    def _wait(self, blamed: str, what: str, condition: Callable[[ClusterConfig, ClusterFiles], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not condition(self.config, self._files):
            if running_supervisor(self._files) is None and not self._files.components.exists():
                if time.monotonic() < deadline - _START_SECONDS + 10:
                    time.sleep(_POLL_SECONDS)
                    continue
                blamed = "supervisor"
            elif running_supervisor(self._files) is not None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            raise StartError(self._failure(blamed, what))

    def _failure(self, blamed: str, what: str) -> str:
        records = {record.name: record for record in load_records(self._files)}
        if ETCD in records and records[ETCD].restarts:
            blamed = ETCD
        record = records.get(blamed)
        ended = f" It {record.last_exit}." if record is not None and record.last_exit else ""
        return (
            f"The cluster {self.name} did not come up: waited in vain until {what}.{ended} "
            f"Last lines of {blamed}'s log:\n{log_tail(self._files.log(blamed))}"
        )


def _nodes_ready(expected: int) -> Callable[[ClusterConfig, ClusterFiles], bool]:
    def ready(config: ClusterConfig, files: ClusterFiles) -> bool:
        nodes = apiclient.node_readiness(config, files)
        return len(nodes) >= expected and all(nodes.values())

    return ready


def _owner(pid: int) -> ProcessId:
    owner = identify(pid)
    if owner is None:
        raise StartError(f"The process {pid} that was to own the cluster does not run.")
    return owner


def _start_supervisor(files: ClusterFiles, claim: socket.socket) -> None:
    with logfiles.open_append(files.log("supervisor")) as log:
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
    child.returncode = 0  # it is meant to outlive this process; nobody waits for it here


def _take_down(files: ClusterFiles) -> None:
    supervisor = running_supervisor(files)
    if supervisor is not None:
        send_signal(supervisor, signal.SIGTERM)
        wait_gone(supervisor, _STOP_SECONDS)
    _clear_remains(files)


def _clear_remains(files: ClusterFiles) -> None:
    """End what still runs of the cluster, without ceremony, and remove its files."""
    rest = end_marked(
        files.directory, exempt=frozenset({os.getpid()}), term_seconds=0.0, kill_seconds=_STOP_SECONDS
    )
    if rest:
        raise StopError(
            f"Processes of the cluster {files.directory.name} cannot be killed: "
            f"{', '.join(str(process.pid) for process in rest)}. End them and try again."
        )
    if files.directory.exists():
        shutil.rmtree(files.directory)
