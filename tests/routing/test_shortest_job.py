"""Holding requests: only those that no worker could start, the shortest first, none forever, and nothing leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.routing.load_tracker import InFlightRequest, LoadTracker, Prompt
from turnout.routing.policy import PairEstimate, PrefixAware
from turnout.routing.shortest_job import MAX_TRIES, PATIENCE, QueuedRequest, ShortestJobQueue, must_wait
from turnout.routing.work import WorkModel

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 512


def router(*names: str, tokens: int = 400_000) -> PrefixAware:
    tracker = LoadTracker(BLOCK)
    tracker.set_backends((name, tokens) for name in names)
    return PrefixAware(tracker, WorkModel())


def prompt(number: int, blocks: int) -> Prompt:
    return Prompt(blocks * BLOCK, tuple(number * 1000 + depth for depth in range(blocks)))


def chooser(policy: PrefixAware, now: float = 0.0) -> Callable[[Prompt], PairEstimate]:
    states = list(policy.tracker.states.values())
    return lambda what: PairEstimate(policy, what, policy.choose(what, states, now), None)


def send(policy: PrefixAware, what: Prompt, now: float = 0.0) -> InFlightRequest:
    picks = chooser(policy, now)(what)
    return policy.sent(picks.decode, picks.prompt, now)


def released(policy: PrefixAware, queue: ShortestJobQueue, now: float = 0.0) -> list[QueuedRequest]:
    sent = []
    while (found := queue.next(chooser(policy, now))) is not None:
        policy.sent(found[1].decode, found[1].prompt, now)
        sent.append(found[0])
    return sent


def test_what_can_begin_at_once_is_not_held() -> None:
    """Idle backends take everything, and so does one with less than an iteration of work in advance."""
    policy = router("a", "b")
    assert not must_wait(chooser(policy)(prompt(1, 200)))
    send(policy, prompt(2, 4))
    send(policy, prompt(3, 4))
    assert not must_wait(chooser(policy)(prompt(4, 200)))


def test_what_would_only_wait_is_held_until_a_first_token() -> None:
    """Both backends compute long prompts: the next request waits, and goes to the one that is done first."""
    policy = router("a", "b")
    first, second = send(policy, prompt(1, 60)), send(policy, prompt(2, 80))
    assert must_wait(chooser(policy)(prompt(3, 4)))
    queue = ShortestJobQueue(policy)
    queued = queue.push(prompt(3, 4), 0.0)
    assert released(policy, queue) == []
    policy.tracker.first_token(first, 0.7)
    found = queue.next(chooser(policy, 0.7))
    assert found is not None
    assert (found[0], found[1].decode.state) == (queued, first.state)
    assert found[1].decode.state is not second.state
    assert (queued.waits, len(queue)) == (False, 0)


def test_a_full_kv_cache_holds_requests_until_one_ends() -> None:
    """Nothing is computed any more, but there is no room: the end of an answer makes it."""
    policy = router("a", tokens=100 * BLOCK)
    running = [send(policy, prompt(each, 30)) for each in range(3)]
    for request in running:
        policy.tracker.first_token(request, 1.0)
    queue = ShortestJobQueue(policy)
    queued = queue.push(prompt(9, 30), 1.0)
    assert released(policy, queue, 1.0) == []
    policy.tracker.finished(running[0], 5.0)
    assert released(policy, queue, 5.0) == [queued]


def test_what_never_fits_is_sent_when_the_backend_is_empty() -> None:
    """A request larger than the cache must not wait for room that no completion will make."""
    policy = router("a", tokens=10 * BLOCK)
    assert not must_wait(chooser(policy)(prompt(1, 30)))


def test_the_shortest_goes_first_but_no_one_waits_for_ever() -> None:
    """A short prompt overtakes a long one that came before it; one that comes after its patience is over does not."""
    long, short = prompt(2, 40), prompt(3, 4)
    seconds = WorkModel().prefill(40 * BLOCK, 0) - WorkModel().prefill(4 * BLOCK, 0)
    for later, overtakes in ((1.0, True), (PATIENCE * seconds + 1.0, False)):
        policy = router("a")
        busy = send(policy, prompt(1, 200))
        queue = ShortestJobQueue(policy)
        waits = queue.push(long, 0.0)
        comes = queue.push(short, later)
        policy.tracker.first_token(busy, later)
        found = queue.next(chooser(policy, later))
        assert found is not None
        assert found[0] is (comes if overtakes else waits)


def test_a_request_that_waits_for_one_backend_does_not_block_the_others() -> None:
    """The first in line prefers a busy backend, where its prefix is; who comes behind it takes the idle one."""
    policy = router("a", "b")
    cached = prompt(1, 60)
    at_home, other = policy.tracker.states.values()
    done = policy.sent(policy.choose(cached, [at_home], 0.0), cached, 0.0)
    policy.tracker.first_token(done, 0.0)
    policy.tracker.finished(done, 0.0)
    queue = ShortestJobQueue(policy)
    for state in (at_home, other):
        policy.sent(
            policy.choose(prompt(50 + state.slot, 60), [state], 0.0), prompt(50 + state.slot, 60), 0.0
        )
    waits, goes = queue.push(cached, 0.0), queue.push(prompt(2, 20), 0.0)
    policy.tracker.first_token(next(iter(other.waiting)), 0.4)
    assert released(policy, queue, 0.4) == [goes]
    assert waits.waits


def test_those_who_wait_count_as_overload() -> None:
    """The congestion weight grows with the requests held as with those sent."""
    policy = router("a", "b")
    send(policy, prompt(1, 60))
    send(policy, prompt(2, 60))
    before = chooser(policy)(prompt(3, 10)).decode.compared[0].congestion
    queue = ShortestJobQueue(policy)
    for each in range(10):
        queue.push(prompt(10 + each, 10), 0.0)
    assert chooser(policy)(prompt(3, 10)).decode.compared[0].congestion > 2 * before


def test_who_leaves_is_forgotten() -> None:
    """Withdrawn requests are never returned, twice is once, and what they leave behind is bounded."""
    policy = router("a")
    busy = send(policy, prompt(1, 200))
    queue = ShortestJobQueue(policy)
    pushed = [queue.push(prompt(10 + each, 4), 0.0) for each in range(500)]
    for queued in pushed[1:]:
        queue.withdraw(queued)
        queue.withdraw(queued)
    assert (len(queue), policy.held_requests) == (1, 1)
    assert len(queue._heap) <= 2 * len(queue) + MAX_TRIES
    policy.tracker.first_token(busy, 9.0)
    assert released(policy, queue, 9.0) == pushed[:1]
    assert policy.held_requests == 0


def test_no_worker_leaves_all_waiting() -> None:
    """Where a choice finds no worker at all, the requests stay until one comes or they are withdrawn."""
    policy = router("a")
    queue = ShortestJobQueue(policy)
    queue.push(prompt(1, 4), 0.0)
    assert queue.next(lambda _: None) is None
    assert len(queue) == 1


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=40),
    leave=st.sets(st.integers(0, 39)),
    blocks=st.integers(60, 400),
)
def test_every_request_goes_exactly_once(sizes: list[int], leave: set[int], blocks: int) -> None:
    """However long, however small the caches: when all that runs has ended, every request that stayed has been sent."""
    policy = router("a", "b", tokens=blocks * BLOCK)
    queue = ShortestJobQueue(policy)
    running: list[InFlightRequest] = []
    pushed = [queue.push(prompt(each, size), 0.0) for each, size in enumerate(sizes)]
    stay = [queued for each, queued in enumerate(pushed) if each not in leave]
    for queued in pushed:
        if queued not in stay:
            queue.withdraw(queued)
    sent: list[QueuedRequest] = []
    for second in range(1, 200):
        while (found := queue.next(chooser(policy, second))) is not None:
            running.append(policy.sent(found[1].decode, found[1].prompt, second))
            sent.append(found[0])
        if not running:
            break
        policy.tracker.first_token(running[0], second)
        policy.tracker.finished(running.pop(0), second)
    assert sorted(map(id, sent)) == sorted(map(id, stay))
    assert len(queue) == 0
