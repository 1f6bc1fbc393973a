"""LoRA adapters: requests for one stay together, none displaces another for nothing, no worker drowns for their sake."""

from __future__ import annotations

import random
from collections import Counter
from heapq import heappop, heappush

from turnout.routing.load_tracker import BackendState, InFlightRequest, LoadTracker, Prompt
from turnout.routing.policy import PrefixAware
from turnout.routing.work import WorkModel
from turnout_router.fleet.scrapes.adapters import LoadedAdapters

BLOCK = 512
RESIDENCE = 4.0


def router(*names: str, room: int) -> PrefixAware:
    tracker = LoadTracker(BLOCK)
    tracker.set_backends((name, 400_000) for name in names)
    for state in tracker.states.values():
        state.adapter_room = room
    return PrefixAware(tracker, WorkModel())


def costs(policy: PrefixAware, adapter: str) -> dict[str, float]:
    states = list(policy.tracker.states.values())
    pick = policy.choose(Prompt(BLOCK, (), adapter=adapter), states, 0.0)
    return {cost.backend: round(cost.adapter, 6) for cost in pick.compared}


def send(policy: PrefixAware, state: BackendState, adapter: str | None) -> InFlightRequest:
    prompt = Prompt(BLOCK, (), adapter=adapter)
    return policy.sent(policy.choose(prompt, [state], 0.0), prompt, 0.0)


def test_what_an_adapter_costs() -> None:
    """Nothing where it is loaded, its loading where there is room, more where another makes way, most where none can."""
    policy = router("in use", "loaded", "free", "full", "busy", room=2)
    states = policy.tracker.states
    send(policy, states["in use"], "sql")
    states["loaded"].adapters = frozenset({"sql"})
    states["full"].adapters = states["busy"].adapters = frozenset({"law", "chess"})
    for adapter in ("law", "chess"):
        send(policy, states["busy"], adapter)
    seen = costs(policy, "sql")
    assert seen["in use"] == seen["loaded"] == 0.0
    assert 0.0 < seen["free"] < seen["full"] < seen["busy"]
    assert seen["busy"] > policy.tracker.residence_seconds


def test_it_is_not_known_how_much_room_there_is() -> None:
    """Without metrics it is the loading alone that counts."""
    policy = router("a", room=0)
    state = policy.tracker.states["a"]
    state.adapters = frozenset({"law", "chess"})
    send(policy, state, "law")
    assert costs(policy, "sql") == {"a": 0.5}


def test_uses_are_counted_to_their_end() -> None:
    """Requests with an adapter and without, first token or not, ended twice: nothing is left, nothing goes below zero."""
    policy = router("a", room=1)
    state = policy.tracker.states["a"]
    requests = [send(policy, state, adapter) for adapter in ("sql", "sql", "law", None)]
    assert state.adapter_uses == {"sql": 2, "law": 1}
    policy.tracker.first_token(requests[0], 1.0)
    for request in (*requests, *requests):
        policy.tracker.finished(request, 2.0)
    assert state.adapter_uses == {}


def serve(*, known: bool) -> tuple[int, Counter[str], float]:
    """Serve 3,000 requests for eight adapters on four workers with room for three; return loads, shares, mean wait.

    A worker computes prompts one after the other, a request runs for `RESIDENCE`. Not *known*: the choice is made as
    if no prompt asked for an adapter.
    """
    rng = random.Random(5)  # noqa: S311 - reproducible traffic, no secret
    names = [f"worker-{each}" for each in range(4)]
    policy = router(*names, room=3)
    states = list(policy.tracker.states.values())
    caches = {name: LoadedAdapters() for name in names}
    loaded: dict[str, frozenset[str]] = {name: caches[name].seen(frozenset(), 3) for name in names}
    free = dict.fromkeys(names, 0.0)
    events: list[tuple[float, int, InFlightRequest, bool]] = []
    loads, number, now, waits = 0, 0, 0.0, 0.0
    served: Counter[str] = Counter()
    for _ in range(3000):
        now += rng.expovariate(12.0)
        while events and events[0][0] <= now:
            at, _, request, first = heappop(events)
            if first:
                policy.tracker.first_token(request, at)
                number += 1
                heappush(events, (at + RESIDENCE, number, request, False))
            else:
                policy.tracker.finished(request, at)
        adapter = f"adapter-{min(int(rng.expovariate(0.5)), 7)}"
        tokens = rng.randrange(1, 24) * BLOCK
        prompt = Prompt(tokens, (), adapter=adapter if known else None)
        pick = policy.choose(prompt, states, now)
        name = pick.state.id
        begin = max(now, free[name])
        if adapter not in loaded[name]:
            loads += 1
            begin += 0.5
        loaded[name] = caches[name].used(adapter)
        if known:
            pick.state.adapters = loaded[name]
        free[name] = begin + policy.work.prefill(tokens, 0)
        waits += free[name] - now
        served[name] += 1
        number += 1
        heappush(events, (free[name], number, policy.sent(pick, prompt, now), True))
    return loads, served, waits / 3000


def test_requests_for_one_adapter_stay_together_without_drowning_a_worker() -> None:
    """Far fewer loads than without the term, and still no worker has twice its share; all wait less for it."""
    loads, served, wait = serve(known=True)
    blind_loads, _, blind_wait = serve(known=False)
    assert loads < 0.5 * blind_loads
    assert wait < blind_wait
    assert max(served.values()) < 2 * 3000 / 4
    assert len(served) == 4
