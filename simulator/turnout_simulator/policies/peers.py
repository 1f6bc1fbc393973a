"""Routers that tell each other of their requests, in batches and with the network's delay, as the real ones do."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Final

from turnout.routing.peer_load import PeerLoad

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing.load_tracker import InFlightRequest, LoadTracker, Prompt

    Message = Callable[[PeerLoad, LoadTracker, float], object]

BATCH_SECONDS: Final = 0.01
"""Least time between two batches of a router, what comes later than that is sent at once, as by the real one."""
DELAY_SECONDS: Final = 0.001
"""From there to the other routers' books: one cluster's network and their event loops."""
MOST_OPEN: Final = 1_000_000_000
"""No bound that a replay would meet."""


class PeerNetwork:
    """What routers tell each other, delivered in the order of virtual time."""

    def __init__(self, *, batch_seconds: float = BATCH_SECONDS, delay_seconds: float = DELAY_SECONDS) -> None:
        self.members: list[PeerEndpoint] = []
        self._batch_seconds = batch_seconds
        self._delay_seconds = delay_seconds
        self._due: list[tuple[float, int, PeerEndpoint, list[Message]]] = []
        self._batches = 0

    def join(self, tracker: LoadTracker) -> PeerEndpoint:
        """Return the end of a further router, with *tracker*."""
        member = PeerEndpoint(self, tracker)
        self.members.append(member)
        return member

    def deliver(self, now: float) -> None:
        """Hand over whatever is due by *now*."""
        while self._due and self._due[0][0] <= now:
            at, _, sender, batch = heappop(self._due)
            for member in self.members:
                if member is not sender:
                    member.hear(sender, batch, at)

    def begin(self, sender: PeerEndpoint, last: float, now: float) -> tuple[float, list[Message]]:
        """Begin a batch after one that closed at *last*; return until when it is open, and where its messages go."""
        batch: list[Message] = []
        closes = max(now, last + self._batch_seconds)
        self._batches += 1
        heappush(self._due, (closes + self._delay_seconds, self._batches, sender, batch))
        return closes, batch


class PeerEndpoint:
    """One router's end: sends the others its own requests, and adds theirs to its tracker.

    Time goes on in every call, and never back: what others have sent by then is added first.
    """

    def __init__(self, network: PeerNetwork, tracker: LoadTracker) -> None:
        self._network = network
        self._tracker = tracker
        self._loads: dict[PeerEndpoint, PeerLoad] = {}
        self._closes = -inf
        self._batch: list[Message] = []

    def until(self, now: float) -> None:
        """Add what the others have sent by *now*."""
        self._network.deliver(now)

    def sent(self, number: int, request: InFlightRequest, prompt: Prompt, now: float) -> None:
        """Tell that *prompt* was sent, as *request* says."""
        if request.state is None:
            return
        backend, matched, seconds = request.state.id, request.matched, request.seconds
        self._tell(
            now, lambda load, tracker, at: load.sent(number, tracker, backend, prompt, matched, seconds, at)
        )

    def first_token(self, number: int, now: float) -> None:
        """Tell that the prompt of *number* has been computed."""
        self._tell(now, lambda load, _tracker, at: load.first_token(number, at))

    def finished(self, number: int, now: float, cached_tokens: int | None = None) -> None:
        """Tell that *number* has ended."""
        self._tell(now, lambda load, _tracker, at: load.finished(number, at, cached_tokens))

    def hear(self, sender: PeerEndpoint, batch: list[Message], at: float) -> None:
        """Add what *sender* reports."""
        load = self._loads.get(sender)
        if load is None:
            load = self._loads[sender] = PeerLoad(MOST_OPEN, MOST_OPEN)
        for message in batch:
            message(load, self._tracker, at)

    def _tell(self, now: float, message: Message) -> None:
        self._network.deliver(now)
        if now >= self._closes:
            self._closes, self._batch = self._network.begin(self, self._closes, now)
        self._batch.append(message)
