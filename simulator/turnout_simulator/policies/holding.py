"""Turnout's policy with a router that holds requests back until a backend could begin with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from turnout.routing.load_tracker import Prompt
from turnout.routing.policy import PairEstimate
from turnout.routing.shortest_job import QueuedRequest, ShortestJobQueue, must_wait
from turnout_simulator.policies.own import Turnout
from turnout_simulator.policies.pairs import TurnoutPairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnout.routing.work import WorkModel
    from turnout_simulator.policies.port import Arrival, Placement


class HoldingTurnout(Turnout):
    """One router, aggregated engines."""

    name = "Turnout, holding"

    def __init__(self, engines: int, kv_blocks: int, block_tokens: int, work: WorkModel) -> None:
        super().__init__(engines, kv_blocks, block_tokens, work)
        self._queue = ShortestJobQueue(self._policy)
        self._arrivals: dict[QueuedRequest, Arrival] = {}

    def choose(self, arrival: Arrival) -> int | None:  # noqa: D102 - the protocol says it
        prompt = Prompt(arrival.prompt_tokens, arrival.blocks)
        if not self._queue:
            picks = self._picks(prompt, arrival.at)
            if not must_wait(picks):
                return self._sent(arrival, picks, arrival.at)
        self._arrivals[self._queue.push(prompt, arrival.at)] = arrival
        return None

    def released(self, now: float) -> Iterator[tuple[int, int]]:  # noqa: D102 - the protocol says it
        while (found := self._queue.next(lambda prompt: self._picks(prompt, now))) is not None:
            arrival = self._arrivals.pop(found[0])
            yield arrival.number, self._sent(arrival, found[1], now)

    def _picks(self, prompt: Prompt, now: float) -> PairEstimate:
        return PairEstimate(self._policy, prompt, self._policy.choose(prompt, self._states, now), None)

    def _sent(self, arrival: Arrival, picks: PairEstimate, now: float) -> int:
        self._requests[arrival.number] = self._policy.sent(picks.decode, picks.prompt, now)
        return picks.decode.state.slot


class HoldingTurnoutPairs(TurnoutPairs):
    """One router, prefill and decode engines."""

    name = "Turnout, holding"

    def __init__(
        self, prefill_engines: int, engines: int, kv_blocks: int, block_tokens: int, work: WorkModel
    ) -> None:
        super().__init__(prefill_engines, engines, kv_blocks, block_tokens, work)
        self._queue = ShortestJobQueue(self._policy)
        self._arrivals: dict[QueuedRequest, Arrival] = {}

    def place(self, arrival: Arrival) -> Placement | None:  # noqa: D102 - the protocol says it
        prompt = Prompt(arrival.prompt_tokens, arrival.blocks)
        if not self._queue:
            picks = self._pair(prompt, arrival.at)
            if not must_wait(picks):
                return self._placed(arrival, picks)
        self._arrivals[self._queue.push(prompt, arrival.at)] = arrival
        return None

    def released(self, now: float) -> Iterator[tuple[int, Placement]]:  # noqa: D102 - the protocol says it
        while (found := self._queue.next(lambda prompt: self._pair(prompt, now))) is not None:
            arrival = self._arrivals.pop(found[0])
            yield arrival.number, self._placed(replace(arrival, at=now), found[1])
