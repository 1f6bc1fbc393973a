"""SGLang's hand-off: both workers get the same request at once, and meet in a room of the prefill worker's.

The decode worker fetches the cache from `bootstrap_host` and `bootstrap_port`, where the prefill worker's bootstrap server
listens, under the number `bootstrap_room`, which is used once: a new attempt takes a new one. A request with several prompts or
choices uses that many consecutive numbers. The decode worker's answer is the client's; of the prefill worker's only its
status matters. Where one worker fails, the other one would wait for it: its request is cancelled.

A decode worker of SGLang computes no prompts, so there is no local prefill. For a trial of a single worker SGLang knows a host
that stands for no transfer.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from turnout_router.api.openai import dispatched_body
from turnout_router.errors import ApiError, Refusal, UpstreamError, from_upstream, malformed, stream_broken
from turnout_router.request.handoff import HandOff

if TYPE_CHECKING:
    from turnout.routing import Backend, WorkerPair
    from turnout_router.fleet.inflight import InFlightClaim
    from turnout_router.request.served import ServedRequest

_ROOMS: Final = 2**63 - 2**20
"""Rooms are numbers of 63 bits; above the first one there is space for those of further prompts and choices."""
_NO_TRANSFER_HOST: Final = "2.2.2.2"
_AFTER_ANSWER_SECONDS: Final = 1.0
"""How long a prefill worker's answer is waited for when the decode worker's has ended: it has been due for long by then."""


class DispatchBoth(HandOff):
    """Sends a request to both workers of a pair at once; in an aggregated pool, to one."""

    __slots__ = ("_draws",)

    def __init__(self, request: ServedRequest) -> None:
        super().__init__(request)
        self._draws = random.Random()  # noqa: S311 - a number that no other request uses, no secret

    def next_pair(self) -> WorkerPair:
        """Return the workers of the next attempt. Raise ApiError where there are none."""
        pair = self._request.choose()
        if pair is None:
            raise self._request.no_worker()
        if pair.prefill is None and pair.decode.role == "decode" and not self._request.is_trial:
            raise self._without_prefill(pair)
        return pair

    def _without_prefill(self, pair: WorkerPair) -> ApiError:
        request = self._request
        if pair.local_reason == "no_generation":
            path = request.completion.endpoint.path.decode()
            return malformed(
                f"{path} is not served by a model whose prefill and decode workers are separate."
            )
        return request.no_worker()

    async def attempt(self, pair: WorkerPair, claim: InFlightClaim) -> int | None:
        """Serve the request by *pair*, see `HandOff.attempt`."""
        request, decode = self._request, pair.decode
        if pair.prefill is None:
            if pair.local_reason is not None:
                request.prefilled_locally(pair.local_reason)
            body = dispatched_body(request.completion, decode, self._room_of(None))
            return await self._alone(decode, body, claim)
        room = self._room_of(pair.prefill)
        loop = asyncio.get_running_loop()
        prefilling = loop.create_task(
            request.prefill(
                pair.prefill, pair, dispatched_body(request.completion, pair.prefill, room), repeatable=False
            ),
            name="prefill",
        )
        decoding = loop.create_task(
            request.decode(
                decode, dispatched_body(request.completion, decode, room), claim, is_first_use=False
            ),
            name="decode",
        )
        raised: BaseException | None = None
        status = None
        try:
            status = await self._both(pair, pair.prefill, prefilling, decoding)
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised = error
        # Not in a `finally`: see tests/house/test_compiled.py for what a wait there does in compiled code.
        for task in (prefilling, decoding):
            task.cancel()
        await asyncio.wait({prefilling, decoding})
        if raised is not None:
            raise raised
        return status

    def _room_of(self, prefill: Backend | None) -> dict[str, object]:
        """Return the fields by which two workers find each other; for one worker on trial, those of no transfer."""
        if prefill is None:
            if not self._request.is_trial:
                return {}
            return {"bootstrap_host": _NO_TRANSFER_HOST, "bootstrap_room": 0}
        return {
            "bootstrap_host": prefill.host,
            "bootstrap_port": prefill.bootstrap_port,
            "bootstrap_room": self._draws.randrange(_ROOMS),
        }

    async def _alone(self, backend: Backend, body: bytes, claim: InFlightClaim) -> int | None:
        request, attempts = self._request, self._request.attempts
        try:
            status = await request.decode(backend, body, claim, is_first_use=True)
        except Refusal as refusal:
            attempts.succeed(backend)
            return request.refuse(backend, refusal)
        except UpstreamError as error:
            self._note_decode_failure(backend, None, error)
            return None
        attempts.succeed(backend)
        return status

    async def _both(
        self,
        pair: WorkerPair,
        prefill: Backend,
        prefilling: asyncio.Task[bytes],
        decoding: asyncio.Task[int],
    ) -> int | None:
        """Return what `attempt` does. Neither task need have ended by then."""
        request, attempts, decode = self._request, self._request.attempts, pair.decode
        await asyncio.wait({prefilling, decoding}, return_when=asyncio.FIRST_COMPLETED)
        if not decoding.done() and (prefilling.exception() is None or request.sink.started):
            await asyncio.wait({decoding})
        if decoding.done():
            failure = decoding.exception()
            if failure is None:
                await asyncio.wait({prefilling}, timeout=_AFTER_ANSWER_SECONDS)
                attempts.succeed(decode)
                if prefilling.done() and prefilling.exception() is None:
                    attempts.succeed(prefill)
                return decoding.result()
            if isinstance(failure, Refusal):
                attempts.succeed(decode)
                return request.refuse(decode, failure)
            if not isinstance(failure, UpstreamError):
                raise failure
            self._note_decode_failure(decode, prefill, failure)
            return None
        error = prefilling.exception()
        if isinstance(error, Refusal):
            attempts.succeed(prefill)
            return request.refuse(prefill, error)
        if not isinstance(error, UpstreamError):
            raise error if error is not None else RuntimeError("a prefill has failed without an error")
        self._note_prefill_failure(prefill, error)
        return None

    def _note_prefill_failure(self, backend: Backend, error: UpstreamError) -> None:
        """Learn from the failure. Raise ApiError where it is the last one."""
        request, attempts = self._request, self._request.attempts
        on_trial = request.deployment.health.on_trial(backend)
        request.note_failure("prefill", backend, error)
        if error.fault != "stale":
            attempts.blame(backend, error)
            attempts.exclude(backend)
        self._retry_or_raise(error, on_trial=on_trial)

    def _note_decode_failure(self, decode: Backend, prefill: Backend | None, error: UpstreamError) -> None:
        """Learn from the failure. Raise ApiError where it is the last one."""
        request, attempts = self._request, self._request.attempts
        request.note_failure("decode", decode, error)
        on_trial = request.deployment.health.on_trial(decode)
        if request.sink.started:
            attempts.blame_at_once(decode, error)
            raise stream_broken(str(error)) from error
        if error.fault in {"connect", "overloaded"}:
            attempts.blame_at_once(decode, error)
            attempts.exclude(decode)
        elif error.fault != "stale":
            attempts.blame(decode, error)
            attempts.avoid(decode)
            if prefill is not None and error.fault == "status":
                # Likely the cache could not be fetched: the prefill worker may have failed as well as this one.
                attempts.blame(prefill, error)
                attempts.exclude(prefill)
        self._retry_or_raise(error, on_trial=on_trial)

    def _retry_or_raise(self, error: UpstreamError, *, on_trial: bool) -> None:
        """Return where another attempt may follow. Raise ApiError where none may."""
        overloaded = error.fault == "overloaded"
        late = error.fault == "timeout" and not on_trial
        if late or not self._request.attempts.take_retry(overloaded=overloaded):
            raise from_upstream(error) from error
