"""One dev cluster: brought up, used, taken down.

::

    with Cluster.up("demo", nodes=2, accelerators={"H100-SXM": 16}) as cluster:
        cluster.kubectl("get", "nodes")

The processes belong to a supervisor (``supervisor.py``) that outlives the caller, unless the cluster was given an
owner: then it ends when that process does, whatever way.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final, Self

from turnout_devcluster.binaries import find_binaries
from turnout_devcluster.client import ClusterClient
from turnout_devcluster.config import ClusterConfig, load_config
from turnout_devcluster.errors import StartError, StopError, UnknownClusterError
from turnout_devcluster.files import exclusive
from turnout_devcluster.layout import ClusterFiles, existing_clusters
from turnout_devcluster.lifecycle import (
    STOP_SECONDS,
    clear_remains,
    start_supervisor,
    take_down,
    wait_usable,
)
from turnout_devcluster.network import choose_ports, claim_network
from turnout_devcluster.prepare import prepare
from turnout_devcluster.processes import ProcessId, identify, send_signal, wait_gone
from turnout_devcluster.progress import Progress
from turnout_devcluster.record import ComponentRecord, load_records, running_supervisor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

DEFAULT_NAME: Final = "turnout"
DEFAULT_NODES: Final = 2
DEFAULT_ACCELERATORS: Final = {"H100-SXM": 16}

_LOCK_SECONDS: Final = 300.0


class Cluster(ClusterClient):
    """A dev cluster. Make one with ``up`` or ``attach``; as a context manager it is taken down."""

    def __init__(self, files: ClusterFiles, config: ClusterConfig) -> None:
        super().__init__(config.name, files.kubeconfig, files.bin)
        self.files = files
        """Where everything of it lies."""
        self.config = config
        """What it was started with."""

    @classmethod
    def up(
        cls,
        name: str = DEFAULT_NAME,
        *,
        nodes: int = DEFAULT_NODES,
        accelerators: Mapping[str, int] | None = None,
        owner_pid: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Start the cluster *name* and return when it can be used; one that runs already is returned as it is.

        *nodes* is the number of nodes per accelerator type (0: none), *accelerators* how many each of those
        pretends to have. With *owner_pid* the cluster ends with that process. Usable means: /readyz is ok, the
        default service account exists, the nodes are Ready.

        :raises DevClusterError: with the reason, and the log of the component that is to blame.
        """
        say = progress or Progress()
        files = ClusterFiles.of(name)
        binaries = find_binaries(say)
        with _locked(files, say):
            if running_supervisor(files) is not None:
                cluster = cls(files, load_config(files))
                say.line(f"the cluster {name} runs already: it is left as it is")
                wait_usable(files, cluster.config, say)
                return cluster
            clear_remains(files)
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
                try:
                    prepare(files, config, binaries)
                    say.line(f"starting the cluster {name} at {config.server}")
                    start_supervisor(files, claim)
                    wait_usable(files, config, say)
                except BaseException:
                    take_down(files)
                    raise
            return cls(files, config)

    @classmethod
    def attach(cls, name: str = DEFAULT_NAME) -> Self:
        """Return the cluster *name*, whether its processes run or not.

        :raises UnknownClusterError: when there is none of that name.
        """
        files = ClusterFiles.of(name)
        if not files.config.is_file():
            there = ", ".join(existing_clusters()) or "none"
            raise UnknownClusterError(
                f"There is no dev cluster called {name}; there are: {there}. "
                f"Start it with 'turnout dev up --name {name}'."
            )
        return cls(files, load_config(files))

    @property
    def state_dir(self) -> Path:
        """Its folder."""
        return self.files.directory

    def components(self) -> tuple[ComponentRecord, ...]:
        """Return its processes as the supervisor last saw them."""
        return load_records(self.files)

    def pid(self, component: str) -> int | None:
        """Return the pid of *component* (``etcd``, ``kube-apiserver``, ..., ``node``), None while it is down."""
        process = self._process(component)
        return None if process is None else process.pid

    def kill(self, component: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill *component* and return when that process is gone. The supervisor starts it again.

        :raises StopError: when it does not run, or does not end.
        """
        process = self._process(component)
        if process is None or not send_signal(process, number):
            raise StopError(f"The component {component} of the cluster {self.name} does not run.")
        if not wait_gone(process, STOP_SECONDS):
            raise StopError(f"{component} (process {process.pid}) did not end on {number.name}.")

    def supervisor(self) -> ProcessId | None:
        """Return the process that runs the cluster, None when it does not run."""
        return running_supervisor(self.files)

    def down(self) -> None:
        """End every process of the cluster and remove its files. It may be down already.

        :raises StopError: when a process cannot be ended.
        """
        with _locked(self.files, Progress()):
            take_down(self.files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    def _process(self, component: str) -> ProcessId | None:
        return next((record.process for record in self.components() if record.name == component), None)


def _locked(files: ClusterFiles, say: Progress) -> AbstractContextManager[None]:
    return exclusive(
        files.lock,
        deadline_seconds=_LOCK_SECONDS,
        waiting=lambda: say.line(
            f"waiting: the cluster {files.directory.name} is being started or stopped by another process"
        ),
    )


def _owner(pid: int) -> ProcessId:
    owner = identify(pid)
    if owner is None:
        raise StartError(f"The process {pid} that was to own the cluster does not run.")
    return owner
