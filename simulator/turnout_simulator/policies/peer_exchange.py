"""Routers that send each other their requests in flight, in batches and with the network's delay, as the real ones do."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Final

from turnout.routing.peers import PeerBook

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing.ledger import Ledger, Prompt, Ticket

    Message = Callable[[PeerBook, Ledger, float], object]

BATCH_SECONDS: Final = 0.01
"""Least time between two batches of a router; what comes later than that is sent at once, as by the real one."""
DELAY_SECONDS: Final = 0.001
"""From there to the other routers' books: one cluster's network and their event loops."""
MOST_OPEN: Final = 1_000_000_000
"""No bound that a replay would meet."""


class PeerExchange:
    """Messages between routers, delivered in the order of virtual time."""

    def __init__(self, *, batch_seconds: float = BATCH_SECONDS, delay_seconds: float = DELAY_SECONDS) -> None:
        self.members: list[PeerLink] = []
        self._batch_seconds = batch_seconds
        self._delay_seconds = delay_seconds
        self._due: list[tuple[float, int, PeerLink, list[Message]]] = []
        self._batches = 0

    def join(self, ledger: Ledger) -> PeerLink:
        """Return the link of a further router, with *ledger*."""
        member = PeerLink(self, ledger)
        self.members.append(member)
        return member

    def deliver(self, now: float) -> None:
        """Hand over whatever is due by *now*."""
        while self._due and self._due[0][0] <= now:
            at, _, sender, batch = heappop(self._due)
            for member in self.members:
                if member is not sender:
                    member.receive(sender, batch, at)

    def begin(self, sender: PeerLink, last: float, now: float) -> tuple[float, list[Message]]:
        """Begin a batch after one that closed at *last*; return until when it is open, and where its messages go."""
        batch: list[Message] = []
        closes = max(now, last + self._batch_seconds)
        self._batches += 1
        heappush(self._due, (closes + self._delay_seconds, self._batches, sender, batch))
        return closes, batch


class PeerLink:
    """One router's end: sends its own requests to the others, and adds theirs to its load.

    Time goes on in every call, and never back: what others have sent by then is added first.
    """

    def __init__(self, exchange: PeerExchange, ledger: Ledger) -> None:
        self._exchange = exchange
        self._ledger = ledger
        self._books: dict[PeerLink, PeerBook] = {}
        self._closes = -inf
        self._batch: list[Message] = []

    def until(self, now: float) -> None:
        """Add what the others have sent by *now*."""
        self._exchange.deliver(now)

    def sent(self, number: int, ticket: Ticket, prompt: Prompt, now: float) -> None:
        """Report that *prompt* was sent, as *ticket* says."""
        if ticket.state is None:
            return
        backend, matched, seconds = ticket.state.id, ticket.matched, ticket.seconds
        self._post(
            now, lambda book, ledger, at: book.sent(number, ledger, backend, prompt, matched, seconds, at)
        )

    def first_token(self, number: int, now: float) -> None:
        """Report that the prompt of *number* has been computed."""
        self._post(now, lambda book, _ledger, at: book.first_token(number, at))

    def finished(self, number: int, now: float, cached_tokens: int | None = None) -> None:
        """Report that *number* has ended."""
        self._post(now, lambda book, _ledger, at: book.finished(number, at, cached_tokens))

    def receive(self, sender: PeerLink, batch: list[Message], at: float) -> None:
        """Add what *sender* reports."""
        book = self._books.get(sender)
        if book is None:
            book = self._books[sender] = PeerBook(MOST_OPEN, MOST_OPEN)
        for message in batch:
            message(book, self._ledger, at)

    def _post(self, now: float, message: Message) -> None:
        self._exchange.deliver(now)
        if now >= self._closes:
            self._closes, self._batch = self._exchange.begin(self, self._closes, now)
        self._batch.append(message)
