"""vLLM's hand-off: the prefill worker computes one token and keeps the cache, the decode worker pulls it from there.

Failures before the sink has taken a byte are repaired: a prefill worker that fails is replaced by another one, then by local
prefill on the decode worker; a decode worker that fails is replaced together with a new prefill, for what a prefill worker
hands out can be used once. A decode worker that is full, or cannot be connected to, has not used it: the next one takes it
over. Retries are bounded per request and, over all, by the retry budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from turnout_router.api.openai import decode_body, prefill_body
from turnout_router.api.prefill import Handed, check_before_prefill, handed_in
from turnout_router.errors import Refusal, UpstreamError, from_upstream, stream_broken
from turnout_router.request.handoff import HandOff

if TYPE_CHECKING:
    from turnout.routing import Backend, WorkerPair
    from turnout_router.fleet.inflight import InFlightClaim
    from turnout_router.request.served import ServedRequest


@mypyc_attr(free_list_len=1)
class Pull(HandOff):
    """Prefill first, then decode with what the prefill worker has handed out; or decode alone, with a local prefill."""

    __slots__ = ("_handed", "_prefill_failed")

    def __init__(self, request: ServedRequest) -> None:
        super().__init__(request)
        self._handed: Handed | None = None
        """A cache that was computed and not used yet: the next attempt's decode worker takes it over."""
        self._prefill_failed = False

    def next_pair(self) -> WorkerPair:
        """Return the workers of the next attempt. Raise ApiError where there are none."""
        request, attempts = self._request, self._request.attempts
        if self._handed is not None:
            pair = self._choose_heir(self._handed)
            if pair is not None:
                return pair
            self._handed = None
        pair = request.choose()
        if (
            pair is not None
            and pair.prefill is not None
            and self._prefill_failed
            and not attempts.take_retry()
        ):
            attempts.compute_locally("prefill_failed")
            pair = request.choose()
        if pair is None:
            raise request.no_worker()
        if pair.local_reason == "no_prefill" and self._prefill_failed:
            attempts.compute_locally("prefill_failed")
            pair = request.choose() or pair
        return pair

    def _choose_heir(self, handed: Handed) -> WorkerPair | None:
        """Return the workers that take over a cache that no decode worker has used yet, None if none can, or not in time."""
        if not handed.lasts(self._request.clock()):
            return None
        pair = self._request.attempts.choose(self._request.prompt, "handed_over")
        if pair is None or pair.decode.role != "decode" or pair.decode.revision != handed.backend.revision:
            return None
        return pair

    async def attempt(self, pair: WorkerPair, claim: InFlightClaim) -> int | None:
        """Serve the request by *pair*, see `HandOff.attempt`."""
        request, attempts = self._request, self._request.attempts
        handed, self._handed = self._handed, None
        if handed is None and pair.prefill is not None:
            check_before_prefill(request.completion, request.deployment.context_tokens)
            try:
                answer = await request.prefill(
                    pair.prefill, pair, prefill_body(request.completion, pair.prefill)
                )
                handed = handed_in(answer, pair.prefill, request.clock())
            except Refusal as refusal:
                attempts.succeed(pair.prefill)
                return request.refuse(pair.prefill, refusal)
            except UpstreamError as error:
                self._note_prefill_failure(pair.prefill, error)
                return None
        elif handed is None and pair.local_reason is not None:
            request.prefilled_locally(pair.local_reason)
        decode = pair.decode
        body = decode_body(request.completion, decode, None if handed is None else handed.params)
        try:
            status = await request.decode(decode, body, claim, is_first_use=handed is None)
        except Refusal as refusal:
            attempts.succeed(decode)
            return request.refuse(decode, refusal)
        except UpstreamError as error:
            self._note_decode_failure(pair, handed, error)
            return None
        attempts.succeed(decode)
        if handed is not None:
            attempts.succeed(handed.backend)
        return status

    def _note_prefill_failure(self, backend: Backend, error: UpstreamError) -> None:
        self._request.note_failure("prefill", backend, error)
        self._prefill_failed = True
        self._request.attempts.blame(backend, error)
        self._request.attempts.exclude(backend)

    def _note_decode_failure(self, pair: WorkerPair, handed: Handed | None, error: UpstreamError) -> None:
        """Learn from the failure. Raise ApiError where it is the last one."""
        request, attempts, decode = self._request, self._request.attempts, pair.decode
        request.note_failure("decode", decode, error)
        on_trial = request.deployment.health.on_trial(decode)
        if request.sink.started:
            attempts.blame_at_once(decode, error)
            raise stream_broken(str(error)) from error
        if error.fault in {"connect", "overloaded"}:
            # It has not begun, so a cache that was handed out is still there for another one.
            attempts.blame_at_once(decode, error)
            attempts.exclude(decode)
            self._handed = handed
            if request.choose() is None:
                raise from_upstream(error) from error
        elif handed is not None and error.fault == "status":
            # Likely the cache could not be fetched: the prefill worker may have failed as well as this one. Both are blamed,
            # and the innocent one proves it with the next partner. For this request the former is not used
            # again, the latter only where there is no other. A cache that was handed over once more may have been
            # given back meanwhile, which is the fault of neither.
            if not handed.taken_over:
                attempts.blame(handed.backend, error)
                attempts.blame(decode, error)
            attempts.exclude(handed.backend)
            attempts.avoid(decode)
        elif error.fault != "stale":
            attempts.blame(decode, error)
            attempts.avoid(decode)
        if (error.fault == "timeout" and not on_trial) or not attempts.take_retry(
            overloaded=error.fault == "overloaded"
        ):
            raise from_upstream(error) from error
        if self._handed is not None:
            self._handed.taken_over = True
