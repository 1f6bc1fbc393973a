"""The annotation on worker pods: written by one release, read by another, and written by any client that may create a pod."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.api.loading import InvalidResource
from turnout.api.worker_facts import (
    MAX_CHARACTERS,
    MAX_KV_TOKENS,
    MAX_NAMES,
    WORKER_FACTS_VERSION,
    WorkerFacts,
    WorkerPorts,
)

LEAST = {"engine": "simulated", "names": ["m"]}


def read(changes: dict[str, Any]) -> WorkerFacts:
    return WorkerFacts.from_annotation(json.dumps({**LEAST, **changes}))


def test_the_form_of_the_annotation() -> None:
    """What the operator of this release writes, to the letter: routers of the next one have to read it."""
    ports = WorkerPorts(http=8000, kv_events=5557, kv_replay=5558)
    facts = WorkerFacts(engine="simulated", names=("llama", "sql"), kv_tokens=435_347, ports=ports)
    assert facts.to_annotation() == (
        '{"version":1,"engine":"simulated","names":["llama","sql"],"kvTokens":435347,'
        '"ports":{"http":8000,"kvEvents":5557,"kvReplay":5558}}'
    )


@given(
    names=st.lists(
        st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,94}[A-Za-z0-9])?", fullmatch=True), min_size=1
    ),
    kv_tokens=st.integers(0, MAX_KV_TOKENS),
    ports=st.builds(
        WorkerPorts,
        http=st.integers(1, 65535),
        kv_events=st.integers(0, 65535),
        kv_replay=st.integers(0, 65535),
    ),
)
def test_what_is_written_is_read(names: list[str], kv_tokens: int, ports: WorkerPorts) -> None:
    """Whatever the operator can say arrives as it was said."""
    facts = WorkerFacts(engine="simulated", names=tuple(names), kv_tokens=kv_tokens, ports=ports)
    assert WorkerFacts.from_annotation(facts.to_annotation()) == facts


def test_as_many_and_as_long_names_as_can_be_read_fit_into_the_annotation() -> None:
    """The bound on its length is never the one that an LLMDeployment meets."""
    facts = WorkerFacts(engine="simulated", names=tuple(f"{n:096}" for n in range(MAX_NAMES)))
    assert len(facts.to_annotation()) < MAX_CHARACTERS
    assert WorkerFacts.from_annotation(facts.to_annotation()) == facts


def test_a_key_that_is_missing_has_its_default() -> None:
    """A router of the next release knows keys that this operator does not write."""
    assert read({}) == WorkerFacts(
        version=1,
        engine="simulated",
        names=("m",),
        kv_tokens=0,
        ports=WorkerPorts(http=8000, kv_events=0, kv_replay=0),
    )


def test_a_key_that_is_not_known_is_ignored() -> None:
    """The operator of the next release writes keys that this router does not know, whatever they hold."""
    later = {"bootstrap": {"port": 8998}, "ports": {"metrics": "9000", "http": 8001}, "seed": 1e400}
    assert read(later) == read({"ports": {"http": 8001}})


def test_a_version_that_is_newer_asks_for_a_newer_router() -> None:
    """For what an older router must not ignore."""
    with pytest.raises(
        InvalidResource, match=r"version: 2 is newer than what this router reads \(1\): upgrade"
    ):
        read({"version": WORKER_FACTS_VERSION + 1})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        ("null", "should be an object"),
        ("[]", "should be an object"),
        ('"facts"', "should be an object"),
        ("[" * 15_000, "Invalid JSON"),
        ('{"a":' * 3_000, "Invalid JSON"),
        ('{"kvTokens": ' + "9" * 15_000 + "}", "number out of range"),
        (json.dumps({**LEAST, "x": "y" * MAX_CHARACTERS}), "of which at most 16384 are read"),
        ("\x00", "Invalid JSON"),
        ('{"names": ["\\ud800"]}', "Invalid JSON"),
        ('{"names": ["\ud800"], "engine": "simulated"}', "annotation turnout.dev/worker"),
        (json.dumps({"names": ["m"]}), "engine: Field required"),
        (json.dumps({"engine": "simulated"}), "names: Field required"),
        (json.dumps({**LEAST, "engine": "sglang"}), "engine: Input should be 'simulated'"),
        (json.dumps({**LEAST, "version": 0}), "version"),
        (json.dumps({**LEAST, "version": "1"}), "version"),
        (json.dumps({**LEAST, "names": []}), "names"),
        (json.dumps({**LEAST, "names": "m"}), "names"),
        (json.dumps({**LEAST, "names": [7]}), "names[0]"),
        (json.dumps({**LEAST, "names": ["a\r\nx-evil: 1"]}), "a name has 1 to 96 letters"),
        (json.dumps({**LEAST, "names": ["a/b"]}), "a name has 1 to 96 letters"),
        (json.dumps({**LEAST, "names": [""]}), "a name has 1 to 96 letters"),
        (json.dumps({**LEAST, "names": ["n"] * (MAX_NAMES + 1)}), "names"),
        (json.dumps({**LEAST, "kvTokens": -1}), "kvTokens"),
        (json.dumps({**LEAST, "kvTokens": MAX_KV_TOKENS + 1}), "kvTokens"),
        (json.dumps({**LEAST, "kvTokens": 1.5}), "kvTokens"),
        (json.dumps({**LEAST, "kvTokens": True}), "kvTokens"),
        (json.dumps({**LEAST, "kvTokens": float("nan")}), "kvTokens"),
        (json.dumps({**LEAST, "kvTokens": None}), "kvTokens"),
        (json.dumps({**LEAST, "ports": None}), "ports"),
        (json.dumps({**LEAST, "ports": {"http": 0}}), "ports.http"),
        (json.dumps({**LEAST, "ports": {"http": 65_536}}), "ports.http"),
        (json.dumps({**LEAST, "ports": {"http": "8000"}}), "ports.http"),
        (json.dumps({**LEAST, "ports": {"kvEvents": -1}}), "ports.kvEvents"),
    ],
    ids=count(),
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(text: str, says: str) -> None:
    """It says where the fault is, on one line of bounded length, whatever stands in the annotation."""
    with pytest.raises(InvalidResource) as refused:
        WorkerFacts.from_annotation(text)
    said = str(refused.value)
    assert says in said
    assert len(said) < 1000
    assert said.isprintable()


def test_reading_ends_at_the_first_odd_name() -> None:
    """Each fault costs time, and routers read annotations between requests."""
    with pytest.raises(InvalidResource, match=r"names\[0\]") as refused:
        read({"names": [7] * 5_000})
    assert "names[1]" not in str(refused.value)


@given(
    st.one_of(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(st.sampled_from(["engine", "names", "ports", "version"]) | st.text(), inner)
            ),
        ).map(json.dumps),
    )
)
def test_anything_is_either_read_or_refused(text: str) -> None:
    """No text ends in another exception."""
    try:
        facts = WorkerFacts.from_annotation(text)
    except InvalidResource:
        return
    assert WorkerFacts.from_annotation(facts.to_annotation()) == facts
