"""Where a dev cluster keeps its files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turnout_devcluster.errors import DevClusterError

STATE_VARIABLE: Final = "TURNOUT_STATE"
CACHE_VARIABLE: Final = "TURNOUT_CACHE"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


def state_root() -> Path:
    """Folder that holds one folder per dev cluster: ``$TURNOUT_STATE/dev``."""
    given = os.environ.get(STATE_VARIABLE)
    base = Path(given) if given else Path.home() / ".local" / "state" / "turnout"
    return base.absolute() / "dev"


def cache_root() -> Path:
    """Folder of everything that can be built or fetched again: ``$TURNOUT_CACHE``."""
    given = os.environ.get(CACHE_VARIABLE)
    base = Path(given) if given else Path.home() / ".cache" / "turnout"
    return base.absolute()


@dataclass(frozen=True, slots=True)
class ClusterFiles:
    """The files of one cluster. All of them lie in *directory*, which goes when the cluster goes."""

    directory: Path

    @classmethod
    def of(cls, name: str) -> ClusterFiles:
        """Return the files of the cluster called *name*.

        :raises DevClusterError: when the name is not a short DNS label.
        """
        if not _NAME.fullmatch(name):
            raise DevClusterError(
                f"{name!r} cannot name a dev cluster: use 1 to 40 lower-case letters, digits and dashes, "
                "beginning and ending with a letter or digit."
            )
        return cls(state_root() / name)

    @property
    def lock(self) -> Path:
        """Held while the cluster is started or taken down; beside the folder, for that comes and goes."""
        return self.directory.parent / f".{self.directory.name}.lock"

    @property
    def config(self) -> Path:
        """What the cluster was started with (``config.ClusterConfig`` as JSON)."""
        return self.directory / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.directory / "kubeconfig"

    @property
    def node_kubeconfig(self) -> Path:
        """The node agent's kubeconfig."""
        return self.directory / "node.kubeconfig"

    def component_kubeconfig(self, component: str) -> Path:
        """Return the kubeconfig of a control plane component."""
        return self.directory / f"{component}.kubeconfig"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.directory / "pki"

    @property
    def etcd(self) -> Path:
        """The data of etcd."""
        return self.directory / "etcd"

    @property
    def bin(self) -> Path:
        """Links to the binaries that this cluster uses, under their own names."""
        return self.directory / "bin"

    @property
    def pods(self) -> Path:
        """The node agent's folder: one folder per pod, with its volumes and logs."""
        return self.directory / "pods"

    def log(self, component: str) -> Path:
        """Return the log file of a component."""
        return self.directory / "logs" / f"{component}.log"

    @property
    def supervisor_pid(self) -> Path:
        """``PID STARTTIME`` of the supervisor (start time in clock ticks, field 22 of /proc/PID/stat)."""
        return self.directory / "supervisor.pid"

    @property
    def components(self) -> Path:
        """What the supervisor last knew of its components (JSON, see ``record.py``)."""
        return self.directory / "components.json"


def existing_clusters() -> list[str]:
    """Return the names of the clusters that have a folder, sorted."""
    root = state_root()
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / "cluster.json").is_file())
