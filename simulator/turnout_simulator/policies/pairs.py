"""Policies for prefill/decode pools: a peer's rule for each phase, and Turnout's choice of the pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.routing.load_tracker import InFlightRequest, LoadTracker, Prompt
from turnout.routing.policy import PrefixAware
from turnout_simulator.policies.port import Placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing.policy import Estimate, PairEstimate
    from turnout.routing.work import WorkModel
    from turnout_simulator.policies.peers import PeerNetwork
    from turnout_simulator.policies.port import Arrival, EnginePolicy, Sample

LOCAL_BELOW_TOKENS: Final = 256
"""Prompts shorter than this are computed where they are decoded: moving them costs more. The resource's default."""

_PREFILL: Final = 0
_DECODE: Final = 1
"""The phases of a request, as they are numbered in reports to other routers."""


class TwoPools:
    """One policy for each pool: how the peers choose a pair. Decode first, then a prefill engine."""

    def __init__(self, prefill: EnginePolicy, decode: EnginePolicy, prefill_engines: int) -> None:
        self.name = decode.name
        self.scrape_seconds = decode.scrape_seconds
        self._prefill = prefill
        self._decode = decode
        self._prefill_engines = prefill_engines
        self._remote: set[int] = set()

    def place(self, arrival: Arrival) -> Placement:  # noqa: D102 - the protocol says it
        decode = _engine(self._decode, arrival)
        if arrival.prompt_tokens < LOCAL_BELOW_TOKENS:
            return Placement(decode)
        self._remote.add(arrival.number)
        return Placement(decode, _engine(self._prefill, arrival))

    def prefilled(self, number: int, now: float, cached_tokens: int) -> None:  # noqa: D102 - the protocol says it
        self._remote.discard(number)
        self._prefill.first_token(number, now)
        self._prefill.finished(number, now, cached_tokens, 1)

    def first_token(self, number: int, now: float) -> None:  # noqa: D102 - the protocol says it
        self._decode.first_token(number, now)

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:  # noqa: D102
        # A decode engine's cached tokens include those that were moved: nothing to learn about its own cache.
        self._decode.finished(number, now, cached_tokens, output_tokens)

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:  # noqa: D102 - the protocol says it
        self._prefill.scraped(now, samples[: self._prefill_engines])
        self._decode.scraped(now, samples[self._prefill_engines :])


class TurnoutPairs:
    """Turnout's choice of a pair: the code that runs in the router. Several tell each other through *network*."""

    name = "Turnout"
    scrape_seconds: float | None = None

    def __init__(  # noqa: PLR0917 - the setting, as the other policies take it
        self,
        prefill_engines: int,
        engines: int,
        kv_blocks: int,
        block_tokens: int,
        work: WorkModel,
        network: PeerNetwork | None = None,
    ) -> None:
        tracker = LoadTracker(block_tokens)
        tracker.set_backends((f"engine-{e}", kv_blocks * block_tokens) for e in range(engines))
        states = list(tracker.states.values())
        self._tracker = tracker
        self._policy = PrefixAware(tracker, work)
        self._prefills = states[:prefill_engines]
        self._decodes = states[prefill_engines:]
        self._prefilling: dict[int, InFlightRequest] = {}
        self._decoding: dict[int, InFlightRequest] = {}
        self._others = None if network is None else network.join(tracker)

    def place(self, arrival: Arrival) -> Placement | None:  # noqa: D102 - the protocol says it
        prompt = Prompt(arrival.prompt_tokens, arrival.blocks)
        if self._others is not None:
            self._others.until(arrival.at)
        return self._placed(arrival, self._pair(prompt, arrival.at))

    def _pair(self, prompt: Prompt, now: float) -> PairEstimate:
        return self._policy.choose_pair(
            prompt, self._prefills, self._decodes, now, local_below_tokens=LOCAL_BELOW_TOKENS
        )

    def _placed(self, arrival: Arrival, pair: PairEstimate) -> Placement:
        """Note that *arrival* is sent, at its time, as *pair* says."""
        prompt = pair.prompt
        self._decoding[arrival.number] = self._sent(_DECODE, pair.decode, prompt, arrival)
        decode = pair.decode.state.slot - len(self._prefills)
        if pair.prefill is None:
            return Placement(decode)
        prefill = Prompt(arrival.prompt_tokens, arrival.blocks, expected_output_tokens=1)
        self._prefilling[arrival.number] = self._sent(_PREFILL, pair.prefill, prefill, arrival)
        return Placement(decode, pair.prefill.state.slot)

    def prefilled(self, number: int, now: float, cached_tokens: int) -> None:  # noqa: D102 - the protocol says it
        if self._others is not None:
            self._others.finished(2 * number + _PREFILL, now, cached_tokens)
        request = self._prefilling.pop(number)
        self._tracker.first_token(request, now)
        self._tracker.finished(request, now, cached_tokens)

    def first_token(self, number: int, now: float) -> None:  # noqa: D102 - the protocol says it
        if self._others is not None:
            self._others.first_token(2 * number + _DECODE, now)
        self._tracker.first_token(self._decoding[number], now)

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:  # noqa: ARG002, D102
        # What a decode engine reports as cached includes what was moved there: it says nothing of its own cache.
        if self._others is not None:
            self._others.finished(2 * number + _DECODE, now)
        self._tracker.finished(self._decoding.pop(number), now)

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:
        """Learn nothing: a router that is alone knows all from its own accounting, one of several learns it through the exchange."""

    def _sent(self, half: int, pick: Estimate, prompt: Prompt, arrival: Arrival) -> InFlightRequest:
        request = self._policy.sent(pick, prompt, arrival.at)
        if self._others is not None:
            self._others.sent(2 * arrival.number + half, request, prompt, arrival.at)
        return request


def _engine(policy: EnginePolicy, arrival: Arrival) -> int:
    engine = policy.choose(arrival)
    if engine is None:
        raise ValueError(f"{policy.name} holds requests back, which the policy of one pool cannot")
    return engine
