"""Requests of one deployment that wait in the router until a worker can start them: `queueing: Router`.

Which request waits, and which one goes first, is decided in `turnout.routing.shortest_job`. This module wakes them: whenever a first
token has come, a request has ended or the fleet has changed, and now and then for what only time or another router brings.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from turnout.routing.shortest_job import ShortestJobQueue, blocked_phase
from turnout_router.errors import overloaded
from turnout_router.fleet.claims import Claim
from turnout_router.http1.drive import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from turnout.routing.load_tracker import Prompt
    from turnout.routing.policy import PairEstimate, PrefixAware
    from turnout.routing.reason import Phase
    from turnout.routing.shortest_job import QueuedRequest
    from turnout_router.fleet.claims import Claimant
    from turnout_router.fleet.clock import DeploymentClock
    from turnout_router.metrics import WaitingTime
    from turnout_router.outcome import Outcome

_TICK_SECONDS: Final = 0.05
"""How often the queue is looked at while a request waits and nothing happens: answers in one piece show no first token, and
the end of another router's request is no event here."""


class _Waiter:
    """One request that waits, and what wakes it."""

    __slots__ = ("phase", "queued", "request", "signal")

    def __init__(self, request: Claimant, phase: Phase, queued: QueuedRequest, signal: Signal) -> None:
        self.request: Final = request
        self.phase: Final = phase
        self.queued: Final = queued
        self.signal: Final = signal


class DispatchQueue(Claim):
    """The queue of one deployment. Its length is bounded by admission, the time of each request by *wait_seconds*.

    *counts* are the requests that wait for a prefill and for a decode worker. *clock* gives the deployment's own time, in
    which the policy computes.
    """

    __slots__ = (
        "_advancing",
        "_broken",
        "_clock",
        "_counts",
        "_entering",
        "_no_worker",
        "_queue",
        "_router_clock",
        "_tick",
        "_wait_seconds",
        "_waiters",
    )

    def __init__(
        self,
        policy: PrefixAware,
        counts: Mapping[str, WaitingTime],
        clock: DeploymentClock,
        router_clock: Callable[[], float],
        wait_seconds: Callable[[], float],
    ) -> None:
        self._queue = ShortestJobQueue(policy)
        self._counts = counts
        self._clock = clock
        self._router_clock = router_clock
        self._wait_seconds = wait_seconds
        self._waiters: dict[Prompt, _Waiter] = {}
        self._tick: asyncio.TimerHandle | None = None
        self._advancing = False
        self._entering: Prompt | None = None
        self._no_worker = False
        self._broken: list[tuple[Prompt, Exception]] = []

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiters)

    def try_acquire(self, request: Claimant) -> bool:
        """Return whether *request* need not wait: its pair can start it now, and no other request waits already."""
        pair = request.pair
        if pair is None or pair.estimate is None:
            return True
        return not self._waiters and blocked_phase(pair.estimate) is None

    async def acquire(self, request: Claimant) -> None:
        """Return once a worker can start *request*, with these workers as its `pair`; None where there are none any more.

        Raise ApiError (503) where that does not come in time.
        """
        began = self._router_clock()
        try:
            await self._wait(request, self._wait_seconds())
        finally:
            request.queued_seconds += self._router_clock() - began

    def release(self, request: Claimant, outcome: Outcome) -> None:
        """Do nothing: a request has left the queue when it is dispatched, and its end is reported by its claims on workers."""

    async def _wait(self, request: Claimant, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        prompt, pair = request.prompt, request.pair
        phase: Phase = "decode"
        if pair is not None and pair.estimate is not None:
            phase = blocked_phase(pair.estimate) or ("decode" if pair.prefill is None else "prefill")
        queued = self._queue.push(prompt, self._clock.now())
        waiter = _Waiter(request, phase, queued, Signal(loop))
        self._waiters[prompt] = waiter
        self._counts[phase].add(1)
        refusal = overloaded(f"no worker could begin with this request within {seconds:g} s", "queue_timeout")
        alarm = loop.call_later(seconds, waiter.signal.set, refusal)
        try:
            self._entering = prompt
            self.advance()
            self._entering = None
            if self._waiters and self._tick is None:
                self._tick = loop.call_later(_TICK_SECONDS, self._look, loop)
            await waiter.signal
        finally:
            alarm.cancel()
            if self._waiters.get(prompt) is waiter:
                self._queue.withdraw(queued)
                self._leave(prompt, waiter)

    def advance(self) -> None:
        """Dispatch the requests that need not wait any longer."""
        if self._advancing or not self._waiters:
            return  # the loop below goes on until no request is left that can be dispatched
        self._advancing = True
        try:
            while (found := self._queue.next(self._choose)) is not None:
                prompt = found[0].prompt
                waiter = self._waiters[prompt]
                self._leave(prompt, waiter)
                waiter.signal.set()  # it has been sent, and noted as sent, when this returns
                if prompt is self._entering:
                    return  # all but this one, which is only about to wait for its signal
        finally:
            self._advancing = False
            self._fail_broken()
        if self._no_worker:
            self._no_worker = False
            self.dissolve()

    def dissolve(self) -> None:
        """Dispatch all requests: there is no queue any more, or no worker to wait for."""
        for prompt, waiter in tuple(self._waiters.items()):
            self._queue.withdraw(waiter.queued)
            self._leave(prompt, waiter)
            error: Exception | None = None
            try:
                waiter.request.pair = waiter.request.choose()
            except Exception as failure:  # noqa: BLE001 - it fails this request, and none of the others
                error = failure
            waiter.signal.set(error)

    def _fail_broken(self) -> None:
        """Fail requests whose choice of workers raised: the others must not wait behind them."""
        broken, self._broken = self._broken, []
        for prompt, error in broken:
            waiter = self._waiters.get(prompt)
            if waiter is not None:
                self._queue.withdraw(waiter.queued)
                self._leave(prompt, waiter)
                waiter.signal.set(error)

    def _choose(self, prompt: Prompt) -> PairEstimate | None:
        request = self._waiters[prompt].request
        try:
            pair = request.pair = request.choose()
        except Exception as error:  # noqa: BLE001 - see `_fail_broken`
            self._broken.append((prompt, error))
            return None
        if pair is None:
            self._no_worker = True
            return None
        return pair.estimate

    def _leave(self, prompt: Prompt, waiter: _Waiter) -> None:
        del self._waiters[prompt]
        self._counts[waiter.phase].add(-1)
        if not self._waiters and self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._tick = None
        try:
            self.advance()
        finally:  # whatever happens, it goes on: nothing else would wake the requests that wait
            if self._waiters and self._tick is None:
                self._tick = loop.call_later(_TICK_SECONDS, self._look, loop)
