"""What the cluster says of the deployment, kept current by two watches: its status and its pods."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

from aiohttp import ClientError
from kubernetes.aio import client, config, watch
from kubernetes.aio.client.exceptions import ApiException

from turnout.api import InvalidResource, LastScaling, LLMDeployment, PoolStatus, load_deployment
from turnout.api.names import GROUP, LABEL_DEPLOYMENT, LABEL_ROLE, VERSION, WORKER_PORT
from turnout_cli.demo.errors import ReadError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

_WATCH_SECONDS: Final = 300
"""A watch is renewed after this long, as the API server would have it."""
_BACK_OFF_SECONDS: Final = 1.0
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


class FleetWatch:
    """Keeps `fleet` current while it is entered: `async with FleetWatch(...) as watched`."""

    def __init__(self, kubeconfig: Path, deployment: LLMDeployment) -> None:
        self.fleet = Fleet(deployment)
        self._kubeconfig = kubeconfig
        self._namespace = deployment.metadata.namespace
        self._name = deployment.metadata.name
        self._tasks: list[asyncio.Task[None]] = []
        self._api: Any = None

    async def __aenter__(self) -> Self:
        try:
            self._api = await config.new_client_from_config(  # type: ignore[no-untyped-call]
                str(self._kubeconfig), persist_config=False
            )
        except (config.ConfigException, OSError) as error:
            raise ReadError(f"{self._kubeconfig} cannot be used: {error}") from error
        self._tasks = [
            asyncio.create_task(self._keep_hearing(self._hear_deployment)),
            asyncio.create_task(self._keep_hearing(self._hear_pods)),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._api.close()

    async def _keep_hearing(self, hear: Callable[[], Any]) -> None:
        """Watch, and again when the watch ends: the API server may go and come back."""
        while True:
            try:
                await hear()
            except (ApiException, ClientError, OSError, ValueError) as error:
                self.fleet = replace(self.fleet, stale=f"{type(error).__name__}: {error}".splitlines()[0])
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _hear_deployment(self) -> None:
        call = client.CustomObjectsApi(self._api).list_namespaced_custom_object
        selector = f"metadata.name={self._name}"
        async for _, raw in _events(
            call, GROUP, VERSION, self._namespace, "llmdeployments", field_selector=selector
        ):
            try:
                self.fleet = with_deployment(self.fleet, load_deployment(raw))
            except InvalidResource as error:
                self.fleet = replace(self.fleet, stale=str(error))

    async def _hear_pods(self) -> None:
        call = client.CoreV1Api(self._api).list_namespaced_pod
        pods: dict[str, dict[str, Any]] = {}
        async for kind, raw in _events(
            call, self._namespace, label_selector=f"{LABEL_DEPLOYMENT}={self._name}"
        ):
            name = raw["metadata"]["name"]
            if kind == "DELETED":
                pods.pop(name, None)
            else:
                pods[name] = raw
            self.fleet = with_pods(self.fleet, pods)


async def _events(
    call: Callable[..., Any], *args: str, **selectors: str
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield (ADDED, MODIFIED or DELETED; object) until the server ends the watch."""
    async with watch.Watch() as watcher:  # type: ignore[no-untyped-call]
        async for event in watcher.stream(call, *args, timeout_seconds=_WATCH_SECONDS, **selectors):
            yield event["type"], event["raw_object"]
