"""Connections to workers, kept and reused: one pool per worker.

A kept connection that the worker closed in the same moment as it was used again is replaced once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from turnout_router.errors import UpstreamError
from turnout_router.tasks import WORKER, only_logged
from turnout_router.upstream.connection import UpstreamConnection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnout_router.settings import UpstreamLimits
    from turnout_router.tasks import Note
    from turnout_router.upstream.connection import AnswerHandler

_SWEEP_SECONDS: Final = 0.25

Address = tuple[str, int]


class ConnectionPool:
    """Connections to one worker: those in use, and those kept for the next exchange (last in, first out).

    *note* is called with what was raised where nothing should have been.
    """

    def __init__(self, address: Address, limits: UpstreamLimits, note: Note = only_logged) -> None:
        self.address = address
        self.host = b"%b:%d" % (address[0].encode(errors="replace"), address[1])
        """What requests call it in their `host` field."""
        self.limits = limits
        self.note = note
        self._kept: list[UpstreamConnection] = []
        self._used: set[UpstreamConnection] = set()
        self._closed = False

    async def exchange(
        self,
        request: bytes,
        answer: AnswerHandler,
        *,
        seconds: float,
        idle_seconds: float | None,
        what: str,
        on_start: ConnectionTaker | None = None,
        repeatable: bool = True,
    ) -> None:
        """Send *request* and push what comes back into *answer* until its end.

        Raise UpstreamError where that fails, whatever it was that failed. When cancelled, the connection is closed at once.
        *on_start* gets the connection, to pause it. Where a kept connection turns out to be dead, *request* is sent again on a
        new one if it is *repeatable*; else the failure is called stale.
        """
        connection = self._take()
        if connection is not None:
            try:
                await self._run(
                    connection, request, answer, seconds, idle_seconds, what=what, on_start=on_start
                )
            except UpstreamError as error:
                if error.fault != "reset" or not connection.stale:
                    raise
                if not repeatable:
                    raise UpstreamError("stale", "the connection kept to it was dead") from error
            else:
                return
        connection = await self._connect()
        await self._run(connection, request, answer, seconds, idle_seconds, what=what, on_start=on_start)

    async def _run(
        self,
        connection: UpstreamConnection,
        request: bytes,
        answer: AnswerHandler,
        seconds: float,
        idle_seconds: float | None,
        *,
        what: str,
        on_start: ConnectionTaker | None,
    ) -> None:
        self._used.add(connection)
        try:
            done = connection.begin(request, answer, seconds=seconds, idle_seconds=idle_seconds, what=what)
            if on_start is not None:
                on_start(connection)
            await done
        finally:
            # Not before the exchange's own coroutine runs again: until then no other exchange may get it.
            self._settle(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """Let go of a connection that has ended."""
        self._used.discard(connection)
        if connection in self._kept:
            self._kept.remove(connection)

    def sweep(self, now: float) -> None:
        """Fail what has taken too long and close what was not needed."""
        for connection in tuple(self._used):
            try:
                connection.check_deadline(now)
            except Exception as error:  # noqa: BLE001 - the others' deadlines hold all the same
                self.note(WORKER, error)
        for connection in tuple(self._kept):
            if now - connection.idle_since > self.limits.idle_seconds:
                connection.close()

    def close(self) -> None:
        """Close what is kept; what is in use ends by itself."""
        self._closed = True
        for connection in tuple(self._kept):
            connection.close()

    @property
    def in_use(self) -> int:
        """Connections with an exchange under way."""
        return len(self._used)

    def _settle(self, connection: UpstreamConnection) -> None:
        """Keep *connection* for the next exchange, within bounds; close it where its answer was not complete."""
        self._used.discard(connection)
        if self._closed or len(self._kept) >= self.limits.idle_connections or not connection.reusable:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        connection.reused = True
        self._kept.append(connection)

    def _take(self) -> UpstreamConnection | None:
        now = asyncio.get_running_loop().time()
        while self._kept:
            connection = self._kept.pop()
            in_time = now - connection.idle_since <= self.limits.idle_seconds
            if in_time and connection.reusable and connection.quiet:
                return connection
            connection.close()
        return None

    async def _open(self, loop: asyncio.AbstractEventLoop) -> UpstreamConnection:
        host, port = self.address
        async with asyncio.timeout(self.limits.connect_seconds):
            _, connection = await loop.create_connection(lambda: UpstreamConnection(self, loop), host, port)
        return connection

    async def _connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        opening = loop.create_task(self._open(loop))
        try:
            return await opening
        except TimeoutError as error:
            seconds = self.limits.connect_seconds
            raise UpstreamError("connect", f"no connection to it within {seconds:g} s") from error
        except OSError as error:
            raise UpstreamError(
                "connect", f"it cannot be connected to ({error.strerror or error})"
            ) from error
        except asyncio.CancelledError as error:
            if opening.cancelled() and not opening.cancelling():  # by the awaited future, not by the caller
                raise UpstreamError("connect", "connecting to it was cut short") from error
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result().close()  # it came in the same moment
            raise
        except (
            Exception
        ) as error:  # an address that is none, a name that cannot be encoded, a socket that is gone
            raise UpstreamError(
                "connect", f"it cannot be connected to ({type(error).__name__}: {error})"
            ) from error


class ConnectionTaker(Protocol):
    """Receives the connection that an answer comes from."""

    def __call__(self, connection: UpstreamConnection, /) -> None: ...  # noqa: D102 - said above


class ConnectionPools:
    """One pool per worker's address; those of workers that left are closed."""

    def __init__(self, limits: UpstreamLimits, note: Note = only_logged) -> None:
        self._limits = limits
        self.note = note
        self._pools: dict[Address, ConnectionPool] = {}
        self._leaving: list[ConnectionPool] = []
        self._sweeping: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch deadlines."""
        self._sweep()

    def stop(self) -> None:
        """Close what is kept and watch no longer."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self.retain(())

    def of(self, address: Address) -> ConnectionPool:
        """Return the pool of *address*."""
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = ConnectionPool(address, self._limits, self.note)
        return pool

    def retain(self, addresses: Iterable[Address]) -> None:
        """Close the pools of all other addresses; exchanges under way go on."""
        wanted = set(addresses)
        for address in [a for a in self._pools if a not in wanted]:
            pool = self._pools.pop(address)
            pool.close()
            self._leaving.append(pool)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(
            _SWEEP_SECONDS, self._sweep
        )  # first: whatever happens below, it goes on
        now = loop.time()
        for pool in (*self._pools.values(), *self._leaving):
            pool.sweep(now)
        self._leaving = [pool for pool in self._leaving if pool.in_use]
