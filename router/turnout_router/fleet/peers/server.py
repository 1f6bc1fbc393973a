"""The port at which other routers report their requests."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from turnout_router.fleet.peers.client import HANDSHAKE_SECONDS, SILENCE_SECONDS
from turnout_router.fleet.peers.handshake import accept_handshake
from turnout_router.fleet.peers.messages import HEARTBEAT, MAX_FRAME_BYTES, PeerError, read_messages, write
from turnout_router.fleet.peers.receiver import PeerReceiver
from turnout_router.http1.accounts import Crowd, client_at
from turnout_router.tasks import PEER_HEARING

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.fleet.peers.counts import PeerCounts
    from turnout_router.fleet.peers.handshake import PeerIdentity
    from turnout_router.fleet.peers.receiver import LoadTrackers
    from turnout_runtime.supervision import Supervisor

_LOG = logging.getLogger("turnout_router.fleet.peers")

MAX_CONNECTIONS: Final = 128
"""Connections at a time, including those that have not completed the handshake. When there is no room, the oldest
incomplete one of the address with the most of them is closed."""
MAX_PER_ADDRESS: Final = 32
"""The same bound for one address: few routers share one."""
_CLOSING_TURNS: Final = 4
"""Turns of the event loop after which connections that were just accepted or closed have ended."""
COMPLAIN_SECONDS: Final = 60.0
"""Least time between two log lines about the same fault: a refused peer tries again."""


class PeerServer:
    """Listens, and keeps one `PeerReceiver` for each router that reports to this one."""

    def __init__(
        self,
        identity: PeerIdentity,
        trackers: LoadTrackers,
        counts: PeerCounts,
        clock: Callable[[], float],
        supervisor: Supervisor,
    ) -> None:
        self._identity = identity
        self._trackers = trackers
        self._counts = counts
        self._clock = clock
        self._supervisor = supervisor
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._all: Crowd[asyncio.StreamWriter] = Crowd()
        self._unauthenticated: Crowd[asyncio.StreamWriter] = Crowd()
        self._connections: dict[bytes, _Connection] = {}
        self._stopped = False
        self._complain_at: dict[str, float] = {}

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port. Raise OSError where it is taken."""
        self._server = await asyncio.start_server(
            self._accept, host, port, limit=MAX_FRAME_BYTES, backlog=MAX_CONNECTIONS
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, and drop what others have open."""
        self._stopped = True
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(_CLOSING_TURNS):
            await asyncio.sleep(
                0
            )  # a transport closes in a later turn, and one that was just accepted is yet to be made

    def describe(self) -> list[dict[str, object]]:
        """Return the connected routers, for people."""
        return [
            {"identity": identity.hex(), "address": connection.address, "requests": len(connection.receiver)}
            for identity, connection in self._connections.items()
        ]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = client_at(writer.get_extra_info("peername"))
        if self._stopped or not self._make_room(address):
            self._counts.end("too_many")
            writer.transport.abort()
            return
        self._all.add(address, writer)
        self._unauthenticated.add(address, writer)
        task = self._supervisor.once(PEER_HEARING, self._serve(reader, writer), detail=address)
        self._tasks.add(task)

        def forget(task: asyncio.Task[None]) -> None:  # also one that was cancelled before it began
            self._tasks.discard(task)
            self._all.remove(address, writer)
            self._unauthenticated.remove(address, writer)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()  # a peer that does not read would keep it open forever
            else:
                writer.close()

        task.add_done_callback(forget)

    def _make_room(self, address: str) -> bool:
        """Return whether there is room for one more connection from *address*, if need be after closing an incomplete one."""
        if self._all.size(address) >= MAX_PER_ADDRESS:
            oldest = self._unauthenticated.of(address, 1)
        elif len(self._all) >= MAX_CONNECTIONS:
            address, oldest = self._unauthenticated.of_largest(1)
        else:
            return True
        for writer in oldest:
            self._counts.end("too_many")
            self._all.remove(address, writer)
            self._unauthenticated.remove(address, writer)
            writer.transport.abort()
        return bool(oldest)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._run_session(reader, writer)
        except PeerError as error:
            self._counts.end(error.fault)
            self._complain(error, writer)
        except TimeoutError:
            self._counts.end("silent")
        except (OSError, EOFError):
            self._counts.end("closed")

    def _complain(self, error: PeerError, writer: asyncio.StreamWriter) -> None:
        now = self._clock()
        if now >= self._complain_at.get(error.fault, now):
            self._complain_at[error.fault] = now + COMPLAIN_SECONDS
            _LOG.warning("peer %s is refused: %s", _address(writer), error)

    async def _run_session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            identity = await accept_handshake(self._identity, reader, writer)
        self._unauthenticated.remove(client_at(writer.get_extra_info("peername")), writer)
        before = self._connections.get(identity)
        if before is not None:
            before.replace()
        receiver = PeerReceiver(self._trackers, self._counts, self._clock)
        connection = self._connections[identity] = _Connection(receiver, writer)
        self._counts.incoming += 1
        _LOG.info("peer %s reports its requests", connection.address)
        try:
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    messages = await read_messages(reader)
                if connection.replaced:
                    return
                if messages:
                    receiver.take(messages)
                    await asyncio.sleep(0)  # what is there already is read without a pause: let others run
                else:
                    write(writer, HEARTBEAT)
                    async with asyncio.timeout(SILENCE_SECONDS):
                        await writer.drain()
        finally:
            self._counts.incoming -= 1
            if self._connections.get(identity) is connection:
                del self._connections[identity]
            dropped = receiver.close()
            _LOG.info("peer %s has disconnected; dropped its %d requests", connection.address, dropped)


class _Connection:
    """One connection. A router that connects again before its old connection is known to be dead replaces it."""

    def __init__(self, receiver: PeerReceiver, writer: asyncio.StreamWriter) -> None:
        self.receiver = receiver
        self.address = _address(writer)
        self.replaced = False
        self._writer = writer

    def replace(self) -> None:
        self.replaced = True
        self.receiver.close()
        self._writer.transport.abort()


def _address(writer: asyncio.StreamWriter) -> str:
    host, port, *_ = writer.get_extra_info("peername") or ("?", 0)
    return f"{host}:{port}"
