"""Engines' reports in place of estimates: which one counts for what, and how tokens become blocks of text."""

from __future__ import annotations

from turnout.routing.by_prefix import PrefixReason
from turnout.routing.events import CLEARED_AT_ONCE, Cleared, Stored
from turnout.routing.exact import ExactCaches
from turnout.routing.load_tracker import LoadTracker, Prompt
from turnout.routing.policy import PairEstimate, PrefixAware
from turnout.routing.tokens import Tokenized, chain
from turnout.routing.work import WorkModel

SIZE = 16
BLOCKS = tuple(range(100, 110))
TOKENS = list(range(3200))
"""Ten blocks of text, taken for 256 tokens each: in truth they have 3,200."""


def prompt(revision: str = "a", size: int = SIZE) -> Prompt:
    chains = {size: chain(TOKENS, size)}
    return Prompt(len(TOKENS), BLOCKS, tokenized=Tokenized(revision, len(TOKENS), chains, 320))


def short_prompt(tokens: int) -> Prompt:
    """Return a prompt that is too short for a block of text."""
    chains = {SIZE: chain(TOKENS[:tokens], SIZE)}
    return Prompt(tokens, tokenized=Tokenized("a", tokens, chains, 320))


def make_tracker(*engines: str, revision: str = "a") -> tuple[LoadTracker, ExactCaches]:
    """Return the tracker of the backends one and two, of which *engines* publish events and hold nothing yet."""
    found = LoadTracker(256)
    found.set_backends([("one", 100_000), ("two", 100_000)])
    found.exact = caches = ExactCaches()
    caches.set_engines((each, revision, 100_000) for each in engines)
    for each in engines:
        caches.stream(each).connected()
        caches.stream(each).replay_ended()
    return found, caches


def hold(caches: ExactCaches, engine: str, tokens: int) -> None:
    """Let *engine* hold the prompt's first *tokens* tokens."""
    count = tokens // SIZE
    stored = Stored(tuple(range(1, count + 1)), None, tuple(TOKENS[: count * SIZE]), SIZE)
    caches.stream(engine).live(caches.stream(engine).next or 0, [stored])


def test_an_engines_word_becomes_blocks_of_text() -> None:
    """1,600 of 3,200 tokens are five of ten blocks, whatever a block's estimate of tokens is."""
    tracker, caches = make_tracker("one", "two")
    hold(caches, "two", 1600)
    assert tracker.matches(prompt()) == [0, 5]
    hold(caches, "one", 3200)
    assert tracker.matches(prompt()) == [10, 5]


def test_a_prompt_below_a_block_of_text_goes_where_its_tokens_are() -> None:
    """Of 100 tokens one engine holds 96: it is chosen, wherever it stands, and the reason says 96."""
    for holder in ("one", "two"):
        tracker, caches = make_tracker("one", "two")
        policy = PrefixAware(tracker, WorkModel())
        hold(caches, holder, 96)
        asked = short_prompt(100)
        pick = policy.choose(asked, list(tracker.states.values()), 0.0)
        assert (pick.state.id, pick.matched, pick.cached) == (holder, 0, 96)
        assert {each.backend: each.cached_tokens for each in pick.compared}[holder] == 96
        assert (
            "about 96 tokens cached" in PrefixReason(PairEstimate(policy, asked, pick, None), None).sentence
        )
        assert policy.sent(pick, asked, 0.0).uncached_tokens == 4


def test_a_pair_is_compared_in_tokens() -> None:
    """A decode worker that holds 96 of 100 tokens computes the rest itself, a prefill worker that does is chosen."""
    tracker, caches = make_tracker("one", "two")
    policy = PrefixAware(tracker, WorkModel())
    hold(caches, "two", 96)
    one, two = tracker.states["one"], tracker.states["two"]
    tracker.set_backends([("one", 100_000), ("two", 100_000), ("three", 100_000)])
    local = policy.choose_pair(short_prompt(100), [one], [two], 0.0, local_below_tokens=5)
    assert local.prefill is None
    assert local.decode.cached == 96
    remote = policy.choose_pair(short_prompt(100), [one, two], [tracker.states["three"]], 0.0)
    assert remote.prefill is not None
    assert (remote.prefill.state.id, remote.prefill.cached) == ("two", 96)


