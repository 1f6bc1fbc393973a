"""The second port: health, /metrics, /admin/fleet, /admin/peers, /admin/decisions. `admin_access` guards the last three.

It is served as the public one is, with the same bounds on what clients can send and hold, in sizes of its own: however
many connections there are, a new one finds room, and its requests are answered at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qsl, unquote

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from turnout_router.errors import ApiError
from turnout_router.http1.http import JSON
from turnout_router.http1.listener import Listener
from turnout_router.request.decisions import MAX_DECISIONS
from turnout_router.settings import ClientLimits
from turnout_router.tasks import ADMIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.admin_access import AdminAccess
    from turnout_router.fleet.backends import Backends
    from turnout_router.fleet.peers.mesh import Mesh
    from turnout_router.http1.http import Fields, Request
    from turnout_router.http1.response import Response
    from turnout_router.metrics import Metrics
    from turnout_router.request.decisions import Decisions
    from turnout_router.tasks import Note


_RECENT: Final = 50
"""Decisions that are listed by default."""
_MOST_PARAMETERS: Final = 8
_STOP_SECONDS: Final = 2.0
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_PAGE: Final = (b"content-type", CONTENT_TYPE_LATEST.encode())
_METHODS: Final = {"GET", "HEAD"}
_UNAUTHORIZED: Final = 401
_BEARER: Final = (b"www-authenticate", b"Bearer")
_ALLOW: Final = (b"allow", b"GET, HEAD")

LIMITS: Final = ClientLimits(
    head_bytes=16 * 1024,
    target_bytes=4 * 1024,
    header_fields=64,
    body_bytes=4 * 1024,
    body_seconds=10.0,
    bodies_bytes=32 * 1024 * 1024,
    small_body_bytes=4 * 1024,
    stall_seconds=15.0,
    connections=256,
)
"""Limits of this port's clients. No request needs a body, and a page of metrics is read within seconds."""


class Readiness(Protocol):
    """Says whether clients may be sent here."""

    @property
    def not_ready_because(self) -> str:
        """Why not, in words; empty where they may."""


