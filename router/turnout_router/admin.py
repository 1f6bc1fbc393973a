"""The second port: health, /metrics, /admin/fleet, /admin/peers, /admin/decisions. `admin_access` guards the last three."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final, Protocol

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from turnout_router.decisions import MAX_DECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from turnout_router.admin_access import AdminAccess
    from turnout_router.backends import Backends
    from turnout_router.decisions import Decisions
    from turnout_router.metrics import Metrics
    from turnout_router.peers.mesh import Mesh


_RECENT: Final = 50
"""Decisions that are listed where nobody says how many."""
_UNAUTHORIZED: Final = 401


class Readiness(Protocol):
    """Says whether clients may be sent here."""

    @property
    def not_ready_because(self) -> str:
        """Why not, in words; empty where they may."""


class AdminServer:
    """Serves the admin application on the loop that everything else runs on."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # who asks is who is connected: X-Forwarded-For is anybody's to write
            ws="none",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            limit_concurrency=256,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port. Raise OSError where it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=128)
        self._socket.setblocking(False)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="admin")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.005)
        return int(self._socket.getsockname()[1])

    async def stop(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        if self._socket is not None:
            self._socket.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the composition root."""
        yield


def admin_app(
    readiness: Readiness,
    metrics: Metrics,
    backends: Backends,
    decisions: Decisions,
    *,
    access: AdminAccess,
    mesh: Mesh | None = None,
) -> ASGIApp:
    """Return the application behind the admin port. *access* says who may read more than health and metrics."""

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        reason = readiness.not_ready_because
        return PlainTextResponse(f"{reason or 'ok'}\n", status_code=503 if reason else 200)

    async def metrics_page(_: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def fleet(_: Request) -> Response:
        return JSONResponse(backends.describe())

    async def peers(_: Request) -> Response:
        return JSONResponse(None if mesh is None else mesh.describe())

    async def recent(request: Request) -> Response:
        asked = request.query_params
        most = asked.get("limit", str(_RECENT))
        if not most.isdigit() or not 1 <= int(most) <= MAX_DECISIONS:
            return JSONResponse({"error": f"limit must be 1 to {MAX_DECISIONS}"}, status_code=400)
        return JSONResponse({"decisions": decisions.recent(int(most), asked.get("deployment"))})

    async def decision(request: Request) -> Response:
        found = decisions.find(request.path_params["id"])
        if found is None:
            return JSONResponse({"error": f"not among the last {len(decisions)} requests"}, status_code=404)
        return JSONResponse(found)

    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics_page),
            Route("/admin/fleet", fleet),
            Route("/admin/peers", peers),
            Route("/admin/decisions", recent),
            Route("/admin/decisions/{id}", decision),
        ]
    )
    return _Guard(app, access)


class _Guard:
    """Answers who may not ask, before the application learns of the request."""

    def __init__(self, app: Starlette, access: AdminAccess) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the admin port speaks HTTP, not {scope['type']}")
        headers, client = Headers(scope=scope), scope["client"]
        denied = self._access.denied(
            scope["path"], client and client[0], headers.getlist("authorization"), headers.get("host")
        )
        if denied is None:
            await self._app(scope, receive, send)
            return
        asked = {"www-authenticate": "Bearer"} if denied.status == _UNAUTHORIZED else {}
        refusal = PlainTextResponse(denied.text, status_code=denied.status, headers=asked)
        await refusal(scope, receive, send)
