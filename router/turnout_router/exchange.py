"""One request's life once it is known whom it is for: pick -> prefill -> decode -> pass on -> account.

Failures before the client has seen a byte are repaired: a prefill worker that fails is replaced by another one, then
by local prefill on the decode worker; a decode worker that fails is replaced together with a new prefill, for what
a prefill worker hands out can be used once. A decode worker that is full, or cannot be connected to, has not used it: the
next one takes it over. Retries are bounded per request and, over all, by the retry budget. After the first byte nothing is
repeated: the stream ends with an error event and a closed connection.

A 5xx, or an answer that breaks off before anything of it was sent, is not held against its worker before it is known how the
request fares elsewhere: where another worker does the same and none serves it, the request is at fault, and no worker is blamed. (vLLM breaks a stream of the Responses API
off where it should refuse the request.)
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from turnout_router.accounting import account
from turnout_router.decisions import Decision
from turnout_router.errors import (
    ApiError,
    Refusal,
    UpstreamError,
    deadline_passed,
    from_upstream,
    stream_broken,
    unavailable,
)
from turnout_router.http import JSON, post
from turnout_router.openai import decode_body, prefill_body
from turnout_router.prefill import Handed, check_before_prefill, handed_in
from turnout_router.relay import Collected, Relay, check_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing import Backend, Choice, DeploymentRoute
    from turnout.routing.admission import Tier
    from turnout.routing.pick import LocalReason
    from turnout_router.admission import Gate
    from turnout_router.backends import Backends
    from turnout_router.connection import ClientConnection
    from turnout_router.decisions import Decisions
    from turnout_router.hold import Hold
    from turnout_router.http import Fields
    from turnout_router.identity import Identity
    from turnout_router.metrics import DeploymentMetrics
    from turnout_router.openai import Completion
    from turnout_router.settings import UpstreamLimits
    from turnout_router.upstream import UpstreamConnection

_NOBODY: Final[frozenset[str]] = frozenset()
_CLIENT_LEFT: Final = 499
_BAD_GATEWAY: Final = 502
_UNAVAILABLE: Final = 503
_GATEWAY_TIMEOUT: Final = 504
_OK: Final = 200
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500


_DOUBTFUL: Final = frozenset({"status", "cut"})
"""Failures that may follow from the request: a worker that is gone or says nothing is weighed at once."""


class _Suspicion:
    """A worker's 5xx, or broken answer, that may be the request's own fault."""

    __slots__ = ("backend", "error")

    def __init__(self, backend: Backend, error: UpstreamError) -> None:
        self.backend: Final = backend
        self.error: Final = error

    def is_confirmed_by(self, other: _Suspicion) -> bool:
        """Say whether *other* is the same failure of another worker that does the same work."""
        mine, its = self.backend, other.backend
        return mine.id != its.id and mine.role == its.role and self.error.status == other.error.status


class Exchange:
    """Serves one completion. `run` always ends with an answer, unless the client has left."""

    __slots__ = (
        "_avoided",
        "_backends",
        "_began",
        "_client",
        "_clock",
        "_decision",
        "_decisions",
        "_excluded",
        "_failure",
        "_gate",
        "_handed",
        "_identity",
        "_limits",
        "_local",
        "_metrics",
        "_prefill_failed",
        "_prompt",
        "_request",
        "_retries",
        "_route",
        "_sequence",
        "_suspicions",
        "_tier",
        "_tokens",
        "expired",
    )

    def __init__(
        self,
        *,
        client: ClientConnection,
        request: Completion,
        route: DeploymentRoute,
        identity: Identity,
        backends: Backends,
        decisions: Decisions,
        metrics: DeploymentMetrics,
        limits: UpstreamLimits,
        tier: Tier,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._request = request
        self._route = route
        self._identity = identity
        self._backends = backends
        self._metrics = metrics
        self._limits = limits
        self._tier = tier
        self._tokens = request.prompt_tokens + request.expected_output_tokens
        self._gate: Gate | None = None
        self._prompt = backends.prompt_of(request, route)
        self._clock = clock
        self.expired = False
        self._began = clock()
        self._retries = 0
        self._excluded = _NOBODY
        self._avoided = _NOBODY
        self._local: LocalReason | None = request.local
        self._failure: UpstreamError | None = None
        self._prefill_failed = False
        self._handed: Handed | None = None
        self._suspicions: list[_Suspicion] = []
        self._sequence: Callable[[], int] | None = None
        """Gives the number of the next event, where the answer under way is a stream of events."""
        self._decisions = decisions
        self._decision = Decision(
            id=identity.shown.decode(),
            path=request.endpoint.path.decode(),
            model=request.model,
            deployment=route.key,
            stream=request.stream,
            prompt_tokens=request.prompt_tokens,
            expected_output_tokens=request.expected_output_tokens,
            began=self._began,
        )

    async def run(self) -> None:
        """Serve it, and account for how it ended."""
        metrics, serves = self._metrics, self._request.endpoint.serves
        if serves:
            metrics.arrivals += 1
        metrics.in_flight += 1
        self._backends.arrived(self._route.key)
        self._decisions.begin(self._decision)
        status = _BAD_GATEWAY
        try:
            await self._enter()
            exact = self._backends.exact
            if exact is not None and exact.compares(self._route.key):
                reading = exact.read(self._route, self._request, self._prompt)
                self._prompt = await asyncio.get_running_loop().create_task(reading)
            status = await self._serve()
        except ApiError as error:
            status = error.status
            self._tell(error)
        except asyncio.CancelledError:
            if self._client.gone:
                status = _CLIENT_LEFT
                raise
            if self.expired:
                status = _GATEWAY_TIMEOUT
                if self._gate is None:
                    metrics.turned_away("deadline")
                self._tell(deadline_passed())
            else:
                status = _UNAVAILABLE  # the router is going down and its grace period is over
                self._tell(unavailable("The router is shutting down."))
        finally:
            metrics.in_flight -= 1
            self._weigh_suspicions(served=status < _SERVER_ERROR and status != _CLIENT_LEFT)
            if self._gate is not None:
                self._gate.leave(self._tokens)
            metrics.answered(status)
            self._decision.status = status
            self._decision.ended_at = self._clock()
            if status >= _SERVER_ERROR and serves:
                metrics.finished += 1

    async def _enter(self) -> None:
        """Wait for room, where there is none. Raise ApiError where it does not come."""
        gate = self._backends.gates.of(self._route.key)
        if not gate.try_enter(self._tokens):
            self._metrics.waiting += 1
            try:
                await gate.enter(self._tokens, self._tier)
            except ApiError as error:
                self._metrics.turned_away(error.code or "")
                raise
            finally:
                self._metrics.waiting -= 1
        self._gate = gate

    async def _serve(self) -> int:
        while True:
            choice = self._pick()
            if self._backends.lines:
                choice = await self._stand_in_line(choice)
            self._decisions.chosen(self._decision, choice)
            hold = self._backends.hold(choice.decode, self._tokens, choice)
            try:
                status = await self._attempt(choice, hold)
            finally:
                hold.end()
            if status is not None:
                return status

    async def _stand_in_line(self, choice: Choice) -> Choice:
        """Return who serves it, once somebody could begin with it. Raise ApiError where that does not come."""
        key = self._route.key
        line = self._backends.lines.get(key)
        if line is None or not line.must_hold(choice):
            return choice
        began = self._clock()
        self._metrics.waiting += 1
        try:
            seconds = self._backends.gates.of(key).wait_seconds
            found = await line.wait(self._prompt, choice, self._choose, seconds)
        except ApiError as error:
            self._metrics.turned_away(error.code or "")
            raise
        finally:
            self._metrics.waiting -= 1
            self._decision.held_seconds += self._clock() - began
        if found is None:
            raise unavailable(f"No worker of {key} is ready.")
        return found

    async def _attempt(self, choice: Choice, hold: Hold) -> int | None:
        """Serve as *choice* says and return the status, or None where it failed and can be tried once more."""
        handed, self._handed = self._handed, None
        if handed is None and choice.prefill is not None:
            check_before_prefill(self._request, self._backends.context_of(self._route.key))
            try:
                handed = await self._prefill(choice.prefill, choice)
            except Refusal as refusal:
                self._backends.succeeded(choice.prefill)
                return self._refuse(choice.prefill, refusal)
            except UpstreamError as error:
                self._note_prefill_failure(choice.prefill, error)
                return None
        elif handed is None and choice.local_reason is not None:
            self._metrics.prefilled_locally(choice.local_reason)
        prefill = None if handed is None else handed.backend
        try:
            status = await self._decode(choice.decode, handed, hold)
        except Refusal as refusal:
            self._succeed(choice.decode)
            return self._refuse(choice.decode, refusal)
        except UpstreamError as error:
            self._note_decode_failure(choice, handed, error)
            return None
        self._succeed(choice.decode)
        if prefill is not None:
            self._succeed(prefill)
        return status

    def _refuse(self, backend: Backend, refusal: Refusal) -> int:
        """Pass on that *backend* refuses the request for its content: another worker would refuse it as well."""
        self._client.respond(refusal.status, (JSON, *self._own_fields(backend)), refusal.body)
        return refusal.status

    def _pick(self) -> Choice:
        """Return who serves next. Raise ApiError where nobody can."""
        if self._handed is not None:
            choice = self._choose_heir(self._handed)
            if choice is not None:
                return choice
            self._handed = None
        choice = self._choose()
        if (
            choice is not None
            and choice.prefill is not None
            and self._prefill_failed
            and not self._take_retry()
        ):
            self._local = "prefill_failed"
            choice = self._choose()
        if choice is None:
            if self._failure is not None:
                raise from_upstream(self._failure)
            raise unavailable(f"No worker of {self._route.key} is ready.")
        if choice.local_reason == "no_prefill" and self._prefill_failed:
            self._local = "prefill_failed"
            choice = self._choose() or choice
        return choice

    def _choose(self, local: LocalReason | None = None) -> Choice | None:
        return self._backends.pick(
            self._route,
            self._prompt,
            excluded=self._excluded,
            avoided=self._avoided,
            local=local or self._local,
        )

    def _choose_heir(self, handed: Handed) -> Choice | None:
        """Return who takes over a cache that no decode worker has used yet, None where none can, or not in time."""
        if not handed.lasts(self._clock()):
            return None
        choice = self._choose("handed_over")
        if (
            choice is None
            or choice.decode.role != "decode"
            or choice.decode.revision != handed.backend.revision
        ):
            return None
        return choice

    def _take_retry(self, *, overloaded: bool = False) -> bool:
        if self._retries >= self._limits.retries or not self._backends.take_retry(
            self._route.key, overloaded=overloaded
        ):
            return False
        self._retries += 1
        if self._failure is not None:
            self._metrics.retried(self._failure.fault)
        return True

    async def _prefill(self, backend: Backend, choice: Choice) -> Handed:
        """Return what *backend* hands out. Raise Refusal where it refuses the request (4xx), UpstreamError where it fails."""
        request = self._request
        answer = Collected(self._limits.prefill_answer_bytes + request.size_bytes)
        hold = self._backends.hold(backend, request.prompt_tokens, choice)
        try:
            pool = self._backends.pools.of((backend.host, backend.port))
            await pool.exchange(
                self._post(pool.host, prefill_body(request, backend)),
                answer,
                seconds=self._backends.patience(backend, self._limits.prefill_seconds),
                idle_seconds=None,
                what="the prefill",
            )
            usage = request.endpoint.usage_of(answer.body)
            hold.found(usage.cached, usage.prompt)
        finally:
            hold.end()
        check_status(answer.status, "the prefill worker")
        if answer.status >= _CLIENT_ERROR:
            body = request.endpoint.dialect.error_of(answer.status, answer.body)
            raise Refusal("the prefill worker refused the request", answer.status, body)
        handed = handed_in(answer.body, backend, self._clock())
        self._decision.prefilled_at = self._clock()
        return handed

    async def _decode(self, backend: Backend, handed: Handed | None, hold: Hold) -> int:
        """Have *backend* answer the client, and return the status that it saw."""
        request = self._request
        tap = None
        seconds = self._limits.answer_seconds
        if request.stream:
            seconds = self._backends.patience(backend, self._limits.first_byte_seconds)
            tap = request.endpoint.tap(
                drop_usage=not request.wants_usage, max_event_bytes=self._limits.event_bytes
            )
        else:
            hold.expect_first_token()
        relay = Relay(
            self._client,
            self._limits,
            tap,
            self._own_fields(backend),
            self._clock,
            endpoint=request.endpoint,
            several=request.local == "request_form",
            on_first=partial(self._note_first_token, hold) if self._suspicions else hold.first_token,
        )
        pool = self._backends.pools.of((backend.host, backend.port))
        body = decode_body(request, backend, None if handed is None else handed.params)
        try:
            await pool.exchange(
                self._post(pool.host, body),
                relay,
                seconds=seconds,
                idle_seconds=self._limits.stream_idle_seconds if request.stream else None,
                what="the answer",
                repeatable=handed is None,
                on_start=self._hold_back,
            )
        except UpstreamError as error:
            if error.fault == "reset" and relay.status and not self._client.started:
                raise UpstreamError("cut", "its answer broke off", relay.status) from error
            if not relay.whole:
                raise
            # The client has all of the answer. What the worker did after its last event changes nothing.
        finally:
            self._sequence = tap.event_sequence if tap is not None and relay.streaming else None
        self._client.source = None
        body = relay.finish()
        if request.endpoint.serves:
            usage = request.endpoint.usage_of(body) if tap is None else tap.usage
            account(self._metrics, self._decision, self._route, self._clock(), tap, usage)
            if handed is None:
                # What was moved there counts as cached, too: nothing would be learnt of its own cache.
                hold.found(usage.cached, usage.prompt)
        return relay.status

    def _hold_back(self, connection: UpstreamConnection) -> None:
        self._client.source = connection

    def _note_prefill_failure(self, backend: Backend, error: UpstreamError) -> None:
        self._failure = error
        self._decision.failed(self._clock(), "prefill", backend, error)
        self._prefill_failed = True
        self._blame(backend, error)
        self._excluded |= {backend.id}

    def _note_decode_failure(self, choice: Choice, handed: Handed | None, error: UpstreamError) -> None:
        """Learn from the failure. Raise ApiError where it is the last one."""
        self._failure = error
        decode = choice.decode
        self._decision.failed(self._clock(), "decode", decode, error)
        on_trial = self._backends.on_trial(decode)
        if self._client.started:
            self._backends.failed(decode, error)
            raise stream_broken(str(error)) from error
        if error.fault in {"connect", "overloaded"}:
            # It has not begun, so a cache that was handed out is still there for another one.
            self._backends.failed(decode, error)
            self._excluded |= {decode.id}
            self._handed = handed
            if self._choose() is None:
                raise from_upstream(error) from error
        elif handed is not None and error.fault == "status":
            # Likely the cache could not be fetched: the prefill worker is as suspect as this one. Both are blamed,
            # and whoever is innocent proves it with the next partner. For this request the former is not used
            # again, the latter only where there is no other. A cache that was handed over once more may have been
            # given back meanwhile, which is the fault of neither.
            if not handed.taken_over:
                self._blame(handed.backend, error)
                self._blame(decode, error)
            self._excluded |= {handed.backend.id}
            self._avoided |= {decode.id}
        elif error.fault != "stale":
            self._blame(decode, error)
            self._avoided |= {decode.id}
        if (error.fault == "timeout" and not on_trial) or not self._take_retry(
            overloaded=error.fault == "overloaded"
        ):
            raise from_upstream(error) from error
        if self._handed is not None:
            self._handed.taken_over = True

    def _succeed(self, backend: Backend) -> None:
        """Note an answer of *backend*, which takes back what this request has held against it."""
        if self._suspicions:
            for one in [one for one in self._suspicions if one.backend.id == backend.id]:
                self._backends.cleared(backend)
                self._suspicions.remove(one)
        self._backends.succeeded(backend)

    def _blame(self, backend: Backend, error: UpstreamError) -> None:
        """Hold *error* against *backend*: at once, or, of `_DOUBTFUL` ones, once it is known how the request fares elsewhere."""
        if error.fault in _DOUBTFUL and self._backends.suspect(backend):
            self._suspicions.append(_Suspicion(backend, error))
        else:
            self._backends.failed(backend, error)

    def _weigh_suspicions(self, *, served: bool) -> None:
        """Hold failures against workers, but for those that follow the request, where it was served nowhere."""
        if not self._suspicions:
            return
        suspicions, self._suspicions = self._suspicions, []
        for one in suspicions:
            self._backends.cleared(one.backend)
            if served or not any(one.is_confirmed_by(other) for other in suspicions):
                self._backends.failed(one.backend, one.error)

    def _note_first_token(self, hold: Hold) -> None:
        """Note that the worker of *hold* computes what others have failed on."""
        hold.first_token()
        self._weigh_suspicions(served=True)

    def _tell(self, error: ApiError) -> None:
        """Tell the client, in whatever form is still possible."""
        if self._client.gone:
            return
        dialect = self._request.endpoint.dialect
        if self._client.started:
            # Nothing is put behind a body that is no stream of events: it may have a length, and is read as it stands.
            number = self._sequence
            said = b""
            if number is not None and error.status >= _SERVER_ERROR:
                said = dialect.event(error, number())
            self._client.break_off(said)
        else:
            ids = dialect.id_fields(self._identity.shown)
            fields = (JSON, *error.headers, *ids, *self._explanation())
            self._client.respond(error.status, fields, dialect.body(error))

    def _own_fields(self, backend: Backend) -> Fields:
        ids = self._request.endpoint.dialect.id_fields(self._identity.shown)
        return (*ids, (b"x-turnout-backend", backend.id.encode()), *self._explanation())

    def _explanation(self) -> Fields:
        return ((b"x-turnout-reason", self._decision.header()),) if self._identity.explain else ()

    def _post(self, host: bytes, body: bytes) -> bytes:
        suffix = b"-%d" % self._retries if self._retries else b""
        fields = ((b"x-request-id", self._identity.sent + suffix), *self._identity.trace)
        return post(self._request.endpoint.path, host, body, fields)
