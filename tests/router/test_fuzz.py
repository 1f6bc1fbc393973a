"""Bytes of every kind, put in by hypothesis: the parsers, streams and JSON of the router keep what they promise.

`benchmarks/fuzz/router.py` runs the same checks on a million inputs and more.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.router_fuzzing import TOKENS, Checks

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKS = ("client", "worker", "stream", "json", "peers", "answers", "events", "pairs", "admin")
BYTES = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=6), max_size=24).map(b"".join)


@pytest.fixture(scope="module")
def checks() -> Iterator[Checks]:
    loop = asyncio.new_event_loop()
    made = Checks(loop)
    yield made
    made.close()
    loop.close()


@pytest.mark.parametrize("name", CHECKS)
def test_every_input_of_the_corpus_keeps_the_promises(checks: Checks, name: str) -> None:
    """The inputs that the fuzzer begins from, each cut at twenty different places."""
    check, corpus, _ = checks.all()[name]
    for data in corpus:
        for seed in range(20):
            check(data, random.Random(seed))  # noqa: S311 - makes test inputs


@pytest.mark.parametrize("name", CHECKS)
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), put=BYTES, at=st.floats(0, 1))
def test_whatever_is_put_in_keeps_the_promises(
    checks: Checks, name: str, seed: int, put: bytes, at: float
) -> None:
    """An input of the corpus, changed at random, with bytes of hypothesis's choice put into it."""
    draw = random.Random(seed)  # noqa: S311 - makes test inputs
    check, corpus, mutate = checks.all()[name]
    data = mutate(draw.choice(corpus), corpus, draw) if seed % 2 else draw.choice(corpus)
    cut = int(at * len(data))
    check(data[:cut] + put + data[cut:], draw)