class AdminServer:
    """Serves the admin port on the loop that everything else runs on."""

    def __init__(self, app: AdminApp, note: Note, limits: ClientLimits = LIMITS) -> None:
        self._listener = Listener(app, limits, lambda _, error: note(ADMIN, error))

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port. Raise OSError where it is taken."""
        return await self._listener.start(host, port)

    async def stop(self) -> None:
        """Stop serving."""
        await self._listener.stop(_STOP_SECONDS)


class AdminApp:
    """Answers the admin port's requests, each at once; the handler of its `Listener`."""

    def __init__(
        self,
        readiness: Readiness,
        metrics: Metrics,
        backends: Backends,
        decisions: Decisions,
        *,
        access: AdminAccess,
        mesh: Mesh | None = None,
    ) -> None:
        self._access = access
        self._readiness = readiness
        self._metrics = metrics
        self._backends = backends
        self._decisions = decisions
        self._mesh = mesh
        self._pages: dict[bytes, Callable[[Request, Response], None]] = {
            b"/healthz": self._healthz,
            b"/readyz": self._readyz,
            b"/metrics": self._metrics_page,
            b"/admin/fleet": self._fleet,
            b"/admin/peers": self._peers,
            b"/admin/decisions": self._recent,
        }

    def handle(self, request: Request, response: Response) -> None:
        """Answer *request*. Raise ApiError if there is no such page."""
        error = request.refusal or self.check_head(request, response)
        if error is not None:
            raise error
        page = self._pages.get(request.path)
        if page is None:
            self._decision(request, response)
        else:
            page(request, response)

    def check_head(self, request: Request, response: Response) -> ApiError | None:
        """Return why *request* will not be served: by its path, its method, or where it comes from."""
        denied = self._denial(request, response)
        if denied is not None:
            return denied
        path = request.path
        if path not in self._pages and not path.startswith(_DECISION):
            return ApiError(404, "There is no such page.")
        if request.method not in _METHODS:
            return ApiError(405, "This page is only there to be read.", headers=(_ALLOW,))
        return None

    def _denial(self, request: Request, response: Response) -> ApiError | None:
        """Return what a client is answered that may not read this page, None where it may."""
        authorization = [
            value.decode("latin-1") for name, value in request.fields if name == b"authorization"
        ]
        host = request.field(b"host")
        denied = self._access.denied(
            request.path.decode("latin-1"),
            response.peer,
            authorization,
            None if host is None else host.decode("latin-1"),
        )
        if denied is None:
            return None
        asked = (_BEARER,) if denied.status == _UNAUTHORIZED else ()
        return ApiError(denied.status, denied.text, headers=asked)

    def refused(self, status: int) -> None:
        """Do not count what the public port's figures are not about."""

    def error_body(self, error: ApiError, target: bytes, fields: Fields) -> bytes:  # noqa: ARG002 - a Handler is given them
        """Return *error* as JSON."""
        return orjson.dumps({"error": str(error)})

    def _healthz(self, _: Request, response: Response) -> None:
        response.respond(200, (_TEXT,), b"ok\n")

    def _readyz(self, _: Request, response: Response) -> None:
        reason = self._readiness.not_ready_because
        response.respond(503 if reason else 200, (_TEXT,), f"{reason or 'ok'}\n".encode())

    def _metrics_page(self, _: Request, response: Response) -> None:
        response.respond(200, (_PAGE,), generate_latest(self._metrics.registry))

    def _fleet(self, _: Request, response: Response) -> None:
        _answer(response, self._backends.describe())

    def _peers(self, _: Request, response: Response) -> None:
        _answer(response, None if self._mesh is None else self._mesh.describe())

    def _recent(self, request: Request, response: Response) -> None:
        asked = _parameters(request.target)
        most = asked.get("limit", str(_RECENT))
        # int() is only asked about what is short and ASCII: it knows other scripts' digits, and fails on thousands.
        number = (
            int(most) if most.isascii() and most.isdigit() and len(most) <= len(str(MAX_DECISIONS)) else 0
        )
        if not 1 <= number <= MAX_DECISIONS:
            raise ApiError(400, f"limit must be 1 to {MAX_DECISIONS}")
        _answer(response, {"decisions": self._decisions.recent(number, asked.get("deployment"))})

    def _decision(self, request: Request, response: Response) -> None:
        try:
            name = unquote(request.path.removeprefix(_DECISION).decode("ascii"), errors="strict")
        except UnicodeDecodeError as error:
            raise ApiError(400, "the id of a request is text") from error
        found = self._decisions.find(name)
        if found is None:
            raise ApiError(404, f"not among the last {len(self._decisions)} requests")
        _answer(response, found)


_DECISION: Final = b"/admin/decisions/"


def admin_app(
    readiness: Readiness,
    metrics: Metrics,
    backends: Backends,
    decisions: Decisions,
    *,
    access: AdminAccess,
    mesh: Mesh | None = None,
) -> AdminApp:
    """Return what answers on the admin port. *access* says which clients may read more than health and metrics."""
    return AdminApp(readiness, metrics, backends, decisions, access=access, mesh=mesh)


def _answer(response: Response, value: Any) -> None:
    response.respond(200, (JSON,), orjson.dumps(value))


def _parameters(target: bytes) -> dict[str, str]:
    """Return the parameters of *target*'s query. Raise ApiError (400) where it is none, or has a duplicate parameter."""
    query = target.partition(b"?")[2]
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS
        )
    except ValueError as error:  # of which UnicodeDecodeError is one
        raise ApiError(400, "the query is not text, or has too many parameters") from error
    asked = dict(pairs)
    if len(asked) != len(pairs):
        raise ApiError(400, "the query says something twice")
    return asked
