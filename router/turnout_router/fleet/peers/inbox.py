"""What one other router tells of its requests, booked in this router's ledgers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from turnout.routing.ledger import Prompt
from turnout.routing.peers import PeerBook
from turnout_router.fleet.peers.counts import UNKNOWN_DEPLOYMENT, UNKNOWN_REQUEST
from turnout_router.fleet.peers.messages import Expected, FirstToken, Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout.routing.ledger import Ledger
    from turnout_router.fleet.peers.counts import PeerCounts
    from turnout_router.fleet.peers.messages import Message

MOST_REQUESTS: Final = 65_536
"""Halves of requests that a peer may have open: more than its client connections allow it."""
MOST_BLOCKS: Final = 1 << 20
"""Blocks of their prompts: what half a gigabyte of bodies, the most that a router takes, come to in pairs."""


class Ledgers(Protocol):
    """Knows this router's books."""

    def ledger_of(self, deployment: str) -> tuple[Ledger, float] | None:
        """Return the ledger of *deployment* and its time scale; None where no prefix-aware policy serves it."""


class Inbox:
    """One peer's messages, from the beginning of a conversation to its end."""

    def __init__(self, ledgers: Ledgers, counts: PeerCounts, clock: Callable[[], float]) -> None:
        self._ledgers = ledgers
        self._counts = counts
        self._clock = clock
        self._book = PeerBook(MOST_REQUESTS, MOST_BLOCKS)

    def __len__(self) -> int:
        """Return how many phases of requests the peer has open."""
        return len(self._book)

    def take(self, messages: Sequence[Message]) -> None:
        """Book *messages*, in their order."""
        book, counts, now = self._book, self._counts, self._clock()
        before = len(book)
        counts.received += len(messages)
        for message in messages:
            if isinstance(message, Sent):
                self._take_sent(message, now)
            elif isinstance(message, FirstToken):
                book.first_token(message.number, now)
            elif isinstance(message, Expected):
                book.expected(message.number, message.wait, now)
            else:
                book.finished(message.number, now, message.cached_tokens, message.prompt_tokens)
        counts.requests += len(book) - before

    def close(self) -> int:
        """Drop all that the peer has open, and return how many these were."""
        dropped = self._book.lost(self._clock())
        self._counts.requests -= dropped
        return dropped

    def _take_sent(self, message: Sent, now: float) -> None:
        found = self._ledgers.ledger_of(message.deployment)
        if found is None:
            self._counts.ignored[UNKNOWN_DEPLOYMENT] += 1
            return
        ledger, scale = found
        tokens = max(1, message.prompt_tokens)
        prompt = Prompt(tokens, message.blocks, message.expected_output_tokens, message.adapter)
        if not self._book.sent(
            message.number, ledger, message.backend, prompt, message.matched, message.seconds, now, scale
        ):
            self._counts.ignored[UNKNOWN_REQUEST] += 1
