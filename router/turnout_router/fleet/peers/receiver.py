"""The messages of one other router about its requests, entered into this router's load trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from turnout.routing.load_tracker import Prompt
from turnout.routing.peer_load import PeerLoad
from turnout_router.fleet.peers.counts import UNKNOWN_DEPLOYMENT, UNKNOWN_REQUEST
from turnout_router.fleet.peers.messages import Expected, FirstToken, Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout.routing.load_tracker import LoadTracker
    from turnout_router.fleet.peers.counts import PeerCounts
    from turnout_router.fleet.peers.messages import Message

MOST_REQUESTS: Final = 65_536
"""Requests that a peer may have open, prefill and decode counted separately: more than its client connections allow."""
MOST_BLOCKS: Final = 1 << 20
"""Blocks of their prompts: twice those of half a gigabyte of bodies, the most that a router keeps in memory."""


class LoadTrackers(Protocol):
    """Gives access to this router's load trackers."""

    def load_tracker_of(self, deployment: str) -> tuple[LoadTracker, float] | None:
        """Return the tracker of *deployment* and its time scale; None where no prefix-aware policy serves it."""


class PeerReceiver:
    """One peer's messages, from the beginning of a connection to its end."""

    def __init__(self, trackers: LoadTrackers, counts: PeerCounts, clock: Callable[[], float]) -> None:
        self._trackers = trackers
        self._counts = counts
        self._clock = clock
        self._load = PeerLoad(MOST_REQUESTS, MOST_BLOCKS)

    def __len__(self) -> int:
        """Return how many requests the peer has open, prefill and decode counted separately."""
        return len(self._load)

    def take(self, messages: Sequence[Message]) -> None:
        """Apply *messages*, in their order."""
        load, counts, now = self._load, self._counts, self._clock()
        before = len(load)
        counts.received += len(messages)
        for message in messages:
            if isinstance(message, Sent):
                self._take_sent(message, now)
            elif isinstance(message, FirstToken):
                load.first_token(message.number, now)
            elif isinstance(message, Expected):
                load.expected(message.number, message.wait, now)
            else:
                load.finished(message.number, now, message.cached_tokens, message.prompt_tokens)
        counts.requests += len(load) - before

    def close(self) -> int:
        """Drop all requests that the peer has open, and return their number."""
        dropped = self._load.lost(self._clock())
        self._counts.requests -= dropped
        return dropped

    def _take_sent(self, message: Sent, now: float) -> None:
        found = self._trackers.load_tracker_of(message.deployment)
        if found is None:
            self._counts.ignored[UNKNOWN_DEPLOYMENT] += 1
            return
        tracker, scale = found
        tokens = max(1, message.prompt_tokens)
        prompt = Prompt(tokens, message.blocks, message.expected_output_tokens, message.adapter)
        if not self._load.sent(
            message.number, tracker, message.backend, prompt, message.matched, message.seconds, now, scale
        ):
            self._counts.ignored[UNKNOWN_REQUEST] += 1
