"""The API's endpoints: from a client's request to the deployment that serves it. Every other path is answered with 404.

Paths are compared as they were sent, never decoded or normalized: no spelling of a path leads to a worker's own
endpoints.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final

from turnout.routing import resolve
from turnout.routing.admission import NORMAL
from turnout_router.api.dialects import ANTHROPIC
from turnout_router.api.directives import NOTHING, read_directives
from turnout_router.api.endpoints import ENDPOINTS, MESSAGE, MODELS, dialect_of
from turnout_router.api.identity import Names
from turnout_router.api.large import LargeRequests
from turnout_router.api.openai import capped, parse
from turnout_router.api.untrusted import UNCOUNTED_BYTES
from turnout_router.errors import (
    ApiError,
    key_missing,
    key_wrong,
    method_not_allowed,
    model_not_found,
    not_json,
    unavailable,
    url_not_found,
)
from turnout_router.fleet.admission import tier_of
from turnout_router.fleet.models import models_body
from turnout_router.http1.framing import is_json
from turnout_router.http1.http import JSON, Request
from turnout_router.http1.reader import require_body
from turnout_router.http1.response import Caller
from turnout_router.metrics import NO_DEPLOYMENT, Metrics
from turnout_router.request.deadline import within
from turnout_router.request.decisions import Decisions
from turnout_router.request.recording import ClientRecorder
from turnout_router.request.served import ServedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from turnout.routing import Grant
    from turnout_router.api.endpoints import Endpoint
    from turnout_router.api.identity import RequestIdentity
    from turnout_router.api.openai import Completion
    from turnout_router.fleet.backends import Backends
    from turnout_router.http1.http import Fields
    from turnout_router.http1.response import Response
    from turnout_router.settings import Settings

_POST: Final = b"POST, OPTIONS"
_GET: Final = b"GET, HEAD, OPTIONS"
_JSON_TYPE: Final = b"application/json"
_HEALTH: Final = frozenset({b"/health", b"/ping"})
"""Whether this router can serve, without a body and without a key, as vLLM says it."""


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
        self._names = Names()
        self.decisions = Decisions(clock, time.time)
        self._recorder = ClientRecorder(self.decisions)
        self._large = LargeRequests()
        self.ready = False
        """Whether a fleet has been seen."""
        self.leaving = False
        """Whether it is shutting down: what is under way is finished, and clients should go elsewhere."""

    def handle(self, request: Request, response: Response) -> Coroutine[Any, Any, object] | None:
        """Answer at once, or return the coroutine that will."""
        identity = self._names.of(request)
        try:
            if request.refusal is not None:
                raise request.refusal
            return self._route(request, response, identity)
        except ApiError as error:
            self._refuse(error, request, response, identity)
            return None

    def _refuse(
        self, error: ApiError, request: Request, response: Response, identity: RequestIdentity
    ) -> None:
        """Answer with *error*. Raise it where the connection has to be closed after it."""
        self._metrics.of(NO_DEPLOYMENT).answered(error.status)
        if error.close:
            raise error
        dialect = dialect_of(request.path, request.fields)
        fields = (JSON, *error.headers, *dialect.id_fields(identity.shown))
        response.respond(error.status, fields, dialect.body(error))

    def check_head(self, request: Request, response: Response) -> ApiError | None:
        """Return why *request*, whose body has not come yet, will not be served: by its path, method, key or type."""
        path, method = request.path, request.method
        endpoint = ENDPOINTS.get(path)
        try:
            if endpoint is not None and method == "POST":
                self._enter(endpoint, request, response)
            else:
                self._allowed(path, method)
                if method != "OPTIONS" and path not in _HEALTH:
                    self._authenticate(request, response, self._key_field(request))
        except ApiError as error:
            return error
        return None

    def refused(self, status: int) -> None:
        """Count a request that was refused before it was complete."""
        self._metrics.of(NO_DEPLOYMENT).answered(status)

    def error_body(self, error: ApiError, target: bytes, fields: Fields) -> bytes:
        """Return *error* as the clients of the API under *target* read it."""
        return dialect_of(target.partition(b"?")[0], fields).body(error)

    def _route(
        self, request: Request, response: Response, identity: RequestIdentity
    ) -> Coroutine[Any, Any, object] | None:
        path, method = request.path, request.method
        endpoint = ENDPOINTS.get(path)
        if endpoint is not None and method == "POST":
            return self._complete(endpoint, request, response, identity)
        allowed = self._allowed(path, method)
        if method == "OPTIONS":
            response.respond(204, ((b"allow", allowed),), b"")
            return None
        if path in _HEALTH:
            response.respond(200 if self.ready and not self.leaving else 503, (), b"")
            return None
        dialect = dialect_of(path, request.fields)
        grant = self._authenticate(request, response, self._key_field(request))
        fleet, facts = self._backends.fleet, self._backends.facts
        body = models_body(fleet, facts, grant, request.target, anthropic=dialect is ANTHROPIC)
        response.respond(200, (JSON, *dialect.id_fields(identity.shown)), body)
        return None

    def _allowed(self, path: bytes, method: str) -> bytes:
        """Return the methods that *path* knows. Raise ApiError where it does not exist (404) or *method* is none of them (405)."""
        if path in ENDPOINTS:
            allowed, known = _POST, method in {"POST", "OPTIONS"}
        elif path in _HEALTH or path == MODELS or path.startswith(MODELS + b"/"):
            allowed, known = _GET, method in {"GET", "HEAD", "OPTIONS"}
        else:
            raise url_not_found(method, path.decode("latin-1"))
        if not known:
            raise method_not_allowed(method, path.decode("latin-1"), allowed)
        return allowed

    def _key_field(self, request: Request) -> bytes | None:
        """Return where beside `Authorization` a client that lists models may send its key."""
        return MESSAGE.key_field if dialect_of(request.path, request.fields) is ANTHROPIC else None

    def _enter(self, endpoint: Endpoint, request: Request, response: Response) -> Grant | None:
        """Return what the client's key grants. Raise ApiError where the head alone says that it is not served."""
        grant = self._authenticate(request, response, endpoint.key_field)
        kind = request.content_type
        if kind is not None and kind != _JSON_TYPE and not is_json(kind):
            raise not_json()
        return grant

    def _complete(
        self, endpoint: Endpoint, request: Request, response: Response, identity: RequestIdentity
    ) -> Coroutine[Any, Any, object]:
        grant = self._enter(endpoint, request, response)
        require_body(request)
        if len(request.body) > UNCOUNTED_BYTES:
            return self._complete_large(endpoint, request, response, identity, grant)
        return self._serve(parse(endpoint, request.body), response, identity, grant)

    async def _complete_large(
        self,
        endpoint: Endpoint,
        request: Request,
        response: Response,
        identity: RequestIdentity,
        grant: Grant | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            directives = read_directives(identity.directives) if identity.directives else NOTHING
            completion = await self._large.read(endpoint, request, response, directives.seconds)
            serving = self._serve(completion, response, identity, grant, loop.time() - began)
        except ApiError as error:
            self._refuse(error, request, response, identity)
            return
        await serving

    def _serve(
        self,
        completion: Completion,
        response: Response,
        identity: RequestIdentity,
        grant: Grant | None,
        spent_seconds: float = 0.0,
    ) -> Coroutine[Any, Any, object]:
        """Return the coroutine that serves *completion*, of whose time *spent_seconds* are over. Raise ApiError where it cannot begin."""
        if not self.ready:
            raise unavailable("The router does not know its workers yet.")
        fleet = self._backends.fleet
        served = fleet.names.get(completion.model)
        if served is None:
            raise model_not_found(completion.model)
        if grant is not None and not grant.allows(completion.model, served.namespace):
            raise key_wrong() if grant is fleet.unknown else model_not_found(completion.model)
        key = resolve(fleet, completion.model, self._draws.random())
        deployment = None if key is None else self._backends.of(key)
        if deployment is None:
            raise unavailable(f"No deployment that `{completion.model}` leads to exists now.")
        directives = read_directives(identity.directives) if identity.directives else NOTHING
        if directives.explain and self._may_explain(grant):
            identity.explain = True
        request = ServedRequest(
            sink=response,
            completion=capped(completion, deployment.route.max_output_tokens),
            deployment=deployment,
            identity=identity,
            recorder=self._recorder,
            limits=self._settings.upstream,
            tier=tier_of(NORMAL if grant is None else grant.tier, directives.priority),
            clock=self._clock,
        )
        if directives.seconds is None:
            return request.run()
        return within(max(0.0, directives.seconds - spent_seconds), request, response)

    def _may_explain(self, grant: Grant | None) -> bool:
        """Return whether the holder of *grant* may learn of workers and their load."""
        if self._settings.explain == "keys":
            return self._settings.auth == "open" or (grant is not None and grant.explain)
        return self._settings.explain == "all"

    def _authenticate(
        self, request: Request, response: Response, key_field: bytes | None = None
    ) -> Grant | None:
        """Return what the client's key grants, None for a client that needs none. Raise ApiError (401) otherwise.

        Where no key is required, one that is not known opens the names of namespaces that have no keys.

        The key is a bearer token, or stands in *key_field* where there is no `Authorization`. Keys are looked up
        by their SHA-256: how long that takes says nothing about any key. The next request of a connection that sends
        the same one needs no look-up, as long as the keys are the same.
        """
        fleet = self._backends.fleet
        grants = fleet.grants
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
        before = response.caller
        if before is not None and before.known is grants and compare_digest(before.credential, value):
            return before.grants
        scheme, _, key = value.partition(b" ")
        grant = grants.get(hashlib.sha256(key.strip()).hexdigest()) if scheme.lower() == b"bearer" else None
        if grant is None and not required:
            grant = fleet.unknown
        if grant is None:
            raise key_wrong()
        response.identify(Caller(value, grants, grant))
        return grant
