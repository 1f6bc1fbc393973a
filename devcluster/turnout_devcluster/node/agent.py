"""The node agent as a whole: registers nodes, keeps their leases, runs the pods bound to them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from turnout_devcluster.node import nodes
from turnout_devcluster.node.addresses import AddressPool
from turnout_devcluster.node.api import STRATEGIC, Api
from turnout_devcluster.node.attempts import PodDisk, pods_on_disk, processes_of
from turnout_devcluster.node.backoff import BackOff
from turnout_devcluster.node.config_source import ConfigSource
from turnout_devcluster.node.context import Runtime
from turnout_devcluster.node.errors import (
    ApiError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    UnreachableError,
)
from turnout_devcluster.node.events import EventRecorder
from turnout_devcluster.node.failures import TaskFailures
from turnout_devcluster.node.forward import Forwarder
from turnout_devcluster.node.logs import keep_bounded
from turnout_devcluster.node.nodes import LEASE_SECONDS, NodePlan, node_object, node_status
from turnout_devcluster.node.pod import NodeContext, Pod
from turnout_devcluster.node.processes import kill_all
from turnout_devcluster.node.reach import Reach
from turnout_devcluster.node.server import KubeletServer
from turnout_kube.follow import NoHeaders, follow
from turnout_runtime.supervision import Backoff, Supervisor

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from turnout_devcluster.node.model import Json
    from turnout_kube.follow import CollectionObserver

LEASE_PERIOD_SECONDS: Final = 10.0
STATUS_PERIOD_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 10.0
"""How long the agent's tasks may take to end."""
_WATCH_BACK_OFF_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Short, for an API server that comes back must find its nodes."""
LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """The agent's options."""

    state_dir: Path
    subnet: str
    node_count: int
    accelerators: str = ""
    """Such as ``H100-SXM=16,H200-SXM=8``: each node gets one type."""
    back_off: BackOff = field(default_factory=BackOff)
    concurrent_starts: int = 4


class _NodePods:
    """Passes the changes of one node's pods to the agent; see `CollectionObserver`."""

    def __init__(self, agent: Agent, plan: NodePlan) -> None:
        self._agent = agent
        self._plan = plan
        self._reach = Reach()

    def listed(self, objects: list[dict[str, Any]]) -> None:
        """Take all pods of the node."""
        self._agent.set_pods(self._plan, objects)

    def put(self, raw: dict[str, Any]) -> None:
        """Take one that is new or has changed."""
        self._agent.pod_changed(self._plan, raw)

    def removed(self, raw: dict[str, Any]) -> None:
        """Drop one."""
        self._agent.pod_gone(raw)

    def reachable(self, reason: str, *, refused: bool = False) -> None:  # noqa: ARG002 - all the same here
        """Log why the pods cannot be followed."""
        self._reach.note(reason)


