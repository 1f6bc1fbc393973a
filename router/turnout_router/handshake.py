"""A client's connection from when it is accepted until TLS has been agreed on: counted, and within a deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from turnout_router.accounts import client_at
from turnout_router.connection import ClientConnection

if TYPE_CHECKING:
    import ssl

    from turnout_router.listener import Listener

_SHUTDOWN_SECONDS: Final = 5.0
"""How long a client may take to answer the end of the TLS session before the connection is dropped."""


class Handshake(asyncio.Protocol):
    """Agrees on TLS, and then hands the connection over to a `ClientConnection`.

    The event loop's own servers say nothing of a connection before its handshake is over, so that those which never end
    one would be neither counted nor be closed for others.
    """

    is_idle: Final = True

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext) -> None:
        self._listener = listener
        self._loop = loop
        self._context = context
        self._address = ""
        self._task: asyncio.Task[None] | None = None
        self._raw: asyncio.Transport
        self._early = b""
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if there is room."""
        self._raw = cast("asyncio.Transport", transport)
        self._raw.pause_reading()
        self._address = client_at(transport.get_extra_info("peername"))
        if self._listener.admit_handshake(self._address, self):
            self._task = self._loop.create_task(self._shake(), name="TLS handshake")
        else:
            self.evict()  # there is no way yet to say why

    def data_received(self, data: bytes) -> None:
        """Keep what comes in the very read that ends the handshake."""
        self._early += data

    def connection_lost(self, _exc: Exception | None) -> None:
        """Count it no longer."""
        self._lost = True
        self._forget()
        if self._task is not None:
            self._task.cancel()

    def evict(self) -> None:
        """Drop the connection."""
        self._forget()
        if self._task is not None:
            self._task.cancel()
        self._raw.abort()

    def _forget(self) -> None:
        self._listener.end_handshake(self._address, self)

    async def _shake(self) -> None:
        try:
            transport = await self._loop.start_tls(
                self._raw,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._listener.limits.head_seconds,
                ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
            )
        except (OSError, EOFError):
            transport = None  # the client left, took too long, or speaks no TLS that is accepted here
        if transport is None or self._lost:
            self._forget()
            self._raw.abort()
            return
        self._task = None
        self._forget()
        connection = ClientConnection(self._listener, self._loop)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if self._early:
            connection.data_received(self._early)
