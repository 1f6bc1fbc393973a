"""One of the router's ports: accepting connections, watching their deadlines, and letting them finish at the end.

Connections are counted from when they are accepted, TLS handshakes included. Where there are too many, the longest idle
one of the client that has most makes way for a new one: idle connections keep no client out.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from turnout_router.http1.accounts import Crowd
from turnout_router.http1.connection import LINGER_SECONDS, Connection
from turnout_router.http1.handshake import Handshake
from turnout_router.http1.host import Host
from turnout_router.tasks import CLIENT, only_logged

if TYPE_CHECKING:
    import ssl

    from turnout_router.http1.host import Member, ServedMember
    from turnout_router.http1.response import Handler
    from turnout_router.settings import ClientLimits
    from turnout_router.tasks import Note

_SWEEP_SECONDS: Final = 1.0
_LOOKED_AT: Final = 128
"""Connections of one client that are looked at for one that can make way: those that have been left alone longest."""


class Listener(Host):
    """All connections of one port. *note* is called with what was raised where nothing should have been."""

    def __init__(self, handler: Handler, limits: ClientLimits, note: Note = only_logged) -> None:
        super().__init__(handler, limits, note)
        self._handshakes: Crowd[Member] = Crowd()
        self._crowd: Crowd[Member] = Crowd()
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen and return the port, which differs from *port* where that is 0. Raise OSError where it is taken."""
        loop = asyncio.get_running_loop()

        def accept() -> asyncio.Protocol:
            return Connection(self, loop) if tls is None else Handshake(self, loop, tls)

        self._server = await loop.create_server(accept, host, port, backlog=1024)
        listening: Any = self._server  # uvloop's has a list of sockets, asyncio's a tuple
        self._sweeping = loop.call_later(_SWEEP_SECONDS, self._sweep, loop)
        return int(listening.sockets[0].getsockname()[1])

    async def stop(self, grace_seconds: float) -> int:
        """Accept nothing more, let running answers finish for *grace_seconds*, cut the rest. Return how many were cut."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        while self._handshakes:
            for handshake in self._handshakes.of_largest(1)[1]:
                handshake.evict()
        for connection in tuple(self.connections):
            connection.drain()
        await self._emptied(grace_seconds)
        left = len(self.connections)
        for connection in tuple(self.connections):
            connection.cut()
        await self._emptied(LINGER_SECONDS)
        for connection in tuple(self.connections):
            connection.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
        return left

    async def _emptied(self, seconds: float) -> None:
        if self.connections:
            self._empty = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()

    @property
    def held_bytes(self) -> int:
        """Bodies of requests that are arriving or under way, all connections together."""
        return self.accounts.held_bytes

    def __len__(self) -> int:
        """Return the number of connections, those in a handshake included."""
        return len(self._crowd)

    @property
    def handshakes(self) -> int:
        """How many connections are in a TLS handshake."""
        return len(self._handshakes)

    def admit(self, address: str, member: Member) -> bool:
        """Count *member*, which comes from *address*, until it is let go. Say whether there is room for it."""
        crowd = self._crowd
        crowd.add(address, member)
        if len(crowd) <= self.limits.connections:
            return True
        largest, oldest = crowd.of_largest(_LOOKED_AT)
        idle = [other for other in oldest if other is not member and other.is_idle]
        if not idle and crowd.size(address) < crowd.size(largest):
            # Its bodies that are arriving make way as well, for a client that has less.
            idle = [other for other in oldest if not other.is_busy]
        if idle:
            crowd.remove(largest, idle[0])
            idle[0].evict()
            return True
        for other in oldest:  # so that others are looked at next time
            crowd.remove(largest, other)
            crowd.add(largest, other)
        return False

    def admit_handshake(self, address: str, handshake: Member) -> bool:
        """Count *handshake* until it is over. Say whether there is room for it."""
        handshakes = self._handshakes
        handshakes.add(address, handshake)
        if len(handshakes) > self.limits.handshakes:
            for oldest in handshakes.of_largest(1)[1]:
                oldest.evict()
        return self.admit(address, handshake)

    def end_handshake(self, address: str, handshake: Member) -> None:
        """Count *handshake* no longer."""
        self._handshakes.remove(address, handshake)
        self._crowd.remove(address, handshake)

    def forget(self, address: str, connection: ServedMember) -> None:
        """Let go of a connection that has ended."""
        self._crowd.remove(address, connection)
        self.connections.discard(connection)
        if not self.connections and self._empty is not None:
            self._empty.set()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = loop.call_later(
            _SWEEP_SECONDS, self._sweep, loop
        )  # first: whatever happens, it goes on
        now = loop.time()
        for connection in tuple(self.connections):
            try:
                connection.check_deadlines(now)
            except Exception as error:  # noqa: BLE001 - the others' deadlines hold all the same
                self.note(CLIENT, error)
                connection.abort()
