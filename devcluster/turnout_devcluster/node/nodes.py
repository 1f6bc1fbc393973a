"""Which nodes there are: their names, addresses and Node objects.

A node holds accelerators of one product, as machines do. ``H100-SXM=16,H200-SXM=8`` with two nodes
makes ``h100-sxm-0``, ``h100-sxm-1``, ``h200-sxm-0`` and ``h200-sxm-1``: two nodes of each type, each
with that many accelerators. Without accelerators the nodes are ``node-0``, ``node-1`` and so on.
The last part of 127.N.0.X is the node's number, from 1.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turnout.sizing.accelerators import ACCELERATORS, DEVICES, PRODUCT_LABEL, AcceleratorSpec
from turnout_devcluster.node.errors import ConfigurationError
from turnout_devcluster.node.status import timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_devcluster.node.model import Json

MAX_NODES = 200
LEASE_SECONDS = 40
FIRST_POD_BLOCK = 256
"""Offset of the first pod address in the subnet: the first 256 are the nodes'."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node to be."""

    name: str
    address: str
    product: str
    resource: str
    accelerators: int
    cpu: str = "256"
    memory: str = "1Ti"
    pods: str = "250"

    @property
    def capacity(self) -> dict[str, str]:
        """What the node has. Processor and memory are pretended, so that real requests fit."""
        has = {"cpu": self.cpu, "memory": self.memory, "pods": self.pods, "ephemeral-storage": "1Ti"}
        if self.accelerators:
            has[self.resource] = str(self.accelerators)
        return has


def parse_accelerators(text: str) -> dict[str, int]:
    """Return ``{"H100-SXM": 16}`` for ``H100-SXM=16``. Raise ConfigurationError, naming the known types."""
    found: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        kind, _, count = part.partition("=")
        if kind not in DEVICES or not count.isdigit() or int(count) < 1:
            raise ConfigurationError(
                f"{part!r} is no accelerator with a count: write TYPE=COUNT such as H100-SXM=16, "
                f"where TYPE is one of {', '.join(DEVICES)}"
            )
        found[kind] = int(count)
    return found


def plan_nodes(subnet: str, count: int, accelerators: Mapping[str, int]) -> tuple[NodePlan, ...]:
    """Return the nodes of a cluster that owns *subnet*, a /16. Raise ConfigurationError."""
    network = parse_subnet(subnet)
    kinds: list[AcceleratorSpec | None] = [ACCELERATORS[kind] for kind in accelerators] or [None]
    if not 1 <= count * len(kinds) <= MAX_NODES:
        raise ConfigurationError(
            f"{count} nodes of each accelerator type: there can be 1 to {MAX_NODES} in all"
        )
    plans: list[NodePlan] = []
    for kind in kinds:
        for number in range(count):
            plans.append(
                NodePlan(
                    name=f"{kind.type.lower() if kind is not None else 'node'}-{number}",
                    address=str(network[len(plans) + 1]),
                    product=(kind.product or "") if kind is not None else "",
                    resource=(kind.resource or "") if kind is not None else "",
                    accelerators=accelerators[kind.type] if kind is not None else 0,
                )
            )
    return tuple(plans)


def parse_subnet(text: str) -> ipaddress.IPv4Network:
    """Return the cluster's network. Raise ConfigurationError where it is no /16 of loopback."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ConfigurationError(
            f"--subnet {text}: {error}; write a /16 of loopback such as 127.64.0.0/16"
        ) from error
    if network.prefixlen != 16 or not network.is_loopback:  # noqa: PLR2004 - a /16 is what the text says
        raise ConfigurationError(f"--subnet {text}: write a /16 of loopback such as 127.64.0.0/16")
    return network


def is_service_address(network: ipaddress.IPv4Network, address: str) -> bool:
    """Return whether *address* lies in the upper half of the cluster's network, the Services'."""
    try:
        return ipaddress.IPv4Address(address) in list(network.subnets())[1]
    except ValueError:
        return False


def node_object(plan: NodePlan) -> dict[str, Any]:
    """Return the Node to register."""
    labels = {
        "kubernetes.io/hostname": plan.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "node.kubernetes.io/instance-type": "local-processes",
    }
    if plan.product:
        labels[PRODUCT_LABEL] = plan.product
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": plan.name, "labels": labels}}


def node_status(
    plan: NodePlan, kubelet_port: int, previous: Json, version: str, now: float
) -> dict[str, Any]:
    """Return the status that the node keeps; *previous* is the one the API server has."""
    wanted = {
        "Ready": ("True", "KubeletReady", "the node agent runs"),
        "MemoryPressure": ("False", "KubeletHasSufficientMemory", "not watched on a dev cluster"),
        "DiskPressure": ("False", "KubeletHasNoDiskPressure", "not watched on a dev cluster"),
        "PIDPressure": ("False", "KubeletHasSufficientPID", "not watched on a dev cluster"),
    }
    before = {c["type"]: c for c in previous.get("conditions") or ()}
    return {
        "capacity": plan.capacity,
        "allocatable": plan.capacity,
        "addresses": [{"type": "InternalIP", "address": plan.address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
        "conditions": [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": timestamp(now),
                "lastTransitionTime": before[kind]["lastTransitionTime"]
                if before.get(kind, {}).get("status") == status
                else timestamp(now),
            }
            for kind, (status, reason, message) in wanted.items()
        ],
        "nodeInfo": {
            "kubeletVersion": version,
            "operatingSystem": "linux",
            "architecture": "amd64",
            "containerRuntimeVersion": "turnout://local-processes",
            "osImage": "",
            "kernelVersion": "",
            "kubeProxyVersion": "",
            "machineID": "",
            "systemUUID": "",
            "bootID": "",
        },
    }
