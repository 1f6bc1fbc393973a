"""A client's connection from when it is accepted until TLS has been agreed on: counted, and within a deadline."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, cast

from turnout_router.http1.accounts import client_at
from turnout_router.http1.connection import Connection

if TYPE_CHECKING:
    import ssl

    from turnout_router.http1.host import Host

_LOG = logging.getLogger(__name__)
_SHUTDOWN_SECONDS: Final = 5.0
"""How long a client may take to answer the end of the TLS session before the connection is dropped."""


class Handshake(asyncio.Protocol):
    """Agrees on TLS, and then hands the connection over to a `Connection`.

    The event loop's own servers say nothing of a connection before its handshake is over, so that those which never end
    one would be neither counted nor be closed for others.
    """

    is_busy: Final = False
    is_idle: Final = True

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext) -> None:
        self._host = host
        self._loop = loop
        self._context = context
        self._address = ""
        self._task: asyncio.Task[None] | None = None
        self._raw: asyncio.Transport
        self._early = b""
        self._first = b""
        self._shaking = False
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if there is room."""
        self._raw = cast("asyncio.Transport", transport)
        self._raw.pause_reading()
        self._address = client_at(transport.get_extra_info("peername"))
        if self._host.admit_handshake(self._address, self):
            self._task = self._loop.create_task(self._shake(), name="TLS handshake")
        else:
            self.evict()  # there is no way yet to say why

    def data_received(self, data: bytes) -> None:
        """Keep what comes before TLS takes over, and what comes in the very read that ends the handshake.

        uvloop begins to read whatever was said about that when the connection was made, so that a client's first message
        can come here instead of to TLS.
        """
        if self._shaking:
            self._early += data
        else:
            self._first += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio gives it
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
        self._host.end_handshake(self._address, self)

    async def _shake(self) -> None:
        handed_over = False
        try:
            starting = self._loop.create_task(
                self._loop.start_tls(
                    self._raw,
                    self,
                    self._context,
                    server_side=True,
                    ssl_handshake_timeout=self._host.limits.head_seconds,
                    ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
                ),
                name="TLS handshake, TLS itself",
            )
            await asyncio.sleep(
                0
            )  # by now TLS is the transport's protocol, and does not know the connection yet
            self._shaking = True
            if self._first:
                self._loop.call_soon(self._feed_first)
            transport = await starting
            if transport is not None and not self._lost:
                self._hand_over(transport)
                handed_over = True
        except (OSError, EOFError):
            pass  # the client left, took too long, or speaks no TLS that is accepted here
        except Exception:  # noqa: BLE001 - logged, and only this connection ends
            _LOG.exception("a TLS handshake ended in a fault of the router")
        finally:
            self._forget()
            if not handed_over:
                self._raw.abort()

    def _feed_first(self) -> None:
        """Give TLS what came before it listened."""
        data, self._first = self._first, b""
        protocol: Any = self._raw.get_protocol()  # TLS's own, a buffered protocol on either event loop
        if self._lost or protocol is self:
            return
        while data:
            buffer = memoryview(protocol.get_buffer(len(data)))
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            protocol.buffer_updated(size)
            data = data[size:]

    def _hand_over(self, transport: asyncio.Transport) -> None:
        self._task = None
        self._forget()
        connection = Connection(self._host, self._loop)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if self._early:
            connection.data_received(self._early)
