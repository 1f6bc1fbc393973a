"""All of this router's conversations with others: listens, finds them, tells each one."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout_router.errors import ConfigError
from turnout_router.fleet.peers.counts import PeerCounts
from turnout_router.fleet.peers.greeting import Identity
from turnout_router.fleet.peers.hearing import Hearing
from turnout_router.fleet.peers.link import Link, Links
from turnout_router.fleet.peers.outbox import Outbox
from turnout_router.tasks import PEER, PEER_FINDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_router.fleet.peers.finding import PeerSource
    from turnout_router.fleet.peers.inbox import LoadTrackers
    from turnout_runtime.supervision import Group, Supervisor

    Addresses = frozenset[tuple[str, int]]

_LOG = logging.getLogger("turnout_router.fleet.peers")

MAX_PEERS: Final = 64
"""Addresses that are told. Every router books every other one's requests: with so many, few large ones do better."""
_MAX_SECRET_BYTES: Final = 4096


class Mesh:
    """What this router tells others and hears from them. The data path speaks to `outbox` alone."""

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
        self.outbox = Outbox(loop, self.counts, batch_seconds, supervisor.note)
        self._supervisor = supervisor
        self._identity = Identity(secret)
        self._hearing = Hearing(self._identity, trackers, self.counts, loop.time, supervisor)
        self._taken = Links(self._identity.number)
        self._sources = sources
        self._found: dict[int, Addresses] = {}
        self._links: dict[tuple[str, int], tuple[Link, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()

    async def start(self, host: str, port: int) -> int:
        """Listen for others and return the port. Raise OSError where it is taken."""
        return await self._hearing.start(host, port)

    async def run(self) -> None:
        """Find the others and tell them, until cancelled."""
        async with self._supervisor.group() as group:
            self._links = {}  # those of a run that failed have ended with it
            for number, source in enumerate(self._sources):
                group.run(PEER_FINDING, partial(self._find, number, source))
            while True:
                self._follow(group)
                await self._changed.wait()
                self._changed.clear()

    async def stop(self) -> None:
        """Stop listening and telling."""
        self.outbox.stop()
        await self._hearing.stop()

    def others(self) -> int:
        """Return how many other routers are connected, whichever way."""
        return max(self.counts.telling, self.counts.hearing)

    def describe(self) -> dict[str, object]:
        """Return who is told and who is heard, for people."""
        return {
            "identity": self._identity.number.hex(),
            "outgoing": [
                {"address": f"{host}:{port}", "state": link.state}
                for (host, port), (link, _) in self._links.items()
            ],
            "incoming": self._hearing.describe(),
            "requestsOfOthers": self.counts.requests,
        }

    async def _find(self, number: int, source: PeerSource) -> None:
        def found(addresses: Addresses) -> None:
            if self._found.get(number) != addresses:
                self._found[number] = addresses
                self._changed.set()

        await source.run(found)

    def _follow(self, group: Group) -> None:
        """Tell exactly those who are known now."""
        wanted = sorted({address for addresses in self._found.values() for address in addresses})
        if len(wanted) > MAX_PEERS:
            _LOG.warning("%d routers are known, and only %d of them are told", len(wanted), MAX_PEERS)
        for address in self._links.keys() - set(wanted[:MAX_PEERS]):
            self._links.pop(address)[1].cancel()
        for address in wanted[:MAX_PEERS]:
            if address not in self._links:
                link = Link(
                    address,
                    self._identity,
                    self._taken,
                    self.outbox,
                    counts=self.counts,
                    supervisor=self._supervisor,
                )
                task = group.run(PEER, link.run, detail=f"{address[0]}:{address[1]}")
                self._links[address] = link, task


def read_secret(path: Path) -> bytes:
    """Return the secret in *path*, without white space around it. Raise ConfigError where there is none."""
    try:
        secret = Path(path).read_bytes()[: _MAX_SECRET_BYTES + 1].strip()
    except OSError as error:
        raise ConfigError(f"the peers' secret {path} cannot be read: {error.strerror}") from error
    if not 0 < len(secret) <= _MAX_SECRET_BYTES:
        raise ConfigError(f"the peers' secret {path} must have 1 to {_MAX_SECRET_BYTES} bytes")
    return secret
