"""This router's messages about its own requests, collected here and sent to the other routers in batches.

A message after a pause is sent in the same turn of the event loop; one that follows a batch waits until
`batch_seconds` have passed. Messages are small structures in a list, and are encoded once for all peers.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from turnout_router.api.prefixes import BLOCK_TOKENS
from turnout_router.fleet.peers.messages import Expected, Finished, FirstToken, Sent, frames
from turnout_router.tasks import PEERS, only_logged

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from turnout.routing.load_tracker import InFlightRequest, Prompt
    from turnout_router.fleet.peers.counts import PeerCounts
    from turnout_router.fleet.peers.messages import Message
    from turnout_router.tasks import Note


RECENT_REQUESTS: Final = 4096
RECENT_BLOCKS: Final = 1 << 16
"""Ended requests that are kept for peers that connect later, and their blocks: for the caches of some forty workers."""


class Subscriber(Protocol):
    """A receiver of the messages."""

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Send new messages."""

    def cut(self) -> None:
        """Start over: a message was lost."""


class PeerSender:
    """Collects messages and sends them to `subscribers`.

    A later subscriber first gets the requests that ended lately, which no longer count as load but show what workers have
    cached, and then those that are open. *note* is called with unexpected exceptions.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counts: PeerCounts,
        batch_seconds: float,
        note: Note = only_logged,
    ) -> None:
        self._loop = loop
        self._note = note
        self._counts = counts
        self._batch_seconds = batch_seconds
        self._batch: list[Message] = []
        self._timer: asyncio.Handle | None = None
        self._flushed_at = loop.time() - batch_seconds
        self._numbers = 0
        self._open: dict[int, tuple[Sent, FirstToken | Expected | None]] = {}
        self._recent: deque[Sent] = deque()
        self._recent_blocks = 0
        self.subscribers: set[Subscriber] = set()

    def sent(self, deployment: str, request: InFlightRequest, prompt: Prompt) -> int:
        """Report that *prompt* was sent as *request*; return the number for its further messages."""
        self._numbers += 1
        backend = "" if request.state is None else request.state.id
        self._batch.append(
            Sent(
                self._numbers,
                deployment,
                backend,
                request.text_tokens(BLOCK_TOKENS),
                request.blocks,
                prompt.expected_output_tokens,
                request.matched,
                request.seconds,
                request.adapter,
            )
        )
        if self._timer is None:
            self._schedule()
        return self._numbers

    def first_token(self, number: int) -> None:
        """Report that the prompt of *number* has been computed."""
        self._append(FirstToken(number))

    def expected(self, number: int, wait: float) -> None:
        """Report that the first token of *number* cannot be observed, and is expected in *wait* of its own seconds."""
        self._append(Expected(number, max(0.0, wait)))

    def finished(self, number: int, cached_tokens: int | None, prompt_tokens: int) -> None:
        """Report that *number* has ended."""
        self._append(Finished(number, cached_tokens, prompt_tokens))

    def begin(self, subscriber: Subscriber) -> list[Message]:
        """Add *subscriber*, and return the messages about earlier requests that it must get first."""
        self._flush_safely()
        self.subscribers.add(subscriber)
        before: list[Message] = []
        for sent in self._recent:
            before += (sent, Finished(sent.number, None, 0))
        before += [message for pair in self._open.values() for message in pair if message is not None]
        return before

    def stop(self) -> None:
        """Remove all subscribers."""
        self.subscribers.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _append(self, message: Message) -> None:
        self._batch.append(message)
        if self._timer is None:
            self._schedule()

    def _schedule(self) -> None:
        rest = self._flushed_at + self._batch_seconds - self._loop.time()
        if rest <= 0:
            self._timer = self._loop.call_soon(self._flush_safely)
        else:
            self._timer = self._loop.call_later(rest, self._flush_safely)

    def _flush_safely(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            self._flush()
        except Exception as error:  # noqa: BLE001 - later messages must be sent all the same
            self._note(PEERS, error)
            self._cut_all()

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        self._flushed_at = self._loop.time()
        for message in batch:
            self._keep(message)
        if self.subscribers:
            self._counts.sent += len(batch)
            written = tuple(frames(batch))
            for subscriber in tuple(self.subscribers):
                try:
                    subscriber.deliver(written)
                except Exception as error:  # noqa: BLE001 - the others get them all the same
                    self._note(PEERS, error)
                    self.subscribers.discard(subscriber)
                    subscriber.cut()

    def _cut_all(self) -> None:
        """Make all subscribers start over: they have missed messages."""
        subscribers, self.subscribers = self.subscribers, set()
        for subscriber in subscribers:
            subscriber.cut()

    def _keep(self, message: Message) -> None:
        if isinstance(message, Sent):
            self._open[message.number] = (message, None)
        elif isinstance(message, Finished):
            ended = self._open.pop(message.number, None)
            if ended is not None and ended[0].blocks:
                self._remember(ended[0])
        elif message.number in self._open:
            self._open[message.number] = (self._open[message.number][0], message)

    def _remember(self, sent: Sent) -> None:
        self._recent.append(sent)
        self._recent_blocks += len(sent.blocks)
        while self._recent_blocks > RECENT_BLOCKS or len(self._recent) > RECENT_REQUESTS:
            self._recent_blocks -= len(self._recent.popleft().blocks)