def test_hits_are_counted_in_the_engines_own_blocks() -> None:
    """1,744 of 3,200 tokens are 109 blocks of 16: no rounding to the text's blocks, however long the prompt is."""
    tracker, caches = make_tracker("one", "two")
    hold(caches, "two", 1744)
    assert tracker.holdings(prompt()) == ([0, 5], [0, 1744])


def test_an_answers_usage_is_compared_in_the_same_tokens() -> None:
    """All that was expected was there: nothing is learned of the shadow, though blocks of text are no 256 tokens."""
    tracker, caches = make_tracker("one")
    policy = PrefixAware(tracker, WorkModel())
    hold(caches, "one", 3200)
    state = tracker.states["one"]
    before = state.cache._room
    request = policy.sent(policy.choose(prompt(), [state], 0.0), prompt(), 0.0)
    assert request.text_tokens(256) == 2560, "what is reported to other routers, which know no tokens"
    tracker.finished(request, 1.0, 3184, 3200)
    assert state.cache._room == before
    request = policy.sent(policy.choose(prompt(), [state], 0.0), prompt(), 0.0)
    tracker.finished(request, 1.0, 1600, 3200)
    assert state.cache._room < before


def test_what_is_believed_of_a_known_cache_does_not_count() -> None:
    """It was sent there and is gone: the engine says so. Only what is under way there counts beside its word."""
    tracker, caches = make_tracker("one")
    policy = PrefixAware(tracker, WorkModel())
    request = policy.sent(policy.choose(prompt(), [tracker.states["one"]], 0.0), prompt(), 0.0)
    assert tracker.matches(prompt()) == [10, 0], "it is being computed there"
    tracker.finished(request, 1.0)
    assert tracker.index.match(BLOCKS, 2) == [10, 0]
    assert tracker.matches(prompt()) == [0, 0]
    hold(caches, "one", 3200)
    assert tracker.matches(prompt()) == [10, 0]


def test_what_is_known_in_part_never_says_less_than_the_belief() -> None:
    """Some of its events were missed: the larger of the estimate and the engine's report counts."""
    tracker, caches = make_tracker("one", "two")
    for each in ("one", "two"):
        state = tracker.states[each]
        tracker.finished(tracker.sent(state, Prompt(1024, BLOCKS[:4]), 0, 0.1, 0.0), 1.0)
    caches.stream("one").live(0, None)
    assert tracker.matches(prompt()) == [4, 0]
    stored = Stored(tuple(range(1, 101)), None, tuple(TOKENS[:1600]), SIZE)
    caches.stream("one").live(1, [stored])
    assert tracker.matches(prompt()) == [5, 0]
    caches.stream("one").live(2, [Cleared()])
    assert tracker.matches(prompt()) == [0, 0]
    caches.stream("one").disconnected()
    assert tracker.matches(prompt()) == [4, 0], "its cache is unknown now"


def test_other_revisions_and_backends_without_events_are_a_matter_of_belief() -> None:
    """Tokens of one model mean nothing to another; and an engine without events is estimated as before."""
    tracker, caches = make_tracker("one")
    hold(caches, "one", 3200)
    tracker.finished(tracker.sent(tracker.states["two"], Prompt(1024, BLOCKS[:4]), 0, 0.1, 0.0), 1.0)
    assert tracker.matches(prompt()) == [10, 4]
    assert tracker.matches(prompt("b")) == [0, 4]
    assert tracker.matches(Prompt(2560, BLOCKS)) == [0, 4]


