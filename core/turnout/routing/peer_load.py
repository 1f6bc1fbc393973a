"""Another router's requests in this router's load tracker, as that router reports them.

Routers in front of the same workers report to each other that a request was sent, that its first token has come, and
that it has ended. Each is tracked as if it were this router's own, so that choices, shadow caches and running means include all
of them. What a scrape shows beyond that are requests that no router reported.

Messages may come late, twice, in a wrong order or not at all: the worst outcome is a request that stays open, and
all open requests of a peer are dropped when it disconnects.
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
        """Note that the peer has sent *prompt* to a backend of *tracker*; otherwise as `LoadTracker.sent`.

        Return False, and note nothing, for an unknown backend, for a number that is open already, and beyond the most
        that may be open.
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
        """Note that the prompt of *number* has been computed. Return False if it is not open."""
        entry = self._open.get(number)
        if entry is None:
            return False
        tracker, request, scale = entry
        tracker.first_token(request, now * scale)
        return True

    def expected(self, number: int, wait: float, now: float) -> bool:
        """Note that the first token of *number* cannot be observed, and is expected in *wait* of its own seconds.

        Return False if it is not open.
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
        """Note the end of *number*, as `LoadTracker.finished`. Return False if it is not open."""
        entry = self._open.pop(number, None)
        if entry is None:
            return False
        tracker, request, scale = entry
        self._blocks -= len(request.blocks)
        tracker.finished(request, now * scale, cached_tokens, prompt_tokens)
        return True

    def lost(self, now: float) -> int:
        """Close all open requests, because the peer is gone, and return their number.

        The shadow caches keep their blocks. The mean residence does not learn from them: a running one ends
        as if it had run for the mean time.
        """
        count = len(self._open)
        for tracker, request, scale in self._open.values():
            since = request.running_since
            tracker.finished(request, now * scale if since is None else since + tracker.residence_seconds)
        self._open.clear()
        self._blocks = 0
        return count
