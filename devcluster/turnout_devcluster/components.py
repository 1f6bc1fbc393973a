"""The processes of a cluster and their command lines, as a pure function of its configuration."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_devcluster.config import ClusterConfig
    from turnout_devcluster.layout import ClusterFiles

ETCD: Final = "etcd"
API_SERVER: Final = "kube-apiserver"
CONTROLLER_MANAGER: Final = "kube-controller-manager"
SCHEDULER: Final = "kube-scheduler"
NODE: Final = "node"

SERVERS: Final = (ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER)
CLIENTS: Final = ("kubectl", "helm")

_CONTROLLERS_OFF: Final = (
    # EndpointSlices refuse loopback addresses, so these could only write failures into the Events.
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    # What they look after does not exist here: cloud routes and load balancers, disks, certificate requests.
    "certificatesigningrequest-approving-controller",
    "certificatesigningrequest-cleaner-controller",
    "certificatesigningrequest-signing-controller",
    "cloud-node-lifecycle-controller",
    "ephemeral-volume-controller",
    "node-route-controller",
    "persistentvolume-attach-detach-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-expander-controller",
    "persistentvolume-protection-controller",
    "persistentvolumeclaim-protection-controller",
    "podcertificaterequest-cleaner-controller",
    "service-lb-controller",
    "volumeattributesclass-protection-controller",
)


@dataclass(frozen=True, slots=True)
class Component:
    """One process that the supervisor keeps running."""

    name: str
    command: tuple[str, ...]
    needs_api: bool
    """Started only when the API server has been ready once; afterwards it must bear its absence."""
    environment: Mapping[str, str] = field(default_factory=dict)


def plan_components(files: ClusterFiles, config: ClusterConfig) -> tuple[Component, ...]:
    """Return what the cluster runs, in the order in which it is started."""
    control_plane = (
        Component(ETCD, _etcd(files, config), needs_api=False),
        Component(API_SERVER, _api_server(files, config), needs_api=False),
        Component(CONTROLLER_MANAGER, _controller_manager(files), needs_api=True),
        Component(SCHEDULER, _scheduler(files), needs_api=True),
    )
    if config.nodes == 0:
        return control_plane
    return (*control_plane, Component(NODE, _node(files, config), needs_api=True))


def _etcd(files: ClusterFiles, config: ClusterConfig) -> tuple[str, ...]:
    client = f"https://{config.addresses.control_plane}:{config.ports.etcd}"
    peer = f"http://{config.addresses.control_plane}:{config.ports.etcd_peer}"
    return (
        str(files.bin / ETCD),
        "--name=default",
        f"--data-dir={files.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        # Only the API server may read and write: any process of the machine could otherwise go round RBAC.
        "--client-cert-auth",
        f"--trusted-ca-file={files.pki / 'ca.crt'}",
        f"--cert-file={files.pki / 'etcd.crt'}",
        f"--key-file={files.pki / 'etcd.key'}",
        # A killed process loses nothing by this, only a machine that loses its power.
        "--unsafe-no-fsync",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=5m",
        "--log-level=warn",
    )


def _api_server(files: ClusterFiles, config: ClusterConfig) -> tuple[str, ...]:
    pki = files.pki
    return (
        str(files.bin / API_SERVER),
        f"--etcd-servers=https://{config.addresses.control_plane}:{config.ports.etcd}",
        f"--etcd-cafile={pki / 'ca.crt'}",
        f"--etcd-certfile={pki / 'etcd-client.crt'}",
        f"--etcd-keyfile={pki / 'etcd-client.key'}",
        f"--bind-address={config.addresses.control_plane}",
        f"--advertise-address={config.addresses.control_plane}",
        f"--secure-port={config.ports.api}",
        "--endpoint-reconciler-type=none",
        f"--service-cluster-ip-range={config.addresses.services}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=RBAC",
        f"--service-account-issuer={config.server}",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        "--allow-privileged=true",
        "--profiling=false",
        "--event-ttl=1h",
    )


def _controller_manager(files: ClusterFiles) -> tuple[str, ...]:
    switched_off = ",".join(f"-{name}" for name in _CONTROLLERS_OFF)
    return (
        str(files.bin / CONTROLLER_MANAGER),
        f"--kubeconfig={files.component_kubeconfig(CONTROLLER_MANAGER)}",
        "--use-service-account-credentials",
        f"--service-account-private-key-file={files.pki / 'sa.key'}",
        f"--root-ca-file={files.pki / 'ca.crt'}",
        f"--controllers=*,{switched_off}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
        "--profiling=false",
    )


def _scheduler(files: ClusterFiles) -> tuple[str, ...]:
    return (
        str(files.bin / SCHEDULER),
        f"--kubeconfig={files.component_kubeconfig(SCHEDULER)}",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
        "--profiling=false",
    )


def _node(files: ClusterFiles, config: ClusterConfig) -> tuple[str, ...]:
    accelerators = ",".join(f"{kind}={count}" for kind, count in sorted(config.accelerators.items()))
    return (
        sys.executable,
        "-P",
        "-m",
        "turnout_devcluster.node",
        f"--state-dir={files.directory}",
        f"--kubeconfig={files.node_kubeconfig}",
        f"--subnet={config.addresses.subnet}",
        f"--nodes={config.nodes}",
        f"--accelerators={accelerators}",
    )
