"""What the cluster says of the deployment, kept current by two watches: its status and its pods."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from turnout.api import InvalidResource, LastScaling, LLMDeployment, PoolStatus, load_deployment
from turnout.terms import API_VERSION, LABEL_DEPLOYMENT, LABEL_ROLE, WORKER_PORT
from turnout_cli.demo.errors import ReadError
from turnout_kube.follow import NoHeaders, follow

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

_CONNECT_SECONDS: Final = 5.0
_FIRST_WORD_SECONDS: Final = 30.0
MAX_SCALINGS: Final = 1000
"""Scaling sentences kept."""

_NO_POOL: Final = PoolStatus()


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is known of the deployment."""

    deployment: LLMDeployment
    workers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Base URLs of the ready workers by role."""
    scalings: tuple[LastScaling, ...] = ()
    """Scaling decisions that took effect since the watch began, oldest first."""
    stale: str = ""
    """Why the API server cannot be heard at present; empty where it can."""

    @property
    def prefill(self) -> PoolStatus:
        """The prefill pool's replicas."""
        return self.deployment.status.prefill or _NO_POOL

    @property
    def decode(self) -> PoolStatus:
        """The decode (or aggregated) pool's replicas."""
        return self.deployment.status.decode or _NO_POOL


def with_deployment(fleet: Fleet, deployment: LLMDeployment) -> Fleet:
    """Return *fleet* with a newer *deployment*; a scaling that it had not yet heard of joins its list."""
    known, latest = fleet.deployment.status.last_scaling, deployment.status.last_scaling
    scalings = fleet.scalings
    if latest is not None and latest != known:
        scalings = (*scalings, latest)[-MAX_SCALINGS:]
    return replace(fleet, deployment=deployment, scalings=scalings, stale="")


def with_pods(fleet: Fleet, pods: dict[str, dict[str, Any]]) -> Fleet:
    """Return *fleet* with the ready ones of *pods* (by name) as its workers."""
    workers: dict[str, list[str]] = {}
    for name in sorted(pods):
        pod = pods[name]
        ip = pod.get("status", {}).get("podIP")
        if ip and _is_ready(pod):
            role = pod["metadata"].get("labels", {}).get(LABEL_ROLE, "")
            workers.setdefault(role, []).append(f"http://{ip}:{WORKER_PORT}")
    return replace(fleet, workers={role: tuple(urls) for role, urls in workers.items()}, stale="")


def _is_ready(pod: dict[str, Any]) -> bool:
    return any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in pod.get("status", {}).get("conditions", ())
    )


@dataclass(frozen=True, slots=True)
class ApiServer:
    """How to reach the API server as an administrator."""

    url: str
    tls: ssl.SSLContext

    @classmethod
    def of(cls, cluster: Cluster) -> ApiServer:
        """Return how to reach the one of *cluster*."""
        pki = cluster.files.pki
        tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        return cls(cluster.config.server, tls)


class FleetWatch:
    """Keeps `fleet` current while it is entered: `async with FleetWatch(...) as watched`.

    Entering waits for the first word of the API server and raises ReadError where none comes.
    """

    def __init__(self, server: ApiServer, deployment: LLMDeployment) -> None:
        self.fleet = Fleet(deployment)
        self._namespace = deployment.metadata.namespace
        self._name = deployment.metadata.name
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = asyncio.Event()
        self._http = httpx.AsyncClient(
            base_url=server.url,
            verify=server.tls,
            timeout=_CONNECT_SECONDS,
        )

    async def __aenter__(self) -> Self:
        deployments = f"/apis/{API_VERSION}/namespaces/{self._namespace}/llmdeployments"
        pods = f"/api/v1/namespaces/{self._namespace}/pods"
        workers = f"{LABEL_DEPLOYMENT}={self._name}"
        self._tasks = [
            asyncio.create_task(follow(self._http, NoHeaders(), path, selector, observer, fields=fields))
            for path, selector, fields, observer in (
                (deployments, None, f"metadata.name={self._name}", _Deployment(self)),
                (pods, workers, None, _Pods(self)),
            )
        ]
        try:
            async with asyncio.timeout(_FIRST_WORD_SECONDS):
                await self._heard.wait()
        except TimeoutError as error:
            await self.__aexit__()
            reason = self.fleet.stale or "it is silent"
            raise ReadError(
                f"no word of LLMDeployment {self._namespace}/{self._name} from {self._http.base_url}: {reason}"
            ) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    def deployed(self, raw: dict[str, Any]) -> None:
        """Take the deployment as it is now."""
        try:
            self.fleet = with_deployment(self.fleet, load_deployment(raw))
        except InvalidResource as error:
            self.unreachable(f"LLMDeployment {self._name}: {error}")
        else:
            self._heard.set()

    def unreachable(self, reason: str) -> None:
        """Note why nothing new is known; empty where it is."""
        self.fleet = replace(self.fleet, stale=reason.partition("\n")[0])


class _Deployment:
    """What is made of the one LLMDeployment; see `CollectionObserver`."""

    def __init__(self, watch: FleetWatch) -> None:
        self._watch = watch

    def listed(self, objects: list[dict[str, Any]]) -> None:
        for raw in objects:
            self.put(raw)

    def put(self, raw: dict[str, Any]) -> None:
        self._watch.deployed(raw)

    def removed(self, raw: dict[str, Any]) -> None:
        """Go on with what was known: the demo ends soon."""

    def reachable(self, reason: str, *, refused: bool = False) -> None:  # noqa: ARG002 - all the same here
        self._watch.unreachable(reason)


class _Pods:
    """What is made of its workers' pods; see `CollectionObserver`."""

    def __init__(self, watch: FleetWatch) -> None:
        self._watch = watch
        self._pods: dict[str, dict[str, Any]] = {}

    def listed(self, objects: list[dict[str, Any]]) -> None:
        self._pods = {raw["metadata"]["name"]: raw for raw in objects}
        self._take()

    def put(self, raw: dict[str, Any]) -> None:
        self._pods[raw["metadata"]["name"]] = raw
        self._take()

    def removed(self, raw: dict[str, Any]) -> None:
        self._pods.pop(raw["metadata"]["name"], None)
        self._take()

    def reachable(self, reason: str, *, refused: bool = False) -> None:  # noqa: ARG002 - all the same here
        self._watch.unreachable(reason)

    def _take(self) -> None:
        self._watch.fleet = with_pods(self._watch.fleet, self._pods)
