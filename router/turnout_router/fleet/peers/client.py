"""One other router that is told: the connection to it, made again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from turnout_router.fleet.peers.greeting import greet
from turnout_router.fleet.peers.messages import SIGN_OF_LIFE, PeerError, frames, read_messages, write
from turnout_router.tasks import PEER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_router.fleet.peers.counts import PeerCounts
    from turnout_router.fleet.peers.greeting import Identity
    from turnout_router.fleet.peers.outbox import Outbox
    from turnout_runtime.supervision import Supervisor

_LOG = logging.getLogger("turnout_router.fleet.peers")

CONNECT_SECONDS: Final = 2.0
GREETING_SECONDS: Final = 3.0
"""For the whole greeting, on either side."""
LIFE_SECONDS: Final = 1.0
"""How often a sign of life is sent."""
SILENCE_SECONDS: Final = 5.0
"""After this long without any from the other side it counts as gone: its machine is lost, or it hangs."""
UNREAD_BYTES: Final = 8 * 1024 * 1024
"""What a peer may leave unread before the connection is cut; connected again, it is told what is open then."""
_BACK_OFF_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Links:
    """Who is told already: two addresses of one router make one conversation."""

    def __init__(self, own: bytes) -> None:
        self._own = own
        self._taken: set[bytes] = set()

    def take(self, identity: bytes) -> None:
        """Take *identity*. Raise PeerError where that is this router itself, or told already."""
        if identity == self._own:
            raise PeerError("self", "that is this router itself")
        if identity in self._taken:
            raise PeerError("twice", "that router is told already, under another address")
        self._taken.add(identity)

    def free(self, identity: bytes) -> None:
        """Give *identity* back."""
        self._taken.discard(identity)


class Link:
    """Tells one address, until cancelled. `state` says for people how that goes."""

    def __init__(
        self,
        address: tuple[str, int],
        identity: Identity,
        links: Links,
        outbox: Outbox,
        *,
        counts: PeerCounts,
        supervisor: Supervisor,
    ) -> None:
        self.address = address
        self.state = "connecting"
        self._identity = identity
        self._links = links
        self._outbox = outbox
        self._counts = counts
        self._supervisor = supervisor
        self._writer: asyncio.StreamWriter | None = None
        self._held: list[bytes] | None = None
        self._held_bytes = 0
        self._slow = False

    async def run(self) -> None:
        """Tell, and connect again where that ends. Returns where the address is this router's own."""
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._converse()
            except PeerError as error:
                fault, reason = error.fault, str(error)
            except TimeoutError:
                fault, reason = "silent", "it does not answer in time"
            except (OSError, EOFError) as error:
                if self._slow:
                    fault, reason = "slow", f"it left more than {UNREAD_BYTES} bytes unread"
                else:
                    fault, reason = "closed", _ended(error)
            except Exception as error:  # counted and logged by who runs this, which runs it again
                self.state = f"failed: {type(error).__name__}: {error}"
                raise
            if fault == "self":
                self.state = "this router itself"
                return
            self._counts.end(fault)
            if asyncio.get_running_loop().time() - began > SILENCE_SECONDS:
                failures = 0
            if reason != self.state:
                _LOG.warning("peer %s:%d is not told: %s", *self.address, reason)
            self.state = reason
            pause = _BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)]
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, guards nothing

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Pass on what is new, after what was open at the beginning."""
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
        """End the conversation, of which something could not be passed on: connected again, it is told what is open then."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def _converse(self) -> None:
        taken: bytes | None = None

        def take(identity: bytes) -> None:
            nonlocal taken
            self._links.take(identity)
            taken = identity

        self._slow = False
        host, port = self.address
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, limit=4096)
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                await greet(self._identity, reader, writer, take)
            self._writer = writer
            await self._tell(reader, writer)
        finally:
            self._outbox.hearers.discard(self)
            self._writer = self._held = None
            self._held_bytes = 0
            if taken is not None:
                self._links.free(taken)
            writer.transport.abort()

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._held = []
        before = self._outbox.begin(self)
        self._counts.telling += 1
        self.state = "connected"
        _LOG.info("peer %s:%d is told, of %d messages to begin with", *self.address, len(before))
        living = self._supervisor.once(PEER, self._live(writer), detail=f"signs of life to {self.address[0]}")
        # Without them the other side would take this router for gone, only later.
        living.add_done_callback(lambda _: writer.transport.abort())
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
            living.cancel()
            self._counts.telling -= 1

    async def _live(self, writer: asyncio.StreamWriter) -> None:
        while not writer.transport.is_closing():
            writer.write(SIGN_OF_LIFE)
            await asyncio.sleep(LIFE_SECONDS)


def _ended(error: OSError | EOFError) -> str:
    return "it closed the connection" if isinstance(error, EOFError) else str(error)
