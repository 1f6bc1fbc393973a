"""A node whose pods are under the test's control: when each is ready, what it says on /metrics, when it goes.

It takes the pods that ask for an accelerator which no other node of the dev cluster has, so it lives beside the real
node agent. Nothing runs in its pods, but their addresses answer on the workers' metrics port.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from turnout.sizing.accelerators import ACCELERATORS, PRODUCT_LABEL
from turnout.terms import COMPONENT_ROUTER, LABEL_COMPONENT, ROUTER_ADMIN_PORT, WORKER_PORT
from turnout_operator.errors import ApiError
from turnout_operator.kube.client import KubeClient
from turnout_operator.kube.credentials import Credentials
from turnout_operator.kube.kinds import LEASE, POD, Kind

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

ACCELERATOR = "L40S"
NODE = Kind("", "v1", "nodes", "Node")
PERIOD_SECONDS = 0.1


@dataclass
class Load:
    """What a pod says of itself."""

    running: int = 0
    waiting: int = 0
    kv: float = 0.0

    def page(self) -> str:
        """Return it as a metrics page of vLLM's."""
        return (
            f'vllm:num_requests_running{{model_name="m",engine="0"}} {self.running}\n'
            f'vllm:num_requests_waiting{{model_name="m",engine="0"}} {self.waiting}\n'
            f'vllm:kv_cache_usage_perc{{model_name="m",engine="0"}} {self.kv}\n'
        )


@dataclass
class TestNode:
    """The node. Use it as a context manager."""

    __test__ = False

    cluster: Cluster
    name: str
    subnet: str
    """First three parts of its pods' addresses, such as ``127.77.3``."""
    accelerators: int = 16
    loads: dict[str, Load] = field(default_factory=dict)
    """By the pod's name. Without an entry a pod is idle."""
    held_back: set[str] = field(default_factory=set)
    """Parts of names: pods with one of them in their name do not get ready."""
    router_page: str = ""
    """What pods labeled as routers say on the routers' metrics port."""
    exempt: set[str] = field(default_factory=set)
    """Names of pods that stay ready all the same."""
    gone: list[str] = field(default_factory=list)
    """Names of the pods that were deleted, in order."""
    hanging: set[str] = field(default_factory=set)
    """Names of pods that do not answer as long as they stand here."""
    asked: list[str] = field(default_factory=list)
    """Names of the pods whose metrics were asked for, in order."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._addresses: dict[str, str] = {}
        self._runners: dict[str, web.AppRunner] = {}
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(20), self.failure
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        with contextlib.suppress(Exception):
            self.cluster.kubectl("delete", "node", self.name, "--ignore-not-found", "--wait=false")
        if self.failure is not None:
            raise self.failure

    async def _run(self) -> None:
        try:
            credentials = Credentials({"KUBECONFIG": str(self.cluster.kubeconfig)})
            async with KubeClient(credentials.configuration) as client:
                await self._register(client)
                self._started.set()
                ticks = 0
                while not self._stop.is_set():
                    if ticks % 50 == 0:
                        await self._beat(client)
                    ticks += 1
                    with contextlib.suppress(ApiError):
                        for pod in await client.list(POD, None, "app.kubernetes.io/name=turnout"):
                            if pod["spec"].get("nodeName") == self.name:
                                await self._pod(client, pod)
                    await asyncio.sleep(PERIOD_SECONDS)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            for runner in self._runners.values():
                await runner.cleanup()

    async def _register(self, client: KubeClient) -> None:
        known = ACCELERATORS[ACCELERATOR]
        assert known.resource is not None
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {PRODUCT_LABEL: known.product, "kubernetes.io/hostname": self.name},
            },
        }
        await client._request("create", "POST", NODE, "/api/v1/nodes", body=node)
        capacity = {"cpu": "64", "memory": "256Gi", "pods": "500", known.resource: str(self.accelerators)}
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "Test",
            "message": "",
            "lastHeartbeatTime": None,
        }
        status = {"status": {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}}
        await client._request("patch", "PATCH", NODE, f"/api/v1/nodes/{self.name}/status", body=status)
        await client._request(
            "patch", "PATCH", NODE, f"/api/v1/nodes/{self.name}", body={"spec": {"taints": None}}
        )

    async def _beat(self, client: KubeClient) -> None:
        stamp = _now()
        lease = {
            "apiVersion": LEASE.api_version,
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": stamp},
        }
        with contextlib.suppress(ApiError):
            await client.apply(LEASE, lease)
            await client._request(
                "patch", "PATCH", NODE, f"/api/v1/nodes/{self.name}", body={"spec": {"taints": None}}
            )

    async def _pod(self, client: KubeClient, pod: dict[str, Any]) -> None:
        meta = pod["metadata"]
        name, path = meta["name"], POD.path(meta["namespace"], meta["name"])
        if meta.get("deletionTimestamp"):
            body = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
            await client._request("delete", "DELETE", POD, path, body=body)
            self.gone.append(name)
            runner = self._runners.pop(name, None)
            if runner is not None:
                await runner.cleanup()
            return
        wanted = name in self.exempt or not any(part in name for part in self.held_back)
        conditions = {item["type"]: item["status"] for item in pod.get("status", {}).get("conditions", [])}
        if conditions.get("Ready") == ("True" if wanted else "False"):
            return
        router = meta["labels"].get(LABEL_COMPONENT) == COMPONENT_ROUTER
        address = await self._address(name, router=router)
        ready = {"status": "True" if wanted else "False", "lastTransitionTime": _now()[:19] + "Z"}
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", **ready},
                {"type": "ContainersReady", **ready},
            ],
        }
        await client._request("patch", "PATCH", POD, path + "/status", body={"status": status})

    async def _address(self, name: str, *, router: bool) -> str:
        if name not in self._addresses:
            address = self._addresses[name] = f"{self.subnet}.{len(self._addresses) + 1}"
            app = web.Application()

            async def page(_: web.Request) -> web.Response:
                self.asked.append(name)
                while name in self.hanging:  # noqa: ASYNC110 - the test changes it in a thread of its own
                    await asyncio.sleep(PERIOD_SECONDS)
                return web.Response(text=self.router_page if router else self.loads.get(name, Load()).page())

            app.router.add_get("/metrics", page)
            runner = self._runners[name] = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, address, ROUTER_ADMIN_PORT if router else WORKER_PORT).start()
        return self._addresses[name]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
