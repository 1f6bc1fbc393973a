"""Joins two TCP connections: bytes pass from transport to transport, slow readers stop fast writers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from turnout_runtime.supervision import Supervisor

CONNECT_SECONDS: Final = 5.0
HIGH_WATER: Final = 64 * 1024
"""Bytes waiting for one side above which the other is not read."""

Target = Callable[[], tuple[str, int] | None]
"""Chooses where a new connection leads; None refuses it."""


class _End(asyncio.Protocol):
    """One end of a joined pair."""

    def __init__(self, other: _End | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.other = other
        self.finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the other end: from here on both read."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker: TCP has these
        self.transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)
        if self.other is not None and self.other.transport is not None:
            self.other.other = self
            self.other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Pass *data* on."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end of this direction on; the other direction goes on until its own end."""
        self.finished = True
        other = self.other
        if other is None or other.transport is None or other.finished:
            return False
        if other.transport.can_write_eof() and not other.transport.is_closing():
            other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        """Stop reading what would be written here."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read again."""
        other = self.other
        if other is not None and other.transport is not None and not other.transport.is_closing():
            other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other side too: after what it still has to write, or at once where this one broke."""
        other, self.other = self.other, None
        if other is not None and other.transport is not None:
            if exc is None:
                other.transport.close()
            else:
                other.transport.abort()


class Inbound(_End):
    """The client's end: chooses a target and connects to it before it reads anything."""

    def __init__(self, target: Target, supervisor: Supervisor) -> None:
        super().__init__()
        self._target = target
        self._supervisor = supervisor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the chosen target."""
        super().connection_made(transport)
        try:
            chosen = self._target()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the connection must end, whatever it is
            self._supervisor.note("splice", error)
            chosen = None
        if chosen is None or self.transport is None:
            transport.close()
            return
        self.transport.pause_reading()
        self._supervisor.once("splice", self._connect(*chosen))

    async def _connect(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.create_connection(lambda: _End(self), host, port)
        except OSError:
            self._give_up()
            return
        except BaseException:
            self._give_up()
            raise
        if self.transport is not None and self.transport.is_closing() and self.other is not None:
            self.connection_lost(None)

    def _give_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()
