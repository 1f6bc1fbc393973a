"""Another router's requests in this router's books, as that router tells of them.

Routers in front of the same workers tell each other of each request that it was sent, that its first token has come, and
that it has ended. Each is booked as if it were an own one, so that choices, shadows and running means see all of them,
and what a scrape finds beyond that is what nobody told of.

Messages may come late, twice, in a wrong order or not at all: none of that can do more than leave a request open, and
all that a peer has open goes with the peer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout.routing.load_tracker import InFlightRequest, LoadTracker, Prompt


class PeerLoad:
    """One peer's requests in flight, by the numbers that it gave them: *most* at a time, with *most_blocks* in all.

    Times are seconds of this router's clock; of a deployment's own time `scale` pass in one of them.
    """

    __slots__ = ("_blocks", "_most", "_most_blocks", "_open")

    def __init__(self, most: int, most_blocks: int) -> None:
        if most < 1 or most_blocks < 1:
            raise ValueError(
                f"a peer may have at least one request of one block open, not {most}, {most_blocks}"
            )
        self._most = most
        self._most_blocks = most_blocks
        self._blocks = 0
        self._open: dict[int, tuple[LoadTracker, InFlightRequest, float]] = {}

    def __len__(self) -> int:
        """Return the number of requests that are open."""
        return len(self._open)

    def sent(  # noqa: PLR0917 - what the message says, and where it belongs
        self,
        number: int,
        tracker: LoadTracker,
        backend_id: str,
        prompt: Prompt,
        matched: int,
        seconds: float,
        now: float,
        scale: float = 1.0,
    ) -> bool:
        """Book that the peer has sent *prompt* to a backend of *tracker*; otherwise as `LoadTracker.sent`.

        Return False, and book nothing, for a backend that is not known, a number that is open already, and what goes
        beyond the most that may be open.
        """
        state = tracker.states.get(backend_id)
        blocks = self._blocks + len(prompt.blocks)
        if (
            state is None
            or number in self._open
            or len(self._open) >= self._most
            or blocks > self._most_blocks
        ):
            return False
        matched = max(0, min(matched, len(prompt.blocks)))
        request = tracker.sent(state, prompt, matched, max(0.0, seconds), now * scale)
        self._open[number] = (tracker, request, scale)
        self._blocks = blocks
        return True

    def first_token(self, number: int, now: float) -> bool:
        """Book that the prompt of *number* has been computed. Return False where it is not open."""
        entry = self._open.get(number)
        if entry is None:
            return False
        tracker, request, scale = entry
        tracker.first_token(request, now * scale)
        return True

    def expected(self, number: int, wait: float, now: float) -> bool:
        """Book that nobody will see the first token of *number*, which is taken to come in *wait* of its own seconds.

        Return False where it is not open.
        """
        entry = self._open.get(number)
        if entry is None:
            return False
        _, request, scale = entry
        request.expected_at = now * scale + max(0.0, wait)
        return True

    def finished(
        self, number: int, now: float, cached_tokens: int | None = None, prompt_tokens: int = 0
    ) -> bool:
        """Book the end of *number*, as `LoadTracker.finished`. Return False where it is not open."""
        entry = self._open.pop(number, None)
        if entry is None:
            return False
        tracker, request, scale = entry
        self._blocks -= len(request.blocks)
        tracker.finished(request, now * scale, cached_tokens, prompt_tokens)
        return True

    def lost(self, now: float) -> int:
        """Close all that is open, for the peer is gone, and return how many these were.

        What they have left in caches stays believed. How long answers run is not learnt from them: a running one ends
        as if it had run as long as most do.
        """
        count = len(self._open)
        for tracker, request, scale in self._open.values():
            since = request.running_since
            tracker.finished(request, now * scale if since is None else since + tracker.residence_seconds)
        self._open.clear()
        self._blocks = 0
        return count
