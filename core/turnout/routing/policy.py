"""Turnout's choice of a backend: prefix-aware, charged by work, from its own accounting; for pools of either kind.

`turnout.routing.cost` has the formula. Without a clock and without I/O: the caller passes the time, reports each
request's progress, and passes scrapes in. The router and the simulator run this same code.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from turnout.routing.cost import (
    CONGESTION_BASE,
    OVERBOOKED,
    Cost,
    adapter_seconds,
    congestion_weight,
    decode_seconds,
    kv_wait_seconds,
    queue_seconds,
)
from turnout.routing.session_affinity import affinity_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing.load_tracker import BackendState, InFlightRequest, LoadTracker, Prompt, Scrape
    from turnout.routing.work import WorkModel

_LEAST_WORK_SECONDS: Final = 1e-3

AFFINITY_SHARE_AT_REST: Final = 0.01
AFFINITY_SHARE: Final = 0.05
AFFINITY_SHARE_OF_OTHERS: Final = 0.2
"""Shares of a prompt that are expected at its session's affinity target. The first decides between workers that are alike, so
that routers that do not exchange messages agree. The second is of what the congestion weight adds under load: where shadows
are at a loss, it keeps a session's prompts together. The third, times others' share of all requests, is for routers
that know only by scraping what others have sent."""
STALL_WEIGHT: Final = 0.1
"""What a second of one stalled stream counts, where a decode worker computes a prompt, against a second of waiting for
a first token."""


LOCAL_MARGIN_SECONDS: Final = 0.1
"""What local prefill must save where a prefill worker has nothing to do: the prompt is that pool's business."""


@mypyc_attr(acyclic=True)
class Estimate:
    """A backend and its estimate: `matched` leading blocks are expected to be cached there, the rest takes `seconds`.

    `cached` is the same in tokens, which an engine's own events give more exactly than blocks of text.
    `wait` are the seconds in which the first token is expected there. `at_affinity_target`: it is the session's affinity target, where
    other routers may have sent requests that this router does not know of. `compared` is what every backend would have cost. `backlog`
    are the seconds until the backend can begin with it, see `turnout.routing.shortest_job`.
    """

    __slots__ = (
        "at_affinity_target",
        "backlog",
        "cached",
        "compared",
        "cost",
        "matched",
        "seconds",
        "state",
        "wait",
    )

    def __init__(  # noqa: PLR0917 - made for every request
        self,
        state: BackendState,
        matched: int,
        cached: int,
        seconds: float,
        cost: float,
        wait: float,
        compared: list[Cost],
        backlog: float,
        *,
        at_affinity_target: bool = False,
    ) -> None:
        self.state = state
        self.matched = matched
        self.cached = cached
        self.seconds = seconds
        self.cost = cost
        self.wait = wait
        self.compared = compared
        self.backlog = backlog
        self.at_affinity_target = at_affinity_target

    def costs(self) -> list[Cost]:
        """Return what every backend would have cost, cheapest first."""
        return sorted(self.compared, key=lambda each: each.total)


@mypyc_attr(acyclic=True)
class PairEstimate:
    """The workers that *policy* picked for a request: one that decodes and, unless it computes the prompt itself, one for prefill."""

    __slots__ = ("decode", "policy", "prefill", "prompt")

    def __init__(
        self, policy: PrefixAware, prompt: Prompt, decode: Estimate, prefill: Estimate | None
    ) -> None:
        self.policy = policy
        self.prompt = prompt
        self.decode = decode
        self.prefill = prefill


