"""The operator's own port: /healthz, /readyz, /metrics, and /decisions, which says why it did (not) scale.

Decisions name deployments of every namespace: they are shown to loopback peers alone, as `kubectl port-forward` makes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from turnout_operator.errors import ConfigurationError
from turnout_runtime.supervision import is_cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from turnout_operator.metrics import Metrics
    from turnout_runtime.supervision import Supervisor

TASK: Final = "admin"
"""Name under which failures are counted."""
MAX_CONNECTIONS: Final = 128
"""With more, the oldest is closed: a client that holds many cannot keep the kubelet's probes out."""
CONNECTION_SECONDS: Final = 30.0
"""How long a connection may stay open. Every answer takes milliseconds, and clients connect again."""


@asynccontextmanager
async def serving(
    host: str,
    port: int,
    metrics: Metrics,
    tasks: Supervisor,
    *,
    not_ready: Callable[[], str],
    remark: Callable[[], str],
    decisions: Callable[[], Mapping[str, str]],
) -> AsyncGenerator[None]:
    """Serve the admin port while the context lasts.

    *not_ready* returns why this operator is not ready, or ``""``; *remark* what is to be said though it is, or ``""``;
    *decisions* the last scaling decision's sentence by deployment.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = not_ready()
        said = reason or "; ".join(part for part in ("ok", remark()) if part)
        return web.Response(status=503 if reason else 200, text=said + "\n")

    async def page(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def why(request: web.Request) -> web.Response:
        if not _is_loopback(request.remote):
            raise web.HTTPForbidden(
                text="only for the operator's own pod: ask through kubectl port-forward\n"
            )
        return web.json_response(dict(decisions()))

    app = web.Application(middlewares=[_surviving(tasks)])
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", page),
            web.get("/decisions", why),
        ]
    )
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    connections = _Connections(runner.server)
    try:
        try:
            server = await asyncio.get_running_loop().create_server(connections.accept, host or None, port)
        except OSError as error:
            raise ConfigurationError(
                f"the admin port cannot listen on {host or '*'}:{port}: {error.strerror or error}; choose another --admin-port"
            ) from error
        end_sweeps = tasks.every(TASK, 1.0, connections.sweep)
        yield
        end_sweeps()
        server.close()
    finally:
        await runner.cleanup()


def _is_loopback(address: str | None) -> bool:
    """Say whether *address* is this machine's own, an IPv4 one within IPv6 included."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _surviving(tasks: Supervisor) -> Any:
    """Return what answers 500 where a page fails, and counts it."""

    @web.middleware
    async def survived(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            tasks.note(TASK, error, detail=request.path)
        except Exception as error:  # noqa: BLE001 - the next request is answered again
            tasks.note(TASK, error, detail=request.path)
        return web.Response(status=500, text="failed: the log says why\n")

    return survived


class _Connections:
    """The open connections, oldest first. aiohttp bounds neither their number nor their silence."""

    def __init__(self, server: web.Server | None) -> None:
        if server is None:
            raise RuntimeError("the runner was not set up")
        self._server = server
        self._opened: dict[web.RequestHandler, float] = {}
        """When each was accepted, in monotonic seconds."""

    def accept(self) -> asyncio.Protocol:
        """Return what answers on a new connection."""
        self._forget()
        while len(self._opened) >= MAX_CONNECTIONS:
            self._close(next(iter(self._opened)))
        made = self._server()
        self._opened[made] = time.monotonic()
        return made

    def sweep(self) -> None:
        """Close what has been open for too long."""
        self._forget()
        latest = time.monotonic() - CONNECTION_SECONDS
        for connection in [each for each, opened in self._opened.items() if opened <= latest]:
            self._close(connection)

    def _close(self, connection: web.RequestHandler) -> None:
        del self._opened[connection]
        transport = connection.transport
        connection.force_close()
        if transport is not None:
            transport.abort()  # which does not wait until what was written is read

    def _forget(self) -> None:
        present = set(self._server.connections)
        now = time.monotonic()
        # A connection is known to the server once it is made, which is soon after it was accepted.
        self._opened = {
            connection: opened
            for connection, opened in self._opened.items()
            if connection in present or now - opened < 1.0
        }
