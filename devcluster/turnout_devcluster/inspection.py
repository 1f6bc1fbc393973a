"""What a cluster is doing at the moment."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from turnout.sizing.accelerators import PRODUCT_LABEL
from turnout_devcluster import apiclient
from turnout_devcluster.processes import is_alive

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster
    from turnout_devcluster.processes import ProcessId


@dataclass(frozen=True, slots=True)
class ComponentState:
    """One process of the control plane."""

    name: str
    pid: int | None
    """None while it does not run."""
    uptime_seconds: float
    rss_bytes: int
    cpu_seconds: float
    """CPU time it has used since it started."""
    restarts: int
    last_exit: str | None


@dataclass(frozen=True, slots=True)
class NodeState:
    """One Node object."""

    name: str
    ready: bool
    address: str
    accelerators: str
    """Such as ``16 NVIDIA-H100-80GB-HBM3``; empty without any."""


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod."""

    namespace: str
    name: str
    phase: str
    ready: str
    """Ready containers of all, such as ``1/1``."""
    address: str
    node: str


@dataclass(frozen=True, slots=True)
class ClusterState:
    """All of it. Nodes and pods are None when the API server does not answer."""

    components: tuple[ComponentState, ...]
    nodes: tuple[NodeState, ...] | None
    pods: tuple[PodState, ...] | None

    @property
    def healthy(self) -> bool:
        """Whether every component runs, the API server answers and all nodes are ready."""
        running = bool(self.components) and all(state.pid is not None for state in self.components)
        return running and self.nodes is not None and all(node.ready for node in self.nodes)


def inspect(cluster: Cluster) -> ClusterState:
    """Look at *cluster*: its processes, nodes and pods."""
    components = [_component("supervisor", cluster.supervisor(), 0, None)]
    components += [
        _component(record.name, record.process, record.restarts, record.last_exit)
        for record in cluster.components()
    ]
    nodes = _items(cluster, "/api/v1/nodes")
    pods = _items(cluster, "/api/v1/pods")
    return ClusterState(
        components=tuple(components),
        nodes=None if nodes is None else tuple(_node(item) for item in nodes),
        pods=None if pods is None else tuple(_pod(item) for item in pods),
    )


def _component(name: str, process: ProcessId | None, restarts: int, last_exit: str | None) -> ComponentState:
    if process is not None and is_alive(process):
        try:
            seen = psutil.Process(process.pid)
            with seen.oneshot():
                times = seen.cpu_times()
                return ComponentState(
                    name=name,
                    pid=process.pid,
                    uptime_seconds=time.time() - seen.create_time(),
                    rss_bytes=seen.memory_info().rss,
                    cpu_seconds=times.user + times.system,
                    restarts=restarts,
                    last_exit=last_exit,
                )
        except psutil.NoSuchProcess:
            pass  # it ended while it was looked at
    return ComponentState(name, None, 0.0, 0, 0.0, restarts, last_exit)


def _items(cluster: Cluster, path: str) -> list[dict[str, Any]] | None:
    try:
        status, body = apiclient.get(cluster.config, cluster.files, path)
    except OSError:
        return None
    if status != http.client.OK:
        return None
    items: list[dict[str, Any]] = json.loads(body)["items"]
    return items


def _node(item: dict[str, Any]) -> NodeState:
    status = item.get("status", {})
    address = next(
        (entry["address"] for entry in status.get("addresses", []) if entry["type"] == "InternalIP"), ""
    )
    count = status.get("capacity", {}).get("nvidia.com/gpu", "0")
    product = item["metadata"].get("labels", {}).get(PRODUCT_LABEL, "accelerators")
    return NodeState(
        name=item["metadata"]["name"],
        ready=apiclient.is_ready_node(item),
        address=address,
        accelerators="" if count == "0" else f"{count} {product}",
    )


def _pod(item: dict[str, Any]) -> PodState:
    status = item.get("status", {})
    containers = status.get("containerStatuses", [])
    ready = sum(1 for container in containers if container.get("ready"))
    leaving = "deletionTimestamp" in item["metadata"]
    return PodState(
        namespace=item["metadata"]["namespace"],
        name=item["metadata"]["name"],
        phase="Terminating" if leaving else status.get("phase", "Unknown"),
        ready=f"{ready}/{len(item['spec']['containers'])}",
        address=status.get("podIP", ""),
        node=item["spec"].get("nodeName", ""),
    )