def test_engines_that_go_take_what_they_said_with_them() -> None:
    """Their numbers are given to others, who hold nothing yet; revisions and sizes follow the fleet."""
    tracker, caches = make_tracker("one", "two")
    hold(caches, "one", 3200)
    assert caches.block_sizes() == {"a": (SIZE,)}
    caches.set_engines([("two", "b", 100_000), ("three", "b", 100_000)])
    assert len(caches.index) == 0
    assert caches.block_sizes() == {}
    hold(caches, "two", 1600)
    assert caches.block_sizes() == {"b": (SIZE,)}
    assert tracker.matches(prompt("b")) == [0, 5]


def test_a_large_cache_is_forgotten_at_once_and_swept_in_turns() -> None:
    """What an engine has cleared counts no longer from that moment on, though its blocks are taken out bit by bit."""
    called: list[None] = []
    tracker, _ = make_tracker()
    tracker.exact = caches = ExactCaches(lambda: called.append(None))
    caches.set_engines([("one", "a", 1_000_000), ("two", "a", 1_000_000)])
    many = list(range(10_000))
    asked = Prompt(10_000, tokenized=Tokenized("a", 10_000, {1: chain(many, 1)}, 512))
    for each in ("one", "two"):
        caches.stream(each).connected()
        caches.stream(each).replay_ended()
        caches.stream(each).live(0, [Stored(tuple(many), None, tuple(many), 1)])
    assert tracker.holdings(asked)[1] == [10_000, 10_000]
    caches.stream("one").live(1, [Cleared(), Stored((1,), None, (0,), 1)])
    assert len(called) == 1
    assert tracker.holdings(asked)[1] == [1, 10_000]
    caches.set_engines([("one", "a", 1_000_000)])
    assert tracker.holdings(asked)[1] == [1, 0]
    turns = 1
    while caches.sweep():
        turns += 1
        assert tracker.holdings(asked)[1] == [1, 0]
    assert turns == -(-20_000 // CLEARED_AT_ONCE)
    assert len(caches.index) == 1
    assert not caches.sweep()
    caches.set_engines([("one", "a", 1_000_000), ("three", "a", 1_000_000), ("four", "a", 1_000_000)])
    assert caches._numbers == 4, "numbers are used again"


def test_what_an_engine_says_concerns_its_own_deployment_alone() -> None:
    """An engine that claims another deployment's prompts, hash for hash, changes nothing there."""
    (tracker, own), (others, hostile) = make_tracker("one", "two"), make_tracker("one", "two")
    hold(own, "two", 1600)
    before = tracker.holdings(prompt()), others.holdings(prompt())
    assert before[0] != before[1]
    hold(hostile, "one", 3200)
    caches = hostile.stream("two")
    caches.live(caches.next or 0, [Stored((1,), None, tuple(TOKENS[:SIZE]), SIZE), Cleared()])
    assert tracker.holdings(prompt()) == before[0]
    assert others.holdings(prompt())[1] == [3200, 0]


def test_an_engines_claims_end_at_the_prompt_and_at_its_bound() -> None:
    """Blocks of all sizes and twice as many as its cache can hold: hits are no more than the prompt, blocks no more than twice its cache."""
    tracker, caches = make_tracker("one")
    hold(caches, "one", 3200)
    assert tracker.holdings(short_prompt(100))[1] == [96, 0]
    stream = caches.stream("one")
    events = [
        Stored(tuple(range(n, n + 16)), None, tuple(range(n, n + 256)), SIZE)
        for n in range(10_000, 30_000, 16)
    ]
    stream.live(stream.next or 0, events)
    while stream.work():
        pass
    assert len(stream.cache) == 2 * 100_000 // 16
    stream.live(stream.next or 0, [Stored((5,), None, (1, 2, 3), 3), Stored((6,), None, (), 0)])
    assert stream.cache.block_size == SIZE


def test_a_prompt_in_another_size_of_blocks_matches_nothing() -> None:
    """Chains of blocks of 32 tokens say nothing about an engine of 16: it holds nothing of them, as far as known."""
    tracker, caches = make_tracker("one")
    hold(caches, "one", 3200)
    assert tracker.matches(prompt(size=32)) == [0, 0]
