"""The connection to one other router, to which this router reports its requests; made again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from turnout_router.fleet.peers.handshake import open_handshake
from turnout_router.fleet.peers.messages import HEARTBEAT, PeerError, frames, read_messages, write
from turnout_router.tasks import PEER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_router.fleet.peers.counts import PeerCounts
    from turnout_router.fleet.peers.handshake import PeerIdentity
    from turnout_router.fleet.peers.sender import PeerSender
    from turnout_runtime.supervision import Supervisor

_LOG = logging.getLogger("turnout_router.fleet.peers")

CONNECT_SECONDS: Final = 2.0
HANDSHAKE_SECONDS: Final = 3.0
"""For the whole handshake, on either side."""
HEARTBEAT_SECONDS: Final = 1.0
"""Seconds between two heartbeats."""
SILENCE_SECONDS: Final = 5.0
"""After so long without a heartbeat a peer counts as gone: its machine is lost, or it hangs."""
UNREAD_BYTES: Final = 8 * 1024 * 1024
"""What a peer may leave unread before the connection is cut; after it reconnects, it receives all open requests."""
_BACK_OFF_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class ConnectedPeers:
    """The identities of connected peers: two addresses of one router share one connection."""

    def __init__(self, own: bytes) -> None:
        self._own = own
        self._taken: set[bytes] = set()

    def take(self, identity: bytes) -> None:
        """Take *identity*. Raise PeerError if it is this router itself, or already connected."""
        if identity == self._own:
            raise PeerError("self", "the peer is this router itself")
        if identity in self._taken:
            raise PeerError("twice", "the peer is already connected under another address")
        self._taken.add(identity)

    def free(self, identity: bytes) -> None:
        """Give *identity* back."""
        self._taken.discard(identity)


class PeerClient:
    """Reports to one address until cancelled. `state` describes the connection for people."""

    def __init__(
        self,
        address: tuple[str, int],
        identity: PeerIdentity,
        connected: ConnectedPeers,
        sender: PeerSender,
        *,
        counts: PeerCounts,
        supervisor: Supervisor,
    ) -> None:
        self.address = address
        self.state = "connecting"
        self._identity = identity
        self._clients = connected
        self._sender = sender
        self._counts = counts
        self._supervisor = supervisor
        self._writer: asyncio.StreamWriter | None = None
        self._held: list[bytes] | None = None
        self._held_bytes = 0
        self._slow = False

    async def run(self) -> None:
        """Connect, report, and connect again after every end. Return if the address is this router's own."""
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._run_session()
            except PeerError as error:
                fault, reason = error.fault, str(error)
            except TimeoutError:
                fault, reason = "silent", "it does not answer in time"
            except (OSError, EOFError) as error:
                if self._slow:
                    fault, reason = "slow", f"it left more than {UNREAD_BYTES} bytes unread"
                else:
                    fault, reason = "closed", _ended(error)
            except Exception as error:  # counted and logged by the supervisor, which runs this again
                self.state = f"failed: {type(error).__name__}: {error}"
                raise
            if fault == "self":
                self.state = "this router itself"
                return
            self._counts.end(fault)
            if asyncio.get_running_loop().time() - began > SILENCE_SECONDS:
                failures = 0
            if reason != self.state:
                _LOG.warning("no connection to peer %s:%d: %s", *self.address, reason)
            self.state = reason
            pause = _BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)]
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, guards nothing

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Send new messages, after those about requests that were open when the connection began."""
        writer = self._writer
        if writer is None or self._slow:
            return
        if writer.transport.get_write_buffer_size() + self._held_bytes > UNREAD_BYTES:
            self._slow = True
            writer.transport.abort()
        elif self._held is not None:
            self._held += frames
            self._held_bytes += sum(map(len, frames))
        elif not writer.transport.is_closing():
            writer.writelines(frames)

    def cut(self) -> None:
        """End the connection, because messages were lost: after it reconnects, the peer receives all open requests."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def _run_session(self) -> None:
        taken: bytes | None = None

        def take(identity: bytes) -> None:
            nonlocal taken
            self._clients.take(identity)
            taken = identity

        self._slow = False
        host, port = self.address
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, limit=4096)
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await open_handshake(self._identity, reader, writer, take)
            self._writer = writer
            await self._report(reader, writer)
        finally:
            self._sender.subscribers.discard(self)
            self._writer = self._held = None
            self._held_bytes = 0
            if taken is not None:
                self._clients.free(taken)
            writer.transport.abort()

    async def _report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._held = []
        before = self._sender.begin(self)
        self._counts.outgoing += 1
        self.state = "connected"
        _LOG.info("connected to peer %s:%d, which first gets %d messages", *self.address, len(before))
        heartbeats = self._supervisor.once(
            PEER, self._send_heartbeats(writer), detail=f"heartbeats to {self.address[0]}"
        )
        # Without them the other side would consider this router gone, only later.
        heartbeats.add_done_callback(lambda _: writer.transport.abort())
        try:
            for frame in frames(before):
                write(writer, frame)
                async with asyncio.timeout(SILENCE_SECONDS):
                    await writer.drain()
            held, self._held, self._held_bytes = self._held, None, 0
            write(writer, *held)
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await read_messages(reader)
        finally:
            heartbeats.cancel()
            self._counts.outgoing -= 1

    async def _send_heartbeats(self, writer: asyncio.StreamWriter) -> None:
        while not writer.transport.is_closing():
            writer.write(HEARTBEAT)
            await asyncio.sleep(HEARTBEAT_SECONDS)


def _ended(error: OSError | EOFError) -> str:
    return "it closed the connection" if isinstance(error, EOFError) else str(error)
