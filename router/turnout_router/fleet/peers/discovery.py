"""The addresses of the other routers: from the command line, or from the routers' pods in Kubernetes."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol

from turnout_kube.follow import follow
from turnout_router.fleet.kube import new_client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout_router.fleet.kube import Access

    Addresses = frozenset[tuple[str, int]]

_LOG = logging.getLogger("turnout_router.fleet.peers")

PORT_NAME: Final = "peers"
"""Name of the port in a router's pod."""
_RESOLVE_SECONDS: Final = 5.0


class PeerSource(Protocol):
    """A source of the other routers' addresses."""

    async def run(self, found: Callable[[Addresses], None]) -> None:
        """Call *found* with all addresses, now and after every change, until cancelled."""


class StaticPeers:
    """Given hosts and ports. A host with several addresses, such as a headless Service, stands for as many peers."""

    def __init__(self, hosts: Sequence[tuple[str, int]]) -> None:
        self._hosts = hosts

    async def run(self, found: Callable[[Addresses], None]) -> None:  # noqa: D102 - the protocol says it
        loop = asyncio.get_running_loop()
        known: dict[tuple[str, int], set[tuple[str, int]]] = {}
        unknown: set[str] = set()
        while True:
            for host, port in self._hosts:
                try:
                    answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                except (
                    OSError,
                    ValueError,
                    OverflowError,
                ) as error:  # unknown, or not a valid name
                    if host not in unknown:
                        _LOG.warning("peer %s has no address (trying again): %s", host, error)
                    unknown.add(host)
                    continue
                unknown.discard(host)
                known[host, port] = {(str(answer[4][0]), port) for answer in answers}
            found(frozenset(address for addresses in known.values() for address in addresses))
            await asyncio.sleep(_RESOLVE_SECONDS)


class PodPeers:
    """The pods of *namespace* with the labels of *selector*, ready or not: one that drains has requests in flight, too.

    Pods and not EndpointSlices: these hold no more, need a Service, and are refused for loopback addresses, which
    pods on a developer's machine have.
    """

    def __init__(self, access: Access, namespace: str, selector: str) -> None:
        self._access = access
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._selector = selector
        self._pods: dict[str, Addresses] = {}
        self._unreachable = ""
        self._found: Callable[[Addresses], None]

    async def run(self, found: Callable[[Addresses], None]) -> None:  # noqa: D102 - the protocol says it
        self._found = found
        async with new_client(self._access) as client:
            await follow(client, self._access, self._path, self._selector, self)

    def listed(self, objects: list[dict[str, Any]]) -> None:
        """Take all pods."""
        self._pods = {raw["metadata"]["name"]: addresses_in(raw) for raw in objects}
        self._report()

    def put(self, raw: dict[str, Any]) -> None:
        """Take a pod that is new or has changed."""
        self._pods[raw["metadata"]["name"]] = addresses_in(raw)
        self._report()

    def removed(self, raw: dict[str, Any]) -> None:
        """Drop a pod."""
        self._pods.pop(raw["metadata"]["name"], None)
        self._report()

    def reachable(self, reason: str, *, refused: bool = False) -> None:  # noqa: ARG002 - all the same here
        """Go on with the known addresses, and log that once."""
        if reason and reason != self._unreachable:
            _LOG.warning("other routers cannot be looked up, going on with those known: %s", reason)
        self._unreachable = reason

    def _report(self) -> None:
        self._found(frozenset(address for addresses in self._pods.values() for address in addresses))


def addresses_in(pod: dict[str, Any]) -> Addresses:
    """Return where the router in *pod* listens. Empty: it has no address, no port called `PORT_NAME`, or it has ended."""
    status = pod.get("status") or {}
    address = status.get("podIP")
    if not address or status.get("phase") in {"Succeeded", "Failed"}:
        return frozenset()
    return frozenset(
        (address, int(port["containerPort"]))
        for container in (pod.get("spec") or {}).get("containers") or ()
        for port in container.get("ports") or ()
        if port.get("name") == PORT_NAME
    )
