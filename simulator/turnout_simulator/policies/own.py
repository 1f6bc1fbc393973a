"""Turnout's own policy as the simulator drives it: the code that runs in the router."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.routing.ledger import Ledger, Prompt, Scrape, Ticket
from turnout.routing.policy import PrefixAware

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing.work import WorkModel
    from turnout_simulator.policies.port import Arrival, Sample


class Turnout:
    """One router. With *scrape_seconds* it also scrapes, as it must where other routers send to the same engines."""

    name = "Turnout"

    def __init__(
        self,
        engines: int,
        kv_blocks: int,
        block_tokens: int,
        work: WorkModel,
        scrape_seconds: float | None = None,
    ) -> None:
        self.scrape_seconds = scrape_seconds
        ledger = Ledger(block_tokens)
        ledger.set_backends((f"engine-{e}", kv_blocks * block_tokens) for e in range(engines))
        self._policy = PrefixAware(ledger, work)
        self._ledger = ledger
        self._states = list(ledger.states.values())
        self._tickets: dict[int, Ticket] = {}

    def choose(self, arrival: Arrival) -> int:  # noqa: D102 - the protocol says it
        prompt = Prompt(arrival.prompt_tokens, arrival.blocks)
        pick = self._policy.choose(prompt, self._states, arrival.at)
        self._tickets[arrival.number] = self._policy.sent(pick, prompt, arrival.at)
        return pick.state.slot

    def first_token(self, number: int, now: float) -> None:  # noqa: D102 - the protocol says it
        self._ledger.first_token(self._tickets[number], now)

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:  # noqa: ARG002, D102
        self._ledger.finished(self._tickets.pop(number), now, cached_tokens)

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:  # noqa: D102 - the protocol says it
        for state, sample in zip(self._states, samples, strict=True):
            pending = sample.queried_tokens - sample.hit_tokens - sample.computed_tokens
            scrape = Scrape(sample.running, sample.waiting, sample.kv_usage, pending)
            self._policy.scraped(state.id, scrape, now)
