"""The second port: health, /metrics, /admin/fleet, /admin/peers, /admin/decisions. Only for the inside of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Final, Protocol

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from turnout_router.decisions import MAX_DECISIONS
from turnout_router.tasks import ADMIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

    from turnout_router.backends import Backends
    from turnout_router.decisions import Decisions
    from turnout_router.metrics import Metrics
    from turnout_router.peers.mesh import Mesh
    from turnout_runtime.supervision import Supervisor


_START_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 5.0
"""For answers under way; uvicorn itself gives them two seconds."""
_RECENT: Final = 50
"""Decisions that are listed where nobody says how many."""


class Readiness(Protocol):
    """Says whether clients may be sent here."""

    @property
    def not_ready_because(self) -> str:
        """Why not, in words; empty where they may."""


class AdminServer:
    """Serves the admin application on the loop that everything else runs on; begun anew where serving fails."""

    def __init__(self, app: Starlette, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            limit_concurrency=256,
        )
        self._server = _Server(self._config)
        self._task: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._stopping = False

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port. Raise OSError where it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = listening = socket.create_server((host, port), family=family, backlog=128)
        listening.setblocking(False)
        self._task = self._supervisor.run(ADMIN, lambda: self._serve(listening))
        with contextlib.suppress(
            TimeoutError
        ):  # where serving fails it is begun anew, and the public port need not wait
            async with asyncio.timeout(_START_SECONDS):
                while not self._server.started:  # noqa: ASYNC110 - uvicorn offers no event
                    await asyncio.sleep(0.005)
        return int(listening.getsockname()[1])

    async def _serve(self, listening: socket.socket) -> None:
        """Serve until stopped: on a copy of the socket, for uvicorn closes what it is given."""
        self._server = server = _Server(self._config)
        copy = listening.dup()
        try:
            await server.serve(sockets=[copy])
        finally:
            for each in getattr(server, "servers", ()):
                each.close()
            copy.close()
        if not self._stopping:
            raise RuntimeError("the admin server ended by itself")

    async def stop(self) -> None:
        """Stop serving."""
        self._stopping = True
        self._server.should_exit = True
        if self._task is not None:
            if not self._server.started:
                self._task.cancel()
            await asyncio.wait({self._task}, timeout=_STOP_SECONDS)
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
    mesh: Mesh | None = None,
) -> Starlette:
    """Return the application behind the admin port."""

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        reason = readiness.not_ready_because
        return PlainTextResponse(f"{reason or 'ok'}\n", status_code=503 if reason else 200)

    async def metrics_page(_: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def fleet(request: Request) -> Response:
        return _refusal(request) or JSONResponse(backends.describe())

    async def peers(request: Request) -> Response:
        return _refusal(request) or JSONResponse(None if mesh is None else mesh.describe())

    async def recent(request: Request) -> Response:
        asked = request.query_params
        most = asked.get("limit", str(_RECENT))
        if not most.isdigit() or not 1 <= int(most) <= MAX_DECISIONS:
            return JSONResponse({"error": f"limit must be 1 to {MAX_DECISIONS}"}, status_code=400)
        return _refusal(request) or JSONResponse(
            {"decisions": decisions.recent(int(most), asked.get("deployment"))}
        )

    async def decision(request: Request) -> Response:
        found = decisions.find(request.path_params["id"])
        return _refusal(request) or (
            JSONResponse({"error": f"not among the last {len(decisions)} requests"}, status_code=404)
            if found is None
            else JSONResponse(found)
        )

    return Starlette(
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


def _refusal(request: Request) -> Response | None:
    """Return what somebody from outside is answered, None for others."""
    if request.client is None or not _is_near(request.client.host):
        return PlainTextResponse("only from inside the cluster\n", status_code=403)
    return None


def _is_near(host: str) -> bool:
    """Say whether *host* is of the machine or of a private network, such as pods have."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private
