"""The API's endpoints: who asks, for what, and who serves it. Everything that is not listed here does not exist.

Paths are compared as they were sent, never decoded or normalised: no spelling of a path leads to a worker's own
endpoints.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import time
import uuid
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import orjson

from turnout.routing import resolve
from turnout.routing.admission import NORMAL
from turnout_router.admission import tier_of
from turnout_router.decisions import Decisions
from turnout_router.endpoints import ENDPOINTS, dialect_of
from turnout_router.errors import (
    ApiError,
    key_missing,
    key_wrong,
    method_not_allowed,
    model_not_found,
    unavailable,
    url_not_found,
)
from turnout_router.exchange import Exchange, Identity
from turnout_router.http import JSON, Request
from turnout_router.metrics import NO_DEPLOYMENT, Metrics
from turnout_router.openai import capped, parse
from turnout_router.reader import require_body

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from turnout.routing import Grant, Served
    from turnout_router.backends import Backends
    from turnout_router.connection import ClientConnection
    from turnout_router.endpoints import Endpoint
    from turnout_router.settings import Settings

_MODELS: Final = b"/v1/models"
_POST: Final = b"POST, OPTIONS"
_GET: Final = b"GET, HEAD, OPTIONS"
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TRACE_FIELDS: Final = (b"traceparent", b"tracestate")


class Gateway:
    """Answers clients' requests; the handler of the public port."""

    def __init__(
        self, settings: Settings, backends: Backends, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._backends = backends
        self._metrics = metrics
        self._clock = clock
        self._draws = random.Random()  # noqa: S311 - shares out requests by weight, guards nothing
        self._prefix = uuid.uuid4().hex[:16].encode()
        self._count = itertools.count(1)
        self.decisions = Decisions(clock, time.time)
        self.ready = False
        """Whether a fleet has been seen."""

    def handle(self, request: Request, client: ClientConnection) -> Coroutine[Any, Any, None] | None:
        """Answer at once, or return the coroutine that will."""
        identity = self._identify(request)
        try:
            return self._route(request, client, identity)
        except ApiError as error:
            self._metrics.of(NO_DEPLOYMENT).answered(error.status)
            if error.close:
                raise
            dialect = dialect_of(request.path)
            fields = (JSON, *error.headers, *dialect.id_fields(identity.shown))
            client.respond(error.status, fields, dialect.body(error))
            return None

    def refused(self, status: int) -> None:
        """Count a request that was refused before it was complete."""
        self._metrics.of(NO_DEPLOYMENT).answered(status)

    def _route(
        self, request: Request, client: ClientConnection, identity: Identity
    ) -> Coroutine[Any, Any, None] | None:
        path, method = request.path, request.method
        endpoint = ENDPOINTS.get(path)
        if endpoint is not None:
            if method == "POST":
                return self._complete(endpoint, request, client, identity)
            allowed = _POST
        elif path == _MODELS or path.startswith(_MODELS + b"/"):
            if method in {"GET", "HEAD"}:
                body = self._models(path, self._authenticate(request))
                client.respond(200, (JSON, (b"x-request-id", identity.shown)), body)
                return None
            allowed = _GET
        else:
            raise url_not_found(method, path.decode("latin-1"))
        if method == "OPTIONS":
            client.respond(204, ((b"allow", allowed),), b"")
            return None
        raise method_not_allowed(method, path.decode("latin-1"), allowed)

    def _complete(
        self, endpoint: Endpoint, request: Request, client: ClientConnection, identity: Identity
    ) -> Coroutine[Any, Any, None]:
        grant = self._authenticate(request, endpoint.key_field)
        require_body(request)
        completion = parse(endpoint, request.body)
        if not self.ready:
            raise unavailable("The router does not know its workers yet.")
        fleet = self._backends.fleet
        if grant is not None and not grant.allows(completion.model):
            raise model_not_found(completion.model)
        key = resolve(fleet, completion.model, self._draws.random())
        if key is None:
            if completion.model in fleet.names:
                raise unavailable(f"No deployment that `{completion.model}` leads to exists now.")
            raise model_not_found(completion.model)
        route = fleet.deployments[key]
        return Exchange(
            client=client,
            request=capped(completion, route.max_output_tokens),
            route=route,
            identity=identity,
            backends=self._backends,
            decisions=self.decisions,
            metrics=self._metrics.of(key),
            limits=self._settings.upstream,
            tier=tier_of(NORMAL if grant is None else grant.tier, request.field(b"x-turnout-priority")),
            clock=self._clock,
        ).run()

    def _authenticate(self, request: Request, key_field: bytes | None = None) -> Grant | None:
        """Return what the client's key grants, None for a client that needs none. Raise ApiError (401) otherwise.

        The key is a bearer token, or stands in *key_field* where there is no `Authorization`. Keys are looked up
        by their SHA-256: how long that takes says nothing about any key.
        """
        grants = self._backends.fleet.grants
        required = self._settings.auth == "required"
        if not grants and not required:
            return None  # no key is known, so none can be wrong: clients that must send one may send any
        value = request.field(b"authorization")
        if value is None and key_field is not None and (key := request.field(key_field)) is not None:
            value = b"Bearer " + key
        if value is None:
            if required:
                raise key_missing()
            return None
        scheme, _, key = value.partition(b" ")
        grant = grants.get(hashlib.sha256(key.strip()).hexdigest()) if scheme.lower() == b"bearer" else None
        if grant is None:
            raise key_wrong()
        return grant

    def _models(self, path: bytes, grant: Grant | None) -> bytes:
        fleet = self._backends.fleet
        if path == _MODELS:
            data = [
                _describe(name, served)
                for name, served in sorted(fleet.names.items())
                if served.listed and (grant is None or grant.allows(name))
            ]
            return orjson.dumps({"object": "list", "data": data})
        name = unquote(path[len(_MODELS) + 1 :].decode("latin-1"))
        found = fleet.names.get(name)
        if found is None or (grant is not None and not grant.allows(name)):
            raise model_not_found(name[:256])
        return orjson.dumps(_describe(name, found))

    def _identify(self, request: Request) -> Identity:
        own = b"%b-%x" % (self._prefix, next(self._count))
        given, explain = None, False
        trace = []
        for field in request.fields:
            if field[0] == b"x-request-id":
                given = field[1]
            elif field[0] in _TRACE_FIELDS:
                trace.append(field)
            elif field[0] == b"x-turnout-explain":
                explain = field[1] == b"1"
        if given is None or not _REQUEST_ID.fullmatch(given):
            return Identity(own, own, tuple(trace), explain)
        return Identity(given, b"%b-%b" % (given, own), tuple(trace), explain)


def _describe(name: str, served: Served) -> dict[str, object]:
    return {"id": name, "object": "model", "created": int(served.created), "owned_by": "turnout"}
