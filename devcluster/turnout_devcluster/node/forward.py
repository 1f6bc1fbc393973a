"""Services: each cluster IP is listened on, and leads to ready pods in turn.

There is no kube-proxy here; this is its userspace ancestor. UDP and SCTP are not forwarded, names are not
resolved (no DNS), and a Service's nodePort leads nowhere: its cluster IP is reachable from the whole machine.
The ``kubernetes`` Service leads to the API server.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from turnout_devcluster.node.model import Json, key_of
from turnout_devcluster.node.nodes import is_service_address
from turnout_devcluster.node.probes import port_number
from turnout_devcluster.node.reach import Reach
from turnout_devcluster.node.splice import Inbound

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Iterable, Mapping

    from turnout_runtime.supervision import Supervisor

RETRY_SECONDS: Final = 2.0
BACKLOG: Final = 512
KUBERNETES: Final = "default/kubernetes"

_log = logging.getLogger(__name__)


class Pods(Protocol):
    """Knows the pods of all nodes."""

    def pods(self) -> Iterable[Json]:
        """Return them, in no order."""


@dataclass(frozen=True, slots=True)
class Listening:
    """One port of a Service."""

    key: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Route:
    """Where a port of a Service leads."""

    namespace: str
    selector: tuple[tuple[str, str], ...]
    target: int | str
    fixed: tuple[str, int] | None = None


def is_ready(pod: Json) -> bool:
    """Return whether *pod* gets traffic: ready, with an address, and not on its way out."""
    status = pod.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
    return ready and bool(status.get("podIP")) and not pod["metadata"].get("deletionTimestamp")


def routes_of(
    services: Iterable[Json], network: ipaddress.IPv4Network, api_server: tuple[str, int]
) -> dict[Listening, Route]:
    """Return what to listen on for *services*, and where that leads."""
    routes: dict[Listening, Route] = {}
    for service in services:
        spec = service.get("spec") or {}
        address, selector = spec.get("clusterIP", ""), spec.get("selector") or {}
        is_api = key_of(service) == KUBERNETES
        if not is_service_address(network, address) or not (selector or is_api):
            continue
        for port in spec.get("ports") or ():
            if port.get("protocol", "TCP") == "TCP":
                routes[Listening(key_of(service), address, int(port["port"]))] = Route(
                    namespace=service["metadata"]["namespace"],
                    selector=tuple(sorted(selector.items())),
                    target=port.get("targetPort", port["port"]),
                    fixed=api_server if is_api else None,
                )
    return routes


def backends(route: Route, pods: Iterable[Json]) -> list[tuple[str, int]]:
    """Return the addresses that *route* may lead to now, sorted."""
    if route.fixed is not None:
        return [route.fixed]
    found = []
    for pod in pods:
        labels: Mapping[str, Any] = pod["metadata"].get("labels") or {}
        if pod["metadata"]["namespace"] != route.namespace or not is_ready(pod):
            continue
        if all(labels.get(k) == v for k, v in route.selector):
            for container in pod["spec"]["containers"]:
                try:
                    found.append((pod["status"]["podIP"], port_number(route.target, container)))
                    break
                except KeyError:
                    continue
    return sorted(found)


class Forwarder:
    """Listens for Services. As a `CollectionObserver` it is given them; `run` acts on them."""

    def __init__(
        self,
        network: ipaddress.IPv4Network,
        api_server: tuple[str, int],
        pods: Pods,
        supervisor: Supervisor,
    ) -> None:
        self._supervisor = supervisor
        self._network = network
        self._api_server = api_server
        self._pods = pods
        self._services: dict[str, Json] = {}
        self._routes: dict[Listening, Route] = {}
        self._servers: dict[Listening, asyncio.Server] = {}
        self._turns: dict[Listening, int] = {}
        self._changed = asyncio.Event()
        self._reach = Reach()
        self._complained: set[Listening] = set()
        self._forbidden: set[Listening] = set()

    def listed(self, objects: list[dict[str, Any]]) -> None:
        """Take all Services."""
        self._services = {key_of(o): o for o in objects}
        self._changed.set()

    def put(self, raw: dict[str, Any]) -> None:
        """Take one that is new or has changed."""
        self._services[key_of(raw)] = raw
        self._changed.set()

    def removed(self, raw: dict[str, Any]) -> None:
        """Drop one."""
        self._services.pop(key_of(raw), None)
        self._changed.set()

    def reachable(self, reason: str, *, refused: bool = False) -> None:  # noqa: ARG002 - all the same here
        """Log why Services cannot be followed."""
        self._reach.note(reason)

    def _choose(self, listening: Listening) -> tuple[str, int] | None:
        route = self._routes.get(listening)
        found = backends(route, self._pods.pods()) if route is not None else []
        if not found:
            return None
        turn = self._turns[listening] = self._turns.get(listening, -1) + 1
        return found[turn % len(found)]

    async def run(self) -> None:
        """Listen for what there is, until cancelled. What is listened on goes on where this raises, and is kept."""
        try:
            while True:
                self._changed.clear()
                complete = await self._reconcile()
                try:
                    async with asyncio.timeout(None if complete else RETRY_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        except asyncio.CancelledError:
            for server in self._servers.values():
                server.close()
            self._servers.clear()
            raise

    def _routes_now(self) -> dict[Listening, Route]:
        """Return the routes of all Services but those that make no sense."""
        found: dict[Listening, Route] = {}
        for key, service in self._services.items():
            try:
                found |= routes_of((service,), self._network, self._api_server)
            except Exception as error:  # noqa: BLE001 - it concerns no other Service
                self._supervisor.note("forward", error, detail=key)
        return found

    async def _reconcile(self) -> bool:
        """Open and close what differs. Return False where something has to be tried again."""
        self._routes = self._routes_now()
        for listening in [k for k in self._servers if k not in self._routes]:
            self._servers.pop(listening).close()
            self._turns.pop(listening, None)
        self._complained &= self._routes.keys()
        self._forbidden &= self._routes.keys()
        loop = asyncio.get_running_loop()
        for listening in self._routes.keys() - self._servers.keys() - self._forbidden:
            try:
                self._servers[listening] = await loop.create_server(
                    lambda listening=listening: Inbound(lambda: self._choose(listening), self._supervisor),  # type: ignore[misc]
                    listening.address,
                    listening.port,
                    backlog=BACKLOG,
                )
            except PermissionError:
                # Ports below 1024 may need a privilege, and that does not change while this process lives.
                self._forbidden.add(listening)
                _log.warning(
                    "service %s: port %d may not be bound by this user; use one from 1024",
                    listening.key,
                    listening.port,
                )
            except OSError as error:
                if listening not in self._complained:
                    _log.warning(
                        "service %s port %d is not forwarded: %s", listening.key, listening.port, error
                    )
                    self._complained.add(listening)
        return not self._routes.keys() - self._servers.keys() - self._forbidden
