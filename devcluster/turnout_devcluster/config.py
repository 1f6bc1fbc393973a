"""What a dev cluster was started with, as it is kept in ``cluster.json``."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotation at run time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from turnout_devcluster.errors import DevClusterError
from turnout_devcluster.files import write_atomically
from turnout_devcluster.processes import ProcessId  # noqa: TC001 - pydantic reads the annotation at run time

if TYPE_CHECKING:
    from turnout_devcluster.layout import ClusterFiles


@dataclass(frozen=True, slots=True)
class Addresses:
    """The loopback addresses of one cluster, all in 127.*network*.0.0/16.

    ``127.N.0.1`` is the control plane; nodes and pods have the rest of ``127.N.0.0/17``, Services the upper
    half ``127.N.128.0/17``. No two clusters of a machine share a network, so ports never collide.
    """

    network: int
    """The second byte, 64 to 255."""

    @property
    def control_plane(self) -> str:
        """Where etcd and the API server listen."""
        return f"127.{self.network}.0.1"

    @property
    def subnet(self) -> str:
        """All addresses of the cluster."""
        return f"127.{self.network}.0.0/16"

    @property
    def services(self) -> str:
        """The range of cluster IPs."""
        return f"127.{self.network}.128.0/17"

    @property
    def kubernetes_service(self) -> str:
        """Cluster IP of the Service ``kubernetes``: the first of the range."""
        return f"127.{self.network}.128.1"


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP ports of the control plane on its own address."""

    api: int
    etcd: int
    etcd_peer: int


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Everything the supervisor needs to run a cluster."""

    name: str
    addresses: Addresses
    ports: Ports
    nodes: int
    """Nodes per accelerator type; 0 runs a control plane without nodes."""
    accelerators: Mapping[str, int] = field(default_factory=dict)
    """Accelerator type to the number of them that each of its nodes pretends to have."""
    owner: ProcessId | None = None
    """The process whose end ends the cluster; None: the cluster lives until it is taken down."""

    @property
    def expected_nodes(self) -> int:
        """Number of Node objects: *nodes* of each accelerator type, or of one without accelerators."""
        return self.nodes * max(1, len(self.accelerators))

    @property
    def server(self) -> str:
        """URL of the API server."""
        return f"https://{self.addresses.control_plane}:{self.ports.api}"


_ADAPTER: Final = TypeAdapter(ClusterConfig)


def load_config(files: ClusterFiles) -> ClusterConfig:
    """Read ``cluster.json``.

    :raises DevClusterError: when it is missing or not understood.
    """
    try:
        return _ADAPTER.validate_json(files.config.read_bytes())
    except (OSError, ValidationError) as error:
        raise DevClusterError(
            f"{files.config} cannot be read ({error}). "
            f"Remove the cluster with 'turnout dev down --name {files.directory.name}'."
        ) from error


def store_config(files: ClusterFiles, config: ClusterConfig) -> None:
    """Write ``cluster.json``."""
    write_atomically(files.config, _ADAPTER.dump_json(config, indent=2))