class PrefixAware:
    """The policy for one deployment, over the backends of its `tracker`."""

    def __init__(self, tracker: LoadTracker, work: WorkModel) -> None:
        self.tracker = tracker
        self.work = work
        self.held_requests = 0
        """Requests that wait in the router, see `turnout.routing.shortest_job`: they count as load like those sent."""

    def choose(self, prompt: Prompt, states: Sequence[BackendState], now: float) -> Estimate:
        """Return the cheapest of *states*, which are aggregated workers or prefill workers. Raise ValueError for none."""
        if not states:
            raise ValueError("there is no backend to choose from")
        self.tracker.advance(states, now)
        matches, exact = self.tracker.holdings(prompt)
        return self._cheapest(prompt, states, matches, exact, now)

    def choose_pair(
        self,
        prompt: Prompt,
        prefills: Sequence[BackendState],
        decodes: Sequence[BackendState],
        now: float,
        *,
        local_below_tokens: int = 0,
        may_compute_locally: bool = True,
    ) -> PairEstimate:
        """Return the workers that decode and compute *prompt*. Raise ValueError if there is none to decode.

        The decode worker's cost with a remote prompt is the cheapest prefill worker's, the transfer of what it
        lacks, its decode step and its wait for KV room; with a local one it is that of an aggregated worker and the
        stall of its streams. A decode worker that is out of KV room computes no prompts: its time is what is short,
        and what is cached there now will not be when the request is admitted. Without *may_compute_locally* decode workers
        compute no prompts as long as there is a prefill worker. Else fewer than *local_below_tokens* uncached tokens are always computed where they are
        decoded.
        """
        if not decodes:
            raise ValueError("there is no backend to decode with")
        tracker, work, size = self.tracker, self.work, self.tracker.block_tokens
        tracker.advance(prefills, now)
        tracker.advance(decodes, now)
        matches, exact = tracker.holdings(prompt)
        prefill = self._cheapest(prompt, prefills, matches, exact, now) if prefills else None
        weight = self._congestion_weight(decodes, now, pair=True)
        needed = tracker.blocks_of(prompt)
        idle = prefill is not None and not prefill.state.waiting
        margin = LOCAL_MARGIN_SECONDS if idle else 0.0
        compared: list[Cost] = []
        best: Estimate | None = None
        best_is_local = False
        for state in decodes:
            matched = matches[state.slot]
            cached = matched * size if exact is None else exact[state.slot]
            uncached = max(1, prompt.tokens - cached)
            cost = self._cost(state, prompt, matched, cached, needed, weight, now)
            seconds = cost.prefill
            local = (
                margin + cost.total + STALL_WEIGHT * state.running * seconds if may_compute_locally else inf
            )
            remote = float("inf")
            if prefill is not None:
                # The decode term of no prefill at all: one step of waiting.
                step = cost.decode / (1 + (cost.queue + seconds) / work.full_iteration)
                remote = prefill.cost + uncached * work.transfer_per_token + step + cost.kv_wait
            worth_moving = uncached >= local_below_tokens and local >= remote
            is_local = (
                prefill is None
                or prompt.tokens < local_below_tokens
                or not (worth_moving or cost.kv_wait > 0)
            )
            total = cost.total = local if is_local else remote
            compared.append(cost)
            if (
                best is None
                or total < best.cost
                or (total == best.cost and state.last_pick < best.state.last_pick)
            ):
                wait = cost.wait if is_local else total
                backlog = self._wait_for_room(cost) + (cost.queue if is_local else 0.0)
                taken = seconds if is_local else 0.0
                best = Estimate(state, matched, cached, taken, total, wait, compared, backlog)
                best_is_local = is_local
        if best is None:
            raise ValueError("there is no backend to decode with")
        return PairEstimate(self, prompt, best, None if best_is_local else prefill)

    def scraped(self, backend_id: str, scrape: Scrape, now: float) -> None:
        """Take note of a scrape of one backend; of one that is not known nothing is noted."""
        state = self.tracker.states.get(backend_id)
        if state is not None:
            tokens = self.tracker.scraped(state, scrape, now)
            prompts = max(1.0, tokens / max(1.0, self.tracker.uncached_tokens))
            state.others_queue = prompts * self.work.prefill(round(tokens / prompts), 0)

    def sent(self, pick: Estimate, prompt: Prompt, now: float) -> InFlightRequest:
        """Note that *prompt* has been sent as *pick* says. Report on the request through the tracker."""
        request = self.tracker.sent(pick.state, prompt, pick.matched, pick.seconds, now, pick.cached)
        request.at_affinity_target = pick.at_affinity_target
        return request

    def _cheapest(
        self,
        prompt: Prompt,
        states: Sequence[BackendState],
        matches: list[int],
        exact: list[int] | None,
        now: float,
    ) -> Estimate:
        size = self.tracker.block_tokens
        weight = self._congestion_weight(states, now)
        needed = self.tracker.blocks_of(prompt)
        target = self._affinity_target(prompt, states, matches)
        chosen, least = states[0], inf
        best: Cost | None = None
        compared: list[Cost] = []
        for state in states:
            matched = matches[state.slot]
            cached = matched * size if exact is None else exact[state.slot]
            cost = self._cost(state, prompt, matched, cached, needed, weight, now)
            if state is target:
                cost.affinity_bonus = self._expected_hit_bonus(states, cost.prefill, cost.congestion)
                cost.total -= cost.affinity_bonus
            compared.append(cost)
            if (
                best is None
                or cost.total < least
                or (cost.total == least and state.last_pick < chosen.last_pick)
            ):
                chosen, best, least = state, cost, cost.total
        if best is None:
            raise ValueError("there is no backend to choose from")
        backlog = best.queue + self._wait_for_room(best)
        return Estimate(
            chosen,
            matches[chosen.slot],
            best.cached_tokens,
            best.prefill,
            least,
            best.wait,
            compared,
            backlog,
            at_affinity_target=chosen is target,
        )

    def _cost(  # noqa: PLR0917 - called for every backend of every request
        self,
        state: BackendState,
        prompt: Prompt,
        matched: int,
        tokens: int,
        needed: int,
        weight: float,
        now: float,
    ) -> Cost:
        """Return what *prompt* costs at *state*, which holds *matched* of its blocks and *tokens* of its tokens."""
        work, tracker, cache = self.work, self.tracker, state.cache
        iteration, residence = work.full_iteration, tracker.residence_seconds
        cached = min(tokens, prompt.tokens - 1)
        prefill = work.prefill(prompt.tokens - cached, cached)
        running, context = float(state.running), float(state.context_tokens)
        step = running * work.decode_per_sequence + context * work.decode_per_context_token
        queue = queue_seconds(state, step, iteration, now)
        blocks = cache.held + needed - matched
        if state.scraped_at is not None and state.others_running:
            queue += state.queue_of_others(now)
            share = state.share_of_others(now, residence)
            blocks += int(state.others_kv * share)
            running += state.others_running * share
            context += state.others_kv * share * tracker.block_tokens
            step = running * work.decode_per_sequence + context * work.decode_per_context_token
        return Cost(
            state.id,
            tokens,
            len(state.waiting),
            queue,
            prefill,
            weight * prefill,
            decode_seconds(step, queue + prefill, iteration),
            kv_wait_seconds(blocks, cache.capacity, residence),
            adapter_seconds(state, prompt.adapter, weight, residence),
        )

    def _wait_for_room(self, cost: Cost) -> float:
        """Return the seconds until a backend has KV room, overbooked by as much as answers have yet to grow."""
        if not cost.kv_wait:
            return 0.0
        return max(0.0, cost.kv_wait - OVERBOOKED * self.tracker.residence_seconds)

    def _congestion_weight(self, states: Sequence[BackendState], now: float, *, pair: bool = False) -> float:
        work_seconds = max(self.tracker.work_seconds, _LEAST_WORK_SECONDS)
        held = self.held_requests / len(states)
        waiting: list[float] = []
        fewest = inf
        for state in states:
            here = len(state.waiting) + held
            if state.others_queue:
                here += state.queue_of_others(now) / work_seconds
            waiting.append(here)
            fewest = min(fewest, here)
        return congestion_weight(waiting, inf if pair else 2 * fewest + 1)

    def _affinity_target(
        self, prompt: Prompt, states: Sequence[BackendState], matches: list[int]
    ) -> BackendState | None:
        """Return the session's affinity target: by the first block that, as far as this router knows, no backend holds. None: each block has a holder."""
        known = max(matches)
        if known >= len(prompt.blocks):
            return None
        block = prompt.blocks[known]
        target, highest = None, -1
        for state in states:
            rank = affinity_rank(block, state.seed)
            if rank > highest:
                target, highest = state, rank
        return target

    def _expected_hit_bonus(self, states: Sequence[BackendState], prefill: float, charged: float) -> float:
        """Return the seconds that are expected at the session's affinity target."""
        own = others = 0
        for state in states:
            own += state.in_flight
            others += state.others_running
        bonus = AFFINITY_SHARE_AT_REST * prefill + AFFINITY_SHARE * (charged - CONGESTION_BASE * prefill)
        if others:
            bonus += AFFINITY_SHARE_OF_OTHERS * others / (own + others) * (prefill + charged)
        return bonus
