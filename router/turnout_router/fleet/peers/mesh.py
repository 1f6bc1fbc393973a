"""All of this router's connections to others: listens, discovers them, and reports to each one."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout_router.errors import ConfigError
from turnout_router.fleet.peers.client import ConnectedPeers, PeerClient
from turnout_router.fleet.peers.counts import PeerCounts
from turnout_router.fleet.peers.handshake import PeerIdentity
from turnout_router.fleet.peers.sender import PeerSender
from turnout_router.fleet.peers.server import PeerServer
from turnout_router.tasks import PEER, PEER_FINDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_router.fleet.peers.discovery import PeerSource
    from turnout_router.fleet.peers.receiver import LoadTrackers
    from turnout_runtime.supervision import Group, Supervisor

    Addresses = frozenset[tuple[str, int]]

_LOG = logging.getLogger("turnout_router.fleet.peers")

MAX_PEERS: Final = 64
"""Addresses that this router reports to. Each router tracks the requests of all others: beyond that, use fewer, larger ones."""
_MAX_SECRET_BYTES: Final = 4096


class Mesh:
    """This router's exchange of messages with the others. The data path uses `sender` alone."""

    def __init__(
        self,
        trackers: LoadTrackers,
        sources: Sequence[PeerSource],
        secret: bytes | None,
        batch_seconds: float,
        supervisor: Supervisor,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.counts = PeerCounts()
        self.sender = PeerSender(loop, self.counts, batch_seconds, supervisor.note)
        self._supervisor = supervisor
        self._identity = PeerIdentity(secret)
        self._server = PeerServer(self._identity, trackers, self.counts, loop.time, supervisor)
        self._taken = ConnectedPeers(self._identity.number)
        self._sources = sources
        self._found: dict[int, Addresses] = {}
        self._clients: dict[tuple[str, int], tuple[PeerClient, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()

    async def start(self, host: str, port: int) -> int:
        """Listen for others and return the port. Raise OSError where it is taken."""
        return await self._server.start(host, port)

    async def run(self) -> None:
        """Discover the others and report to them, until cancelled."""
        async with self._supervisor.group() as group:
            self._clients = {}  # those of a failed run have ended with it
            for number, source in enumerate(self._sources):
                group.run(PEER_FINDING, partial(self._find, number, source))
            while True:
                self._follow(group)
                await self._changed.wait()
                self._changed.clear()

    async def stop(self) -> None:
        """Stop listening and reporting."""
        self.sender.stop()
        await self._server.stop()

    def others(self) -> int:
        """Return how many other routers are connected, whichever way."""
        return max(self.counts.outgoing, self.counts.incoming)

    def describe(self) -> dict[str, object]:
        """Return the connections in both directions, for people."""
        return {
            "identity": self._identity.number.hex(),
            "outgoing": [
                {"address": f"{host}:{port}", "state": client.state}
                for (host, port), (client, _) in self._clients.items()
            ],
            "incoming": self._server.describe(),
            "requestsOfOthers": self.counts.requests,
        }

    async def _find(self, number: int, source: PeerSource) -> None:
        def found(addresses: Addresses) -> None:
            if self._found.get(number) != addresses:
                self._found[number] = addresses
                self._changed.set()

        await source.run(found)

    def _follow(self, group: Group) -> None:
        """Report to exactly the addresses that are known now."""
        wanted = sorted({address for addresses in self._found.values() for address in addresses})
        if len(wanted) > MAX_PEERS:
            _LOG.warning(
                "%d routers are known, and this one reports to only %d of them", len(wanted), MAX_PEERS
            )
        for address in self._clients.keys() - set(wanted[:MAX_PEERS]):
            self._clients.pop(address)[1].cancel()
        for address in wanted[:MAX_PEERS]:
            if address not in self._clients:
                client = PeerClient(
                    address,
                    self._identity,
                    self._taken,
                    self.sender,
                    counts=self.counts,
                    supervisor=self._supervisor,
                )
                task = group.run(PEER, client.run, detail=f"{address[0]}:{address[1]}")
                self._clients[address] = client, task


def read_secret(path: Path) -> bytes:
    """Return the secret in *path*, without white space around it. Raise ConfigError where there is none."""
    try:
        secret = Path(path).read_bytes()[: _MAX_SECRET_BYTES + 1].strip()
    except OSError as error:
        raise ConfigError(f"the peers' secret {path} cannot be read: {error.strerror}") from error
    if not 0 < len(secret) <= _MAX_SECRET_BYTES:
        raise ConfigError(f"the peers' secret {path} must have 1 to {_MAX_SECRET_BYTES} bytes")
    return secret
