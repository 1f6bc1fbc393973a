"""Where the other routers are: as told on the command line, or as Kubernetes knows the pods behind a Service."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol

from turnout_router.kube import follow, new_client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout_router.kube import Access

    Addresses = frozenset[tuple[str, int]]

_LOG = logging.getLogger("turnout_router.peers")

PORT_NAME: Final = "peers"
"""Name of the port in the Service."""
_RESOLVE_SECONDS: Final = 5.0


class PeerSource(Protocol):
    """Something that knows where the other routers are."""

    async def run(self, found: Callable[[Addresses], None]) -> None:
        """Call *found* with all addresses, now and after every change, until cancelled."""


class NamedPeers:
    """Hosts and ports as told. A host with several addresses, such as a headless Service, is as many peers."""

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
                except OSError as error:
                    if host not in unknown:
                        _LOG.warning("peer %s has no address (trying again): %s", host, error)
                    unknown.add(host)
                    continue
                unknown.discard(host)
                known[host, port] = {(str(answer[4][0]), port) for answer in answers}
            found(frozenset(address for addresses in known.values() for address in addresses))
            await asyncio.sleep(_RESOLVE_SECONDS)


class ServicePeers:
    """The pods behind *service* (``NAMESPACE/NAME``), ready or not: one that drains has requests in flight, too."""

    def __init__(self, access: Access, service: str) -> None:
        self._access = access
        self._namespace, _, self._name = service.partition("/")
        self._slices: dict[str, Addresses] = {}
        self._found: Callable[[Addresses], None]

    async def run(self, found: Callable[[Addresses], None]) -> None:  # noqa: D102 - the protocol says it
        self._found = found
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self._namespace}/endpointslices"
        selector = f"kubernetes.io/service-name={self._name}"
        async with new_client(self._access) as client:
            await follow(client, self._access, path, selector, self)

    def listed(self, objects: list[dict[str, Any]]) -> None:
        """Take all slices."""
        self._slices = {raw["metadata"]["name"]: addresses_in(raw) for raw in objects}
        self._tell()

    def put(self, raw: dict[str, Any]) -> None:
        """Take a slice that is new or has changed."""
        self._slices[raw["metadata"]["name"]] = addresses_in(raw)
        self._tell()

    def removed(self, raw: dict[str, Any]) -> None:
        """Drop a slice."""
        self._slices.pop(raw["metadata"]["name"], None)
        self._tell()

    def reachable(self, reason: str) -> None:
        """Go on with what is known, and say so."""
        if reason:
            _LOG.warning("other routers cannot be looked up, going on with those known: %s", reason)

    def _tell(self) -> None:
        self._found(frozenset(address for addresses in self._slices.values() for address in addresses))


def addresses_in(raw: dict[str, Any]) -> Addresses:
    """Return the addresses in an EndpointSlice, none where it has no port called `PORT_NAME`."""
    ports = [
        port["port"] for port in raw.get("ports") or () if port.get("name") == PORT_NAME and port.get("port")
    ]
    return frozenset(
        (address, int(port))
        for endpoint in raw.get("endpoints") or ()
        for address in endpoint.get("addresses") or ()
        for port in ports
    )
