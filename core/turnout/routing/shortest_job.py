"""Requests that the router holds until a backend can start them: shortest job first.

An engine serves first come, first served, and a request that was sent can neither be taken back nor overtaken. A prompt
that would only wait at its backend, behind other prompts or for KV room, therefore loses nothing by waiting in the router, and
may gain: it goes to the backend that is free first, a later request with less work goes before it (shortest job
first, which minimizes the mean wait), and no engine fills its KV cache with requests that it cannot serve yet. A backend
always has about one full iteration of prompts queued, so that it never idles until the router learns of a completion.

No request starves: a request counts as if it had arrived `PATIENCE` times its own work later than it did, so that only
requests that arrive within that time overtake it.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing.load_tracker import Prompt
    from turnout.routing.policy import PairEstimate, PrefixAware
    from turnout.routing.reason import Phase

PATIENCE: Final = 60.0
"""Seconds during which later requests may overtake a request, per second of its work."""
MAX_TRIES: Final = 8
"""Requests that are tried, shortest first, before it is assumed that none of the others can start either."""


def blocked_phase(pair: PairEstimate) -> Phase | None:
    """Return the phase in which a request would wait beyond the next iteration of its worker; None if it would in neither.

    A backend without requests in flight never blocks: no completion there would trigger the next check.
    """
    iteration = pair.policy.work.full_iteration
    decode, prefill = pair.decode, pair.prefill
    if prefill is not None and prefill.backlog > iteration and prefill.state.in_flight > 0:
        return "prefill"
    if decode.backlog > iteration and decode.state.in_flight > 0:
        return "decode"
    return None


def must_wait(pair: PairEstimate) -> bool:
    """Return whether a request should wait in the router: its workers would not start it in the next iteration."""
    return blocked_phase(pair) is not None


class QueuedRequest:
    """One request in a `ShortestJobQueue`."""

    __slots__ = ("_number", "prompt", "rank", "waits")

    def __init__(self, prompt: Prompt, rank: float, number: int) -> None:
        self.prompt: Final = prompt
        self.waits = True
        """Until it is sent or withdrawn."""
        self.rank: Final = rank
        self._number: Final = number

    def __lt__(self, other: QueuedRequest) -> bool:
        """Shortest first; among equals in the order of arrival."""
        return (self.rank, self._number) < (other.rank, other._number)


class ShortestJobQueue:
    """The held requests of one deployment. The caller bounds their number (admission) and their time (deadlines).

    Push a request that `must_wait`. Call `next` until it returns None after every first token, after every end of a
    request and after every change of the backends. While any request waits, push every new request and call
    `next` as well, so that the shortest one goes first.
    """

    def __init__(self, policy: PrefixAware) -> None:
        self._policy = policy
        self._heap: list[QueuedRequest] = []
        self._numbers = 0

    def __len__(self) -> int:
        """Return the number of requests that wait."""
        return self._policy.held_requests

    def push(self, prompt: Prompt, now: float) -> QueuedRequest:
        """Queue a request that arrived at *now*."""
        tracker = self._policy.tracker
        matches, exact = tracker.holdings(prompt)
        most = max(matches, default=0) * tracker.block_tokens if exact is None else max(exact, default=0)
        cached = min(most, prompt.tokens - 1)
        work = self._policy.work.prefill(prompt.tokens - cached, cached)
        self._numbers += 1
        queued = QueuedRequest(prompt, now + PATIENCE * work, self._numbers)
        heappush(self._heap, queued)
        self._policy.held_requests += 1
        return queued

    def withdraw(self, queued: QueuedRequest) -> None:
        """Remove a request whose client has left or whose time is over. Does nothing if it no longer waits."""
        if queued.waits:
            queued.waits = False
            self._policy.held_requests -= 1
            self._drop_gone()

    def next(
        self, choose: Callable[[Prompt], PairEstimate | None]
    ) -> tuple[QueuedRequest, PairEstimate] | None:
        """Remove and return the next request that can start, and its workers; None if no request can.

        *choose* returns the workers that would serve a prompt now, None if there are none. Report the returned request as
        sent before the next call.
        """
        refused: list[QueuedRequest] = []
        found: tuple[QueuedRequest, PairEstimate] | None = None
        while self._heap and len(refused) < MAX_TRIES:
            queued = heappop(self._heap)
            if not queued.waits:
                continue
            self._policy.held_requests -= 1
            pair = choose(queued.prompt)
            if pair is not None and not must_wait(pair):
                queued.waits = False
                found = (queued, pair)
                break
            self._policy.held_requests += 1
            refused.append(queued)
        for queued in refused:
            heappush(self._heap, queued)
        return found

    def _drop_gone(self) -> None:
        """Keep the heap below twice the number of waiting requests: withdrawn ones stay in it until they reach the top."""
        if len(self._heap) > 2 * self._policy.held_requests + MAX_TRIES:
            self._heap = sorted(queued for queued in self._heap if queued.waits)
