"""The operator's own port: /healthz, /readyz, /metrics, and /decisions, which says why it did (not) scale.

Decisions name deployments of every namespace: they are shown to loopback peers alone, as `kubectl port-forward` makes.
"""

from __future__ import annotations

import ipaddress
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from turnout_operator.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from turnout_operator.metrics import Metrics


@asynccontextmanager
async def serving(
    host: str,
    port: int,
    metrics: Metrics,
    *,
    not_ready: Callable[[], str],
    decisions: Callable[[], Mapping[str, str]],
) -> AsyncIterator[None]:
    """Serve the admin port while the context lasts.

    *not_ready* returns why this operator is not ready, or ``""``; *decisions* the last scaling decision's sentence by
    deployment.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = not_ready()
        return web.Response(status=503 if reason else 200, text=(reason or "ok") + "\n")

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

    app = web.Application()
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
    try:
        try:
            await web.TCPSite(runner, host or None, port).start()
        except OSError as error:
            raise ConfigurationError(
                f"the admin port cannot listen on {host or '*'}:{port}: {error.strerror or error}; choose another --admin-port"
            ) from error
        yield
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
