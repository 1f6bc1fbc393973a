"""Replay of a trace over a fleet of engines under a routing policy, in virtual time.

Nothing depends on the machine that it runs on: the same trace, setting and policy give the same figures. Requests are
sent to the chosen engine without delay, and what a router could see (first tokens, ends with their usage, scrapes) is
reported to the policy when it happens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Final

from turnout.simulation import (
    Engine,
    EngineRequest,
    EngineSettings,
    Event,
    Fetch,
    Finished,
    FirstToken,
)
from turnout.simulation.kv import KvCache
from turnout.sizing.catalog import known
from turnout.sizing.latency import LatencyModel, UnknownLatency, latency_model
from turnout_simulator.fleet import EngineFleet
from turnout_simulator.outcomes import SimulatedOutcome
from turnout_simulator.policies.pairs import TwoPools
from turnout_simulator.policies.plain import LeastRequests
from turnout_simulator.policies.port import Arrival, HoldingPairPolicy, HoldingPolicy, Placement
from turnout_simulator.traces import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_simulator.policies.port import EnginePolicy, PairPolicy
    from turnout_simulator.traces import Trace, TraceRequest

MODEL: Final = "hf://meta-llama/Llama-3.1-8B-Instruct"
ACCELERATOR: Final = "H100-SXM"


@dataclass(frozen=True, slots=True)
class Setting:
    """The fleet: `engines` aggregated ones, or with `prefill` > 0 that many prefill engines beside as many decode ones."""

    engines: int
    kv_blocks: int
    prefill: int = 0
    block_tokens: int = BLOCK_TOKENS
    pooled: bool = False
    """Whether aggregated engines share one KV cache, as large as all of theirs: what no fleet has, for bounds. Only for
    caches so large that running requests never fill them."""

    def engine_settings(self) -> EngineSettings:
        """Return how each engine is configured."""
        return EngineSettings(kv_blocks=self.kv_blocks, block_size=self.block_tokens)


def default_latency() -> LatencyModel:
    """Return the latencies of the 8B model on one H100. Raise ValueError where the catalog has lost them."""
    architecture = known(MODEL)
    if architecture is None:
        raise ValueError(f"the catalog does not have {MODEL}")
    found = latency_model(architecture, ACCELERATOR, 1)
    if isinstance(found, UnknownLatency):
        raise ValueError(found.message)  # noqa: TRY004 - no wrong type: a missing entry
    return found


def saturated_rate(trace: Trace, setting: Setting, latency: LatencyModel, *, requests: int = 1500) -> float:
    """Return the requests/s of engines that never run dry and never hit: decode and KV room included.

    Of one engine of an aggregated *setting*, of the whole of one with prefill engines. About *requests* requests for
    each engine, taken evenly from *trace*, are all there at once, each with a prompt of its own. The rate is that of
    the middle of the run, from a tenth to nine tenths of the requests finished: neither the start with an empty batch
    nor the end, where the queue has run dry, says what a busy engine does. Raise ValueError for a trace too short.
    """
    wanted = requests * (setting.engines if setting.prefill else 1)
    step = max(1, len(trace.requests) // wanted)
    unique = replace(
        trace,
        requests=tuple(replace(r, arrival_seconds=0.0, block_ids=()) for r in trace.requests[::step]),
    )
    if setting.prefill:
        pools = TwoPools(
            LeastRequests(setting.prefill), LeastRequests(setting.engines - setting.prefill), setting.prefill
        )
        outcomes = replay_pairs(unique, setting, [pools], latency)
    else:
        outcomes = replay(unique, replace(setting, engines=1), [LeastRequests(1)], latency)
    ends = sorted(outcome.finished_at for outcome in outcomes)
    first, last = len(ends) // 10, len(ends) * 9 // 10
    if last <= first or ends[last] <= ends[first]:
        raise ValueError(f"{trace.name} has too few requests to measure a rate with")
    return (last - first) / (ends[last] - ends[first])


def at_rate(trace: Trace, requests_per_second: float) -> Trace:
    """Return *trace* with its arrivals stretched or compressed to a mean of *requests_per_second*."""
    if requests_per_second <= 0 or trace.duration_seconds <= 0:
        raise ValueError("a rate must be greater than 0, and the trace must last some time")
    factor = len(trace.requests) / trace.duration_seconds / requests_per_second
    return replace(
        trace,
        requests=tuple(replace(r, arrival_seconds=r.arrival_seconds * factor) for r in trace.requests),
    )


def replay(
    trace: Trace, setting: Setting, policies: Sequence[EnginePolicy], latency: LatencyModel
) -> list[SimulatedOutcome]:
    """Send *trace* through aggregated engines and return what became of each request, in order of its end.

    Several *policies* are several routers in front of the same engines, each with what it alone can know; requests
    take turns over them.
    """
    return _Aggregated(trace, setting, policies, latency).run()


def replay_pairs(
    trace: Trace, setting: Setting, policies: Sequence[PairPolicy], latency: LatencyModel
) -> list[SimulatedOutcome]:
    """Send *trace* through prefill and decode engines; otherwise as `replay`."""
    return _Pairs(trace, setting, policies, latency).run()


def arrival_of(number: int, request: TraceRequest, block_tokens: int) -> Arrival:
    """Return *request* as a router sees it."""
    full = request.input_tokens // block_tokens
    return Arrival(number, request.arrival_seconds, request.input_tokens, request.block_ids[:full])


class _Scrapes:
    """When the routers scrape next: every router at its own rate, all in step."""

    def __init__(self, policies: Sequence[EnginePolicy | PairPolicy], fleet: EngineFleet) -> None:
        self._policies = policies
        self._fleet = fleet
        self._interval = policies[0].scrape_seconds
        self._next = 0.0

    def up_to(self, now: float) -> None:
        """Bring the engines to *now*, with the last scrape that is due by then on the way."""
        interval = self._interval
        if interval is not None and now >= self._next:
            at = now // interval * interval  # scrapes between two arrivals change nothing, save for the last
            self._fleet.run(at)
            samples = self._fleet.sample()
            for policy in self._policies:
                policy.scraped(at, samples)
            self._next = at + interval
        self._fleet.run(now)


class _Aggregated:
    def __init__(
        self, trace: Trace, setting: Setting, policies: Sequence[EnginePolicy], latency: LatencyModel
    ) -> None:
        settings = setting.engine_settings()
        self._trace = trace
        self._setting = setting
        self._policies = policies
        self._holding = [each if isinstance(each, HoldingPolicy) else None for each in policies]
        cache = KvCache(setting.kv_blocks * setting.engines) if setting.pooled else None
        engines = [Engine(settings, latency, cache) for _ in range(setting.engines)]
        self._fleet = EngineFleet(engines, self._on_event)
        self._scrapes = _Scrapes(policies, self._fleet)
        self._outcomes: list[SimulatedOutcome] = []

    def run(self) -> list[SimulatedOutcome]:
        for number, request in enumerate(self._trace.requests):
            arrival = arrival_of(number, request, self._setting.block_tokens)
            self._scrapes.up_to(arrival.at)
            policy = self._policies[number % len(self._policies)]
            index = policy.choose(arrival)
            if index is not None:
                self._submit(number, index, arrival.at)
            self._release(number % len(self._policies), arrival.at)
        self._fleet.run(inf)
        return self._outcomes

    def _submit(self, number: int, index: int, now: float) -> None:
        arrival = arrival_of(number, self._trace.requests[number], self._setting.block_tokens)
        output = self._trace.requests[number].output_tokens
        self._fleet.submit(
            index, EngineRequest(str(number), arrival.prompt_tokens, output, arrival.blocks), now
        )

    def _release(self, router: int, now: float) -> None:
        holding = self._holding[router]
        if holding is not None:
            for number, index in holding.released(now):
                self._submit(number, index, now)

    def _on_event(self, _index: int, event: Event) -> None:
        if isinstance(event, FirstToken):
            number = int(event.id)
            policy = self._policies[number % len(self._policies)]
            policy.first_token(number, event.at)
            self._release(number % len(self._policies), event.at)
        elif isinstance(event, Finished):
            number = int(event.id)
            first = event.at if event.first_token_at is None else event.first_token_at
            self._outcomes.append(
                SimulatedOutcome(
                    number,
                    self._trace.requests[number].arrival_seconds,
                    first,
                    event.at,
                    event.prompt_tokens,
                    event.cached_tokens,
                    event.output_tokens,
                    local_prefill=True,
                )
            )
            policy = self._policies[number % len(self._policies)]
            policy.finished(number, event.at, event.cached_tokens, event.output_tokens)
            self._release(number % len(self._policies), event.at)


class _Pairs:
    """Prefill engines come first in the fleet, decode engines after them."""

    def __init__(
        self, trace: Trace, setting: Setting, policies: Sequence[PairPolicy], latency: LatencyModel
    ) -> None:
        if not 0 < setting.prefill < setting.engines:
            raise ValueError(
                f"{setting.prefill} of {setting.engines} engines cannot prefill: leave some of each"
            )
        settings = setting.engine_settings()
        self._trace = trace
        self._setting = setting
        self._policies = policies
        self._holding = [each if isinstance(each, HoldingPairPolicy) else None for each in policies]
        self._fleet = EngineFleet([Engine(settings, latency) for _ in range(setting.engines)], self._on_event)
        self._scrapes = _Scrapes(policies, self._fleet)
        self._flights: dict[int, _Flight] = {}
        self._outcomes: list[SimulatedOutcome] = []

    def run(self) -> list[SimulatedOutcome]:
        for number, request in enumerate(self._trace.requests):
            arrival = arrival_of(number, request, self._setting.block_tokens)
            self._scrapes.up_to(arrival.at)
            policy = self._policies[number % len(self._policies)]
            placement = policy.place(arrival)
            if placement is not None:
                self._begin(number, placement, arrival.at)
            self._release(number % len(self._policies), arrival.at)
        self._fleet.run(inf)
        return self._outcomes

    def _begin(self, number: int, placement: Placement, now: float) -> None:
        request = self._trace.requests[number]
        arrival = arrival_of(number, request, self._setting.block_tokens)
        flight = _Flight(arrival, placement, request.output_tokens)
        self._flights[number] = flight
        if placement.prefill is None:
            self._decode(flight, now)
        else:
            prefill = EngineRequest(str(number), request.input_tokens, 1, arrival.blocks, pin=True)
            self._fleet.submit(placement.prefill, prefill, now)

    def _release(self, router: int, now: float) -> None:
        holding = self._holding[router]
        if holding is not None:
            for number, placement in holding.released(now):
                self._begin(number, placement, now)

    def _decode(self, flight: _Flight, now: float) -> None:
        arrival = flight.arrival
        remote = 0 if flight.placement.prefill is None else arrival.prompt_tokens
        request = EngineRequest(
            str(arrival.number),
            arrival.prompt_tokens,
            flight.output_tokens,
            arrival.blocks,
            remote_tokens=remote,
        )
        self._fleet.submit(self._setting.prefill + flight.placement.decode, request, now)

    def _on_event(self, index: int, event: Event) -> None:
        if isinstance(event, FirstToken | Fetch | Finished):
            number = int(event.id)
            flight = self._flights.get(number)
            if flight is None:
                return
            policy = self._policies[number % len(self._policies)]
            if index < self._setting.prefill:
                self._on_prefill(event, flight, policy)
            else:
                self._on_decode(event, flight, policy)
            if not isinstance(event, Fetch):
                self._release(number % len(self._policies), event.at)

    def _on_prefill(self, event: Event, flight: _Flight, policy: PairPolicy) -> None:
        if isinstance(event, Finished):
            flight.cached_tokens = event.cached_tokens
            policy.prefilled(flight.arrival.number, event.at, event.cached_tokens)
            self._decode(flight, event.at)

    def _on_decode(self, event: Event, flight: _Flight, policy: PairPolicy) -> None:
        arrival, prefill = flight.arrival, flight.placement.prefill
        if isinstance(event, Fetch) and prefill is not None:
            # A lease that has run out while the request waited for room changes nothing here: the transfer is taken as
            # made, which flatters overloaded decode pools alike under every policy.
            self._fleet.release(prefill, event.id, event.at)
            self._fleet.deliver(self._setting.prefill + flight.placement.decode, event.id, event.at)
        elif isinstance(event, FirstToken):
            policy.first_token(arrival.number, event.at)
        elif isinstance(event, Finished):
            cached = event.cached_tokens if prefill is None else flight.cached_tokens
            first = event.at if event.first_token_at is None else event.first_token_at
            self._outcomes.append(
                SimulatedOutcome(
                    arrival.number,
                    arrival.at,
                    first,
                    event.at,
                    event.prompt_tokens,
                    cached,
                    event.output_tokens,
                    local_prefill=prefill is None,
                )
            )
            del self._flights[arrival.number]
            policy.finished(arrival.number, event.at, event.cached_tokens, event.output_tokens)


class _Flight:
    """A request on its way through a pair."""

    __slots__ = ("arrival", "cached_tokens", "output_tokens", "placement")

    def __init__(self, arrival: Arrival, placement: Placement, output_tokens: int) -> None:
        self.arrival = arrival
        self.placement = placement
        self.output_tokens = output_tokens
        self.cached_tokens = 0
