"""Requests that the router keeps back as long as no backend could begin with them: the shortest goes first.

An engine serves first come, first served, and what has been sent can neither be taken back nor overtaken. So a prompt
that would only wait at its backend, behind other prompts or for KV room, loses nothing by waiting in the router, and
may gain: it goes where a place is free first, what arrives later and takes less work goes before it (shortest job
first, which minimizes the mean wait), and no engine fills its KV cache with what it cannot serve yet. A backend
always has about one full iteration of prompts in advance, so that none runs dry while the router hears of it.

Nobody waits for ever: a request counts as if it had come `PATIENCE` times its own work later than it did, so that only
those overtake that come within that time.
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
"""Seconds that a second of work lets others overtake."""
TRIES: Final = 8
"""Requests that are looked at, shortest first, before all others are taken to find no place either."""


def blocked_phase(picks: PairEstimate) -> Phase | None:
    """Return the phase that would keep a request with *picks* waiting beyond the next iteration; None where neither would.

    Never one whose backend has no request in flight: no end of one would ever ask again.
    """
    begin = picks.policy.work.full_iteration
    decode, prefill = picks.decode, picks.prefill
    if prefill is not None and prefill.backlog > begin and prefill.state.in_flight > 0:
        return "prefill"
    if decode.backlog > begin and decode.state.in_flight > 0:
        return "decode"
    return None


def must_wait(picks: PairEstimate) -> bool:
    """Say whether a request with *picks* had better be held: no backend would begin with it in the next iteration."""
    return blocked_phase(picks) is not None


class Place:
    """One request that waits."""

    __slots__ = ("_number", "prompt", "rank", "waits")

    def __init__(self, prompt: Prompt, rank: float, number: int) -> None:
        self.prompt: Final = prompt
        self.waits = True
        """Until it is sent or withdrawn."""
        self.rank: Final = rank
        self._number: Final = number

    def __lt__(self, other: Place) -> bool:
        """Shortest first; of equals the one that came first."""
        return (self.rank, self._number) < (other.rank, other._number)


class Held:
    """The requests of one deployment that wait. Its user bounds their number (admission) and their time (deadlines).

    Push what `must_wait`, and call `next` until it returns None whenever a first token has come or a request has ended,
    whatever its end, and whenever the backends have changed. While anything waits, push every new request and call
    `next`, too: the shortest goes first.
    """

    def __init__(self, policy: PrefixAware) -> None:
        self._policy = policy
        self._places: list[Place] = []
        self._numbers = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return self._policy.held_back

    def push(self, prompt: Prompt, now: float) -> Place:
        """Let a request wait from *now* on."""
        tracker = self._policy.tracker
        matches, exact = tracker.holdings(prompt)
        most = max(matches, default=0) * tracker.block_tokens if exact is None else max(exact, default=0)
        cached = min(most, prompt.tokens - 1)
        work = self._policy.work.prefill(prompt.tokens - cached, cached)
        self._numbers += 1
        place = Place(prompt, now + PATIENCE * work, self._numbers)
        heappush(self._places, place)
        self._policy.held_back += 1
        return place

    def withdraw(self, place: Place) -> None:
        """Forget a request: its client has left, or its time is up. Does nothing for one that waits no longer."""
        if place.waits:
            place.waits = False
            self._policy.held_back -= 1
            self._drop_gone()

    def next(self, choose: Callable[[Prompt], PairEstimate | None]) -> tuple[Place, PairEstimate] | None:
        """Return the next request that need not wait any longer, and who serves it; None where there is none.

        *choose* says who would serve a prompt now, None for nobody. Note what is returned as sent before asking again.
        """
        refused: list[Place] = []
        found: tuple[Place, PairEstimate] | None = None
        while self._places and len(refused) < TRIES:
            place = heappop(self._places)
            if not place.waits:
                continue
            self._policy.held_back -= 1
            picks = choose(place.prompt)
            if picks is not None and not must_wait(picks):
                place.waits = False
                found = (place, picks)
                break
            self._policy.held_back += 1
            refused.append(place)
        for place in refused:
            heappush(self._places, place)
        return found

    def _drop_gone(self) -> None:
        """Keep the heap no longer than twice those that wait: what was withdrawn lies about until it is on top."""
        if len(self._places) > 2 * self._policy.held_back + TRIES:
            self._places = sorted(place for place in self._places if place.waits)
