"""Turnout's own policy as the simulator drives it: the code that runs in the router."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.routing.load_tracker import InFlightRequest, LoadTracker, Prompt, Scrape
from turnout.routing.policy import PrefixAware

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing.work import WorkModel
    from turnout_simulator.policies.peers import PeerNetwork
    from turnout_simulator.policies.port import Arrival, Sample


class Turnout:
    """One router. Where others send to the same engines it scrapes (*scrape_seconds*), or they exchange their requests.

    The latter through an *network*, one for all of them.
    """

    name = "Turnout"

    def __init__(  # noqa: PLR0917 - the setting, as the other policies take it
        self,
        engines: int,
        kv_blocks: int,
        block_tokens: int,
        work: WorkModel,
        scrape_seconds: float | None = None,
        network: PeerNetwork | None = None,
    ) -> None:
        self.scrape_seconds = scrape_seconds
        tracker = LoadTracker(block_tokens)
        tracker.set_backends((f"engine-{e}", kv_blocks * block_tokens) for e in range(engines))
        self._policy = PrefixAware(tracker, work)
        self._tracker = tracker
        self._states = list(tracker.states.values())
        self._requests: dict[int, InFlightRequest] = {}
        self._others = None if network is None else network.join(tracker)

    def choose(self, arrival: Arrival) -> int | None:  # noqa: D102 - the protocol says it
        if self._others is not None:
            self._others.until(arrival.at)
        prompt = Prompt(arrival.prompt_tokens, arrival.blocks)
        pick = self._policy.choose(prompt, self._states, arrival.at)
        request = self._requests[arrival.number] = self._policy.sent(pick, prompt, arrival.at)
        if self._others is not None:
            self._others.sent(arrival.number, request, prompt, arrival.at)
        return pick.state.slot

    def first_token(self, number: int, now: float) -> None:  # noqa: D102 - the protocol says it
        if self._others is not None:
            self._others.first_token(number, now)
        self._tracker.first_token(self._requests[number], now)

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:  # noqa: ARG002, D102
        if self._others is not None:
            self._others.finished(number, now, cached_tokens)
        self._tracker.finished(self._requests.pop(number), now, cached_tokens)

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:  # noqa: D102 - the protocol says it
        if self._others is not None:
            self._others.until(now)
        for state, sample in zip(self._states, samples, strict=True):
            pending = sample.queried_tokens - sample.hit_tokens - sample.computed_tokens
            scrape = Scrape(sample.running, sample.waiting, sample.kv_usage, pending)
            self._policy.scraped(state.id, scrape, now)
