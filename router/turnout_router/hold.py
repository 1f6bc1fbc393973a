"""One request in flight on one worker: what it counts there, and what the prefix-aware policy hears of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing.ledger import Ledger, Ticket
    from turnout.routing.policy import Picks
    from turnout_router.line import Line
    from turnout_router.peers.outbox import Outbox


class InFlight:
    """What one worker has in flight from this router: expected tokens, requests, and when it was last picked."""

    __slots__ = ("last_pick", "requests", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.requests = 0
        self.last_pick = 0


class Hold:
    """Counts *tokens* and one request in *load*, and in the policy's book where one chose; `end` takes both back.

    The policy reckons in the deployment's seconds, of which *scale* pass in one of *clock*.
    """

    __slots__ = (
        "_cached_tokens",
        "_clock",
        "_ledger",
        "_line",
        "_load",
        "_number",
        "_outbox",
        "_prompt_tokens",
        "_scale",
        "_ticket",
        "_tokens",
        "_wait",
    )

    def __init__(  # noqa: PLR0917 - made once for every request
        self,
        load: InFlight,
        tokens: int,
        picks: Picks | None,
        backend_id: str,
        clock: Callable[[], float],
        scale: float,
        line: Line | None,
    ) -> None:
        load.tokens += tokens
        load.requests += 1
        self._load = load
        self._tokens = tokens
        self._clock = clock
        self._scale = scale
        self._line = line
        self._ledger: Ledger | None = None
        self._ticket: Ticket | None = None
        self._cached_tokens: int | None = None
        self._prompt_tokens = 0
        self._wait = 0.0
        self._outbox: Outbox | None = None
        self._number = 0
        if picks is not None:
            pick = picks.decode
            if picks.prefill is not None and picks.prefill.state.id == backend_id:
                pick = picks.prefill
            self._ledger = picks.policy.ledger
            self._ticket = picks.policy.sent(pick, picks.prompt, clock() * scale)
            self._wait = pick.wait

    def tell(self, outbox: Outbox, deployment: str, picks: Picks) -> None:
        """Tell other routers of it, too, from its beginning to its end."""
        if self._ticket is not None:
            self._outbox = outbox
            self._number = outbox.sent(deployment, self._ticket, picks.prompt)

    def first_token(self) -> None:
        """Note that the prompt has been computed; a second time means nothing."""
        if self._ledger is not None and self._ticket is not None:
            if self._outbox is not None and self._ticket.running_since is None:
                self._outbox.first_token(self._number)
            self._ledger.first_token(self._ticket, self._clock() * self._scale)
            if self._line is not None:
                self._line.advance()

    def expect_first_token(self) -> None:
        """Take the first token to come when it is expected: of an answer in one piece nobody sees it."""
        if self._ticket is not None:
            self._ticket.expected_at = self._clock() * self._scale + self._wait
            if self._outbox is not None:
                self._outbox.expected(self._number, self._wait)

    def found(self, cached_tokens: int | None, prompt_tokens: int) -> None:
        """Keep what usage says of the worker's own cache."""
        self._cached_tokens, self._prompt_tokens = cached_tokens, prompt_tokens

    def end(self) -> None:
        """Note the request's end, whatever its kind. To be called once."""
        self._load.tokens -= self._tokens
        self._load.requests -= 1
        if self._ledger is not None and self._ticket is not None:
            now = self._clock() * self._scale
            self._ledger.finished(self._ticket, now, self._cached_tokens, self._prompt_tokens)
            if self._outbox is not None:
                self._outbox.finished(self._number, self._cached_tokens, self._prompt_tokens)
            if self._line is not None:
                self._line.advance()