class Agent:
    """Runs nodes. `run` returns when it is cancelled; pods go on without it."""

    def __init__(self, options: Options, api: Api) -> None:
        self._options = options
        self._api = api
        self._network = nodes.parse_subnet(options.subnet)
        self._plans = nodes.plan_nodes(
            options.subnet, options.node_count, nodes.parse_accelerators(options.accelerators)
        )
        self._own = options.state_dir / "node"
        self._own.mkdir(parents=True, exist_ok=True, mode=0o700)
        (options.state_dir / "pods").mkdir(exist_ok=True, mode=0o700)
        self._failures = TaskFailures()
        self._supervisor = Supervisor(self._failures.count, _log, backoff=Backoff(most_seconds=5.0))
        self._events = EventRecorder(api, f"{self._plans[0].name}-agent")
        self._config_source = ConfigSource(api)
        self._addresses = AddressPool(self._network, self._own / "address-cursor")
        for disk in pods_on_disk(options.state_dir):
            record = disk.load()
            if record is not None:
                self._addresses.keep(record.ip)
        self._runtime = Runtime(
            self._events,
            asyncio.Semaphore(options.concurrent_starts),
            options.back_off,
            options.state_dir / "supervisor.pid",
            self._supervisor,
        )
        self._pods: dict[str, Pod] = {}
        self._server = KubeletServer(
            self, self._own, api.endpoint.ca_pem, self._supervisor, self._failures.exposition
        )
        self._forwarder = Forwarder(
            self._network, (api.endpoint.host, api.endpoint.port), self, self._supervisor
        )
        self._version = f"v1.36.3-turnout-{version('turnout')}"

    async def run(self) -> None:
        """Register the nodes and run their pods, until cancelled. What a task raises ends no other one."""
        asyncio.get_running_loop().set_exception_handler(self._note_callback)
        with self._lock():
            self._remove_orphans()
            ports = await self._server.start([p.address for p in self._plans])
            run = self._supervisor.run
            try:
                for plan in self._plans:
                    run("node", partial(self._keep_node, plan, ports[plan.address]), detail=plan.name)
                    of_node = f"spec.nodeName={plan.name}"
                    pods = partial(self._follow, "/api/v1/pods", _NodePods(self, plan), of_node)
                    run("watch", pods, detail=f"pods of {plan.name}")
                services = partial(self._follow, "/api/v1/services", self._forwarder)
                run("watch", services, detail="services")
                run("forward", self._forwarder.run)
                run("events", self._events.run)
                run("logs", partial(keep_bounded, self._options.state_dir))
                await self._supervisor.ended()
            finally:
                await self._server.stop()
                await self._supervisor.stop(STOP_SECONDS)

    async def _follow(self, path: str, observer: CollectionObserver, fields: str | None = None) -> None:
        """Give *observer* what the collection at *path* holds, until cancelled."""
        client, login = self._api.client, NoHeaders()
        await follow(
            client, login, path, None, observer, fields=fields, back_off_seconds=_WATCH_BACK_OFF_SECONDS
        )

    def _note_callback(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log and count what a callback of the event loop has raised."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self._supervisor.note("callback", error, detail=str(context.get("message")))
        else:
            loop.default_exception_handler(context)

    @contextlib.contextmanager
    def _lock(self) -> Generator[None]:
        """Hold the state folder: two agents on one would start everything twice."""
        with (self._own / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"another node agent runs on {self._options.state_dir}: stop it first"
                ) from None
            yield

    # Nodes

    async def _keep_node(self, plan: NodePlan, port: int) -> None:
        """Keep the Node object, its status and its lease."""
        status_at = 0.0
        while True:
            try:
                if time.monotonic() >= status_at:
                    await self._register(plan, port)
                    status_at = time.monotonic() + STATUS_PERIOD_SECONDS
                await self._renew(plan)
                wait = LEASE_PERIOD_SECONDS
                if not await self._is_well(plan):
                    status_at, wait = 0.0, 0.0
            except NotFoundError:
                status_at, wait = 0.0, RETRY_SECONDS
            except (ApiError, UnreachableError) as error:
                _log.warning("node %s: %s", plan.name, error)
                wait = RETRY_SECONDS
            await asyncio.sleep(wait)

    async def _is_well(self, plan: NodePlan) -> bool:
        """Return whether the API server still has the node and holds it for ready."""
        node = await self._api.get(f"/api/v1/nodes/{plan.name}")
        conditions = (node.get("status") or {}).get("conditions") or ()
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    async def _register(self, plan: NodePlan, port: int) -> None:
        wanted = node_object(plan)
        try:
            node = await self._api.create("/api/v1/nodes", wanted)
        except ConflictError:
            node = await self._api.patch(
                f"/api/v1/nodes/{plan.name}", {"metadata": {"labels": wanted["metadata"]["labels"]}}
            )
        status = node_status(plan, port, node.get("status") or {}, self._version, time.time())
        await self._api.patch(f"/api/v1/nodes/{plan.name}/status", {"status": status}, STRATEGIC)

    async def _renew(self, plan: NodePlan) -> None:
        spec = {
            "holderIdentity": plan.name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        try:
            await self._api.patch(f"{LEASES}/{plan.name}", {"spec": spec})
        except NotFoundError:
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": plan.name, "namespace": "kube-node-lease"},
                "spec": spec,
            }
            await self._api.create(LEASES, lease)

    # Pods

    def set_pods(self, plan: NodePlan, pods: list[dict[str, Any]]) -> None:
        """Handle the list of all pods of a node; other pods of that node that this agent knows are gone."""
        known = {pod["metadata"]["uid"] for pod in pods}
        for uid, pod in list(self._pods.items()):
            if pod.pod["spec"].get("nodeName") == plan.name and uid not in known:
                pod.removed()
        for obj in pods:
            self.pod_changed(plan, obj)
        for disk in pods_on_disk(self._options.state_dir):
            record = disk.load()
            if record is None or (record.node == plan.name and record.uid not in self._pods):
                self._remove_orphan(disk)

    def _remove_orphans(self) -> None:
        """End pods of nodes that this cluster had under other options."""
        ours = {plan.name for plan in self._plans}
        for disk in pods_on_disk(self._options.state_dir):
            record = disk.load()
            if record is not None and record.node not in ours:
                self._remove_orphan(disk)

    def _remove_orphan(self, disk: PodDisk) -> None:
        """End the containers, and delete the files, of a pod that was deleted while no agent ran."""
        gone = asyncio.get_running_loop().run_in_executor(None, _remove_files, disk)
        record = disk.load()

        def removed(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                self._supervisor.note("pod", error, detail=disk.path.name)
            elif record is not None:
                self._addresses.free(record.ip)

        gone.add_done_callback(removed)

    def pod_changed(self, plan: NodePlan, obj: dict[str, Any]) -> None:
        """Handle a new or changed pod of the node *plan*. An error in it affects no other pod."""
        try:
            self._take_up(plan, obj)
        except Exception as error:  # noqa: BLE001 - as the docstring says
            self._supervisor.note("pod", error, detail=str((obj.get("metadata") or {}).get("name")))

    def _take_up(self, plan: NodePlan, obj: dict[str, Any]) -> None:
        metadata = obj["metadata"]
        uid: str = metadata["uid"]
        pod = self._pods.get(uid)
        if pod is not None:
            pod.changed(obj)
            return
        context = NodeContext(
            self._api, self._config_source, self._addresses, plan, self._runtime, self._options.state_dir
        )
        folder = self._options.state_dir / "pods" / f"{metadata['namespace']}_{metadata['name']}_{uid}"
        self._pods[uid] = Pod(obj, PodDisk(folder), context)
        task = self._supervisor.run(
            "pod", partial(self._run_pod, uid), detail=f"{metadata['namespace']}/{metadata['name']}"
        )
        task.add_done_callback(lambda _: self._pods.pop(uid, None))

    async def _run_pod(self, uid: str) -> None:
        """Run a pod until it is gone. After a failure it is adopted again, like one of an earlier agent."""
        pod = self._pods[uid]
        if pod.begun:
            pod = self._pods[uid] = pod.again()
        await pod.run()

    def pod_gone(self, obj: dict[str, Any]) -> None:
        """Handle a pod's deletion at the API server."""
        pod = self._pods.get(obj["metadata"]["uid"])
        if pod is not None:
            pod.removed()

    def pods(self) -> Iterable[Json]:
        """Return the pods of all nodes."""
        return (pod.pod for pod in self._pods.values())

    # Logs

    def _find(self, namespace: str, name: str) -> Pod | None:
        for pod in self._pods.values():
            if pod.pod["metadata"]["name"] == name and pod.pod["metadata"]["namespace"] == namespace:
                return pod
        return None

    def log_of(self, namespace: str, pod: str, container: str, *, previous: bool) -> tuple[Path, int] | None:
        """Return the log and the number of a run, the newest or the one before; None where there is none."""
        found = self._find(namespace, pod)
        return found.log_of(container, previous=previous) if found is not None else None

    def is_over(self, namespace: str, pod: str, container: str, attempt: int) -> bool:
        """Return whether that run has ended."""
        found = self._find(namespace, pod)
        return found is None or found.is_over(container, attempt)


def _remove_files(disk: PodDisk) -> None:
    kill_all(processes_of(disk), 0.0)
    shutil.rmtree(disk.path, ignore_errors=True)


def terminate_pods(state_dir: Path, grace_seconds: float) -> int:
    """End every container that the records in *state_dir* know. Return how many there were.

    For the end of a whole cluster, when no agent runs any more and the API server need not either.
    """
    processes = [p for disk in pods_on_disk(state_dir) for p in processes_of(disk)]
    kill_all(processes, grace_seconds)
    return len(processes)
