"""One request's life once its deployment is known: acquire claims -> attempts -> Outcome -> release claims.

The answer goes to a sink. Failures before the sink has taken a byte are repaired by the hand-off's further attempts; after the
first byte nothing is repeated: the stream ends with an error event and a closed connection.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from turnout_router.errors import (
    ApiError,
    Refusal,
    UpstreamError,
    deadline_passed,
    from_upstream,
    unavailable,
)
from turnout_router.fleet.claims import Claimant
from turnout_router.http1.http import JSON, post
from turnout_router.outcome import Outcome, TokenUsage
from turnout_router.request.attempts import Attempts
from turnout_router.request.decisions import RouteDecision
from turnout_router.request.dispatch_both import DispatchBoth
from turnout_router.request.pull import Pull
from turnout_router.request.relay import Relay
from turnout_router.upstream.answers import Collected, check_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing import Backend, WorkerPair
    from turnout.routing.admission import Tier
    from turnout.routing.candidates import LocalReason
    from turnout.routing.reason import Phase
    from turnout_router.api.identity import RequestIdentity
    from turnout_router.api.openai import Completion
    from turnout_router.api.usage import Tap, Usage
    from turnout_router.fleet.claims import Claim
    from turnout_router.fleet.deployment import DeploymentRuntime
    from turnout_router.fleet.inflight import InFlightClaim
    from turnout_router.http1.http import Fields
    from turnout_router.http1.sink import Sink
    from turnout_router.outcome import Ending
    from turnout_router.request.handoff import HandOff
    from turnout_router.request.recording import Recorder
    from turnout_router.settings import UpstreamLimits
    from turnout_router.upstream.connection import UpstreamConnection

_CLIENT_LEFT: Final = 499
_BAD_GATEWAY: Final = 502
_UNAVAILABLE: Final = 503
_GATEWAY_TIMEOUT: Final = 504
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_UNUSED: Final = TokenUsage(0, 0, None, "router")
_WITHOUT_USAGE: Final = frozenset({"refused", "failed", "shed"})


@mypyc_attr(free_list_len=1)
class ServedRequest(Claimant):
    """Serves one completion. `run` always ends with an answer in the sink, unless the sink is gone, and with an `Outcome`.

    *pinned* are the workers that serve it, without a choice: a trial of a worker. `expired` is set by the caller that cancels it
    because the client's own time is over. `reached_worker`: a worker has been sent the prompt.
    """

    __slots__ = (
        "_acquired",
        "_began",
        "_claims",
        "_engine_usage",
        "_identity",
        "_pinned",
        "_recorder",
        "_sequence",
        "_shed",
        "_tap",
        "attempts",
        "clock",
        "completion",
        "decision",
        "deployment",
        "expired",
        "is_trial",
        "limits",
        "reached_worker",
        "sink",
    )

    def __init__(
        self,
        *,
        sink: Sink,
        completion: Completion,
        deployment: DeploymentRuntime,
        identity: RequestIdentity,
        recorder: Recorder,
        limits: UpstreamLimits,
        tier: Tier,
        clock: Callable[[], float],
        pinned: WorkerPair | None = None,
    ) -> None:
        tokens = completion.prompt_tokens + completion.expected_output_tokens
        super().__init__(tokens, tier, deployment.prompt_of(completion))
        self.sink: Final = sink
        self.completion: Final = completion
        self.deployment: Final = deployment
        self.limits: Final = limits
        self.clock: Final = clock
        self.is_trial: Final = pinned is not None
        pulls = deployment.profile.hand_off == "Pull"
        self.attempts: Final = Attempts(
            deployment,
            0 if pinned else limits.retries,
            completion.local if pulls or completion.local == "no_generation" else None,
            is_trial=self.is_trial,
        )
        self.expired = False
        self.reached_worker = False
        self._identity: Final = identity
        self._recorder: Final = recorder
        self._pinned: Final = pinned
        self._claims: tuple[Claim, ...] = () if pinned else deployment.claims
        self._acquired = 0
        self._shed = False
        self._tap: Tap | None = None
        self._engine_usage: Usage | None = None
        self._sequence: Callable[[], int] | None = None
        """Gives the number of the next event, where the answer under way is a stream of events."""
        self._began = clock()
        self.decision: Final = RouteDecision(
            id=identity.shown.decode(),
            path=completion.endpoint.path.decode(),
            model=completion.model,
            deployment=deployment.key,
            stream=completion.stream,
            prompt_tokens=completion.prompt_tokens,
            expected_output_tokens=completion.expected_output_tokens,
            began=self._began,
        )

    async def run(self) -> Outcome:
        """Serve it, release its claims, and return how it ended. Raise CancelledError where the sink is gone."""
        self._recorder.begun(self.deployment, self.completion, self.decision)
        ending: Ending = "failed"
        status = _BAD_GATEWAY
        try:
            for claim in self._claims:
                await self._acquire(claim)
                self._acquired += 1
            exact = self.deployment.exact
            if exact is not None:
                reading = exact.read(self.deployment.route, self.completion, self.prompt)
                self.prompt = await asyncio.get_running_loop().create_task(reading)
            status = await self._serve()
            ending = "finished" if status < _CLIENT_ERROR else "refused"
        except ApiError as error:
            status = error.status
            ending = self._ending_of(error)
            self._answer(error)
        except asyncio.CancelledError:
            if self.sink.gone:
                status, ending = _CLIENT_LEFT, "client_left"
                raise
            if self.expired:
                status, ending = _GATEWAY_TIMEOUT, "deadline"
                if self._acquired < len(self._claims):
                    self.deployment.metrics.turned_away("deadline")
                self._answer(deadline_passed())
            else:  # the router is going down and its grace period is over
                status, ending = _UNAVAILABLE, "shutdown"
                self._answer(unavailable("The router is shutting down."))
        finally:
            outcome = self._end(ending, status)
        return outcome

    def _end(self, ending: Ending, status: int) -> Outcome:
        self.attempts.judge_failures(served=ending in {"finished", "refused"})
        tap, failure = self._tap, self.attempts.failure
        outcome = Outcome(
            ending,
            status,
            self._usage(ending),
            self._began,
            self.clock(),
            None if tap is None else tap.first_token_at,
            0.0 if tap is None else tap.last_token_at,
            self.attempts.retries,
            None if failure is None else failure.fault,
        )
        while self._acquired:
            self._acquired -= 1
            self._claims[self._acquired].release(self, outcome)
        self._recorder.ended(self.deployment, self.completion, self.decision, outcome)
        return outcome

    def _ending_of(self, error: ApiError) -> Ending:
        if self._shed:
            return "shed"
        if error.status < _SERVER_ERROR:
            return "refused"
        return "broken" if self.sink.started else "failed"

    def _usage(self, ending: Ending) -> TokenUsage:
        """Return the tokens used: as the engine reports them if the answer is whole, else as the router has counted them."""
        reported = self._engine_usage
        if reported is not None and (reported.prompt or reported.output):
            return TokenUsage(reported.prompt, reported.output, reported.cached, "engine")
        if not self.reached_worker or ending in _WITHOUT_USAGE:
            return _UNUSED
        tap = self._tap
        if tap is None:
            return TokenUsage(self.completion.prompt_tokens, 0, None, "router")
        prompt = tap.prompt_tokens or self.completion.prompt_tokens
        return TokenUsage(prompt, max(tap.output_tokens, tap.token_events), tap.cached_tokens, "router")

    async def _acquire(self, claim: Claim) -> None:
        """Acquire *claim*. Raise ApiError where it is not granted: the request is shed."""
        if claim.try_acquire(self):
            return
        metrics = self.deployment.metrics
        metrics.waiting += 1
        try:
            await claim.acquire(self)
        except ApiError as error:
            self._shed = True
            metrics.turned_away(error.code or "")
            raise
        finally:
            metrics.waiting -= 1
            self.decision.held_seconds = self.queued_seconds

    async def _serve(self) -> int:
        # Not kept by the request: the two would refer to each other, and wait for the garbage collector.
        pulls = self.deployment.profile.hand_off == "Pull"
        handoff: HandOff = Pull(self) if pulls else DispatchBoth(self)
        while True:
            pair = handoff.next_pair()
            dispatch = self.deployment.dispatch
            if dispatch is not None:
                self.pair = pair
                await self._acquire(dispatch)
                pair = self._dispatched()
            self._recorder.chosen(self.decision, pair)
            claim = self.deployment.begin_work(pair.decode, self.tokens, pair)
            try:
                status = await handoff.attempt(pair, claim)
            finally:
                claim.end()
            if status is not None:
                return status

    def _dispatched(self) -> WorkerPair:
        """Return the workers that the dispatch queue has found. Raise ApiError where there are none any more."""
        if self.pair is None:
            raise unavailable(f"No worker of {self.deployment.key} is ready.")
        return self.pair

    # What hand-offs use

    def choose(self) -> WorkerPair | None:
        """Return the workers that would serve it now, None where none can."""
        if self._pinned is not None:
            return None if self.attempts.failure is not None else self._pinned
        return self.attempts.choose(self.prompt)

    def no_worker(self) -> ApiError:
        """Return why there is no attempt to be made (any more)."""
        if self.attempts.failure is not None:
            return from_upstream(self.attempts.failure)
        return unavailable(f"No worker of {self.deployment.key} is ready.")

    def note_failure(self, phase: Phase, backend: Backend, error: UpstreamError) -> None:
        """Note that *backend* has failed its part of the request."""
        self.attempts.failure = error
        self.decision.failed(self.clock(), phase, backend, error)

    def prefilled_locally(self, reason: LocalReason) -> None:
        """Count a prompt that the decode worker computes itself."""
        self.deployment.metrics.prefilled_locally(reason)

    def refuse(self, backend: Backend, refusal: Refusal) -> int:
        """Pass on that *backend* refuses the request for its content: another worker would refuse it as well."""
        self.sink.respond(refusal.status, (JSON, *self._own_fields(backend)), refusal.body)
        return refusal.status

    def post(self, host: bytes, body: bytes) -> bytes:
        """Return the request to a worker with *body*."""
        retries = self.attempts.retries
        suffix = b"-%d" % retries if retries else b""
        fields = ((b"x-request-id", self._identity.sent + suffix), *self._identity.trace)
        return post(self.completion.endpoint.path, host, body, fields)

    async def prefill(
        self, backend: Backend, pair: WorkerPair, body: bytes, *, repeatable: bool = True
    ) -> bytes:
        """Have *backend* compute the prompt for *pair*'s decode worker, and return its answer.

        *repeatable*: *body* can be sent twice. Raise Refusal for a 4xx, UpstreamError where the worker fails.
        """
        completion, deployment, limits = self.completion, self.deployment, self.limits
        answer = Collected(limits.prefill_answer_bytes + completion.size_bytes)
        claim = deployment.begin_work(backend, completion.prompt_tokens, pair)
        self.reached_worker = True
        try:
            pool = deployment.pools.of((backend.host, backend.port))
            await pool.exchange(
                self.post(pool.host, body),
                answer,
                seconds=deployment.health.patience(backend, limits.prefill_seconds),
                idle_seconds=None,
                what="the prefill",
                repeatable=repeatable,
            )
            usage = completion.endpoint.usage_of(answer.body)
            claim.found(usage.cached, usage.prompt)
        finally:
            claim.end()
        check_status(answer.status, "the prefill worker")
        if answer.status >= _CLIENT_ERROR:
            refused = completion.endpoint.dialect.error_of(answer.status, answer.body)
            raise Refusal("the prefill worker refused the request", answer.status, refused)
        self.decision.prefilled_at = self.clock()
        return answer.body

    async def decode(self, backend: Backend, body: bytes, claim: InFlightClaim, *, is_first_use: bool) -> int:
        """Have *backend* answer into the sink, and return the status that it took.

        *is_first_use*: the prompt is computed there, so that *body* can be sent twice, and usage shows what is cached there.
        Raise Refusal for a 4xx, UpstreamError where the worker fails.
        """
        completion, limits = self.completion, self.limits
        endpoint, health = completion.endpoint, self.deployment.health
        tap = None
        seconds = limits.answer_seconds
        if completion.stream:
            seconds = health.patience(backend, limits.first_byte_seconds)
            tap = endpoint.tap(drop_usage=not completion.wants_usage, max_event_bytes=limits.event_bytes)
        else:
            claim.expect_first_token()
        self._tap = tap
        relay = Relay(
            self.sink,
            limits,
            tap,
            self._own_fields(backend),
            self.clock,
            endpoint=endpoint,
            several=completion.local == "request_form",
            on_first=partial(self._note_first_token, claim)
            if self.attempts.has_provisional_failures
            else claim.first_token,
        )
        pool = self.deployment.pools.of((backend.host, backend.port))
        self.reached_worker = True
        try:
            await pool.exchange(
                self.post(pool.host, body),
                relay,
                seconds=seconds,
                idle_seconds=limits.stream_idle_seconds if completion.stream else None,
                what="the answer",
                repeatable=is_first_use,
                on_start=self._hold_back,
            )
        except UpstreamError as error:
            if error.fault == "reset" and relay.status and not self.sink.started:
                raise UpstreamError("cut", "its answer broke off", relay.status) from error
            if not relay.whole:
                raise
            # The sink has all of the answer. What the worker did after its last event changes nothing.
        finally:
            self._sequence = tap.event_sequence if tap is not None and relay.streaming else None
        self.sink.source = None
        answer = relay.finish()
        if endpoint.serves:
            usage = self._engine_usage = endpoint.usage_of(answer) if tap is None else tap.usage
            if is_first_use:
                # What was moved there counts as cached, too: nothing would be learnt of its own cache.
                claim.found(usage.cached, usage.prompt)
        return relay.status

    def _hold_back(self, connection: UpstreamConnection) -> None:
        self.sink.source = connection

    def _note_first_token(self, claim: InFlightClaim) -> None:
        """Note that the worker of *claim* computes what others have failed on."""
        claim.first_token()
        self.attempts.judge_failures(served=True)

    def _answer(self, error: ApiError) -> None:
        """Answer with *error*, in whatever form is still possible."""
        sink, dialect = self.sink, self.completion.endpoint.dialect
        if sink.gone:
            return
        if sink.started:
            # Nothing is put behind a body that is no stream of events: it may have a length, and is read as it stands.
            number = self._sequence
            event = b""
            if number is not None and error.status >= _SERVER_ERROR:
                event = dialect.event(error, number())
            sink.break_off(event)
        else:
            ids = dialect.id_fields(self._identity.shown)
            fields = (JSON, *error.headers, *ids, *self._explanation())
            sink.respond(error.status, fields, dialect.body(error))

    def _own_fields(self, backend: Backend) -> Fields:
        ids = self.completion.endpoint.dialect.id_fields(self._identity.shown)
        return (*ids, (b"x-turnout-backend", backend.id.encode()), *self._explanation())

    def _explanation(self) -> Fields:
        return ((b"x-turnout-reason", self.decision.header()),) if self._identity.explain else ()
