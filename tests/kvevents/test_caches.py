"""Engines' words in place of the belief: who is believed about what, and how tokens become blocks of text."""

from __future__ import annotations

from turnout.routing.events import Cleared, Stored
from turnout.routing.exact import ExactCaches
from turnout.routing.ledger import Ledger, Prompt
from turnout.routing.policy import PrefixAware
from turnout.routing.tokens import Tokenized, chain
from turnout.routing.work import WorkModel

SIZE = 16
BLOCKS = tuple(range(100, 110))
TOKENS = list(range(3200))
"""Ten blocks of text of 256 estimated tokens: in truth they have 3,200."""


def prompt(revision: str = "a", size: int = SIZE) -> Prompt:
    return Prompt(2560, BLOCKS, tokenized=Tokenized(revision, len(TOKENS), {size: chain(TOKENS, size)}))


def ledger(*engines: str, revision: str = "a") -> tuple[Ledger, ExactCaches]:
    """Return the books of the backends one and two, of which *engines* publish events and hold nothing yet."""
    found = Ledger(256)
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
    books, caches = ledger("one", "two")
    hold(caches, "two", 1600)
    assert books.matches(prompt()) == [0, 5]
    hold(caches, "one", 3200)
    assert books.matches(prompt()) == [10, 5]


def test_what_is_believed_of_a_known_cache_does_not_count() -> None:
    """It was sent there and is gone: the engine says so. Only what is under way there counts beside its word."""
    books, caches = ledger("one")
    policy = PrefixAware(books, WorkModel())
    ticket = policy.sent(policy.choose(prompt(), [books.states["one"]], 0.0), prompt(), 0.0)
    assert books.matches(prompt()) == [10, 0], "it is being computed there"
    books.finished(ticket, 1.0)
    assert books.index.match(BLOCKS, 2) == [10, 0]
    assert books.matches(prompt()) == [0, 0]
    hold(caches, "one", 3200)
    assert books.matches(prompt()) == [10, 0]


def test_what_is_known_in_part_never_says_less_than_the_belief() -> None:
    """Something was missed of its events: the belief stands where it says more, the engine's word where that does."""
    books, caches = ledger("one", "two")
    for each in ("one", "two"):
        state = books.states[each]
        books.finished(books.sent(state, Prompt(1024, BLOCKS[:4]), 0, 0.1, 0.0), 1.0)
    caches.stream("one").live(0, None)
    assert books.matches(prompt()) == [4, 0]
    stored = Stored(tuple(range(1, 101)), None, tuple(TOKENS[:1600]), SIZE)
    caches.stream("one").live(1, [stored])
    assert books.matches(prompt()) == [5, 0]
    caches.stream("one").live(2, [Cleared()])
    assert books.matches(prompt()) == [0, 0]
    caches.stream("one").disconnected()
    assert books.matches(prompt()) == [4, 0], "nobody knows what it holds now"


def test_other_revisions_and_backends_without_events_are_a_matter_of_belief() -> None:
    """Tokens of one model mean nothing to another; and whoever publishes nothing is reckoned with as before."""
    books, caches = ledger("one")
    hold(caches, "one", 3200)
    books.finished(books.sent(books.states["two"], Prompt(1024, BLOCKS[:4]), 0, 0.1, 0.0), 1.0)
    assert books.matches(prompt()) == [10, 4]
    assert books.matches(prompt("b")) == [0, 4]
    assert books.matches(Prompt(2560, BLOCKS)) == [0, 4]


def test_engines_that_go_take_what_they_said_with_them() -> None:
    """Their numbers are given to others, who hold nothing yet; revisions and sizes follow the fleet."""
    books, caches = ledger("one", "two")
    hold(caches, "one", 3200)
    assert caches.block_sizes() == {"a": (SIZE,)}
    caches.set_engines([("two", "b", 100_000), ("three", "b", 100_000)])
    assert len(caches.index) == 0
    assert caches.block_sizes() == {}
    hold(caches, "two", 1600)
    assert caches.block_sizes() == {"b": (SIZE,)}
    assert books.matches(prompt("b")) == [0, 5]


def test_a_prompt_in_another_size_of_blocks_matches_nothing() -> None:
    """Chains of blocks of 32 tokens say nothing about an engine of 16: it holds nothing of them, as far as known."""
    books, caches = ledger("one")
    hold(caches, "one", 3200)
    assert books.matches(prompt(size=32)) == [0, 0]
