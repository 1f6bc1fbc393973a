"""The public port: accepting connections, watching their deadlines, and letting them finish at the end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from turnout_router.connection import LINGER_SECONDS, ClientConnection
from turnout_router.tasks import CLIENT, only_logged

if TYPE_CHECKING:
    import ssl

    from turnout_router.connection import Handler
    from turnout_router.settings import ClientLimits
    from turnout_router.tasks import Note

_SWEEP_SECONDS: Final = 1.0


class Listener:
    """All connections of the public port. *note* is called with what was raised where nothing should have been."""

    def __init__(self, handler: Handler, limits: ClientLimits, note: Note = only_logged) -> None:
        self.handler = handler
        self.note = note
        self.limits = limits
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self.held_bytes = 0
        """Bodies of requests that are arriving or under way, all connections together."""
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen and return the port, which differs from *port* where that is 0. Raise OSError where it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self, loop),
            host,
            port,
            backlog=1024,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else self.limits.head_seconds,
        )
        self._sweeping = loop.call_later(_SWEEP_SECONDS, self._sweep, loop)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_seconds: float) -> int:
        """Accept nothing more, let running answers finish for *grace_seconds*, cut the rest. Return how many were cut."""
        self.draining = True
        if self._server is not None:
            self._server.close()
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

    def forget(self, connection: ClientConnection) -> None:
        """Let go of a connection that has ended."""
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
