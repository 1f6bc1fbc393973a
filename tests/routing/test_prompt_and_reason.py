"""Where prompts lie in the APIs' requests, and the reason of a choice by load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from turnout.routing import Backend, Constraints, LoadChooser, WorkerPair, estimate_prompt_tokens
from turnout.routing.load_tracker import Prompt

if TYPE_CHECKING:
    from turnout.routing.candidates import LocalReason


@pytest.mark.parametrize(
    ("body", "fields", "tokens"),
    [
        ({"input": "abcdefgh", "instructions": "abcd"}, ("instructions", "input"), 3),
        ({"input": [{"role": "user", "content": "abcdefgh"}]}, ("input",), 2),
        ({"input": [{"content": [{"type": "input_text", "text": "abcdefgh"}]}]}, ("input",), 2),
        ({"input": [{"type": "function_call_output", "output": "abcdefgh"}]}, ("input",), 2),
        ({"input": ["abcd", "abcdefgh"]}, ("input",), 3),
        ({"input": [[1, 2], [3]]}, ("input",), 3),
        (
            {"system": [{"type": "text", "text": "abcd"}], "messages": [{"content": "abcd"}]},
            ("system", "messages"),
            2,
        ),
        (
            {"query": {"content": [{"type": "text", "text": "abcd"}]}, "documents": ["abcd"]},
            ("query", "documents"),
            2,
        ),
        ({"input": 5, "documents": None}, ("input", "documents"), 0),
    ],
)
def test_prompts_are_measured_wherever_they_lie(
    body: dict[str, Any], fields: tuple[str, ...], tokens: int
) -> None:
    """Texts, items, parts, results of tools and their definitions; nothing where no field is named."""
    assert estimate_prompt_tokens(body, fields) == tokens


def test_definitions_of_tools_are_part_of_the_prompt() -> None:
    """Chat templates write them as JSON before everything else."""
    assert estimate_prompt_tokens({"messages": [{"content": "abcd"}]}, tools_bytes=40) == 11


class Load:
    """What a backend has in flight."""

    def __init__(self, tokens: int, requests: int) -> None:
        self.tokens = tokens
        self.requests = requests
        self.last_pick = 0


def backend(name: str, role: Any = "decode") -> Backend:
    return Backend(name, "ns/d", "h", 1, role, "r", ())


def chosen(prompt_tokens: int = 1000, local: LocalReason | None = None, **more: Any) -> WorkerPair:
    fleet = [backend("d1"), backend("d2"), backend("p1", "prefill")]
    loads = {"d1": Load(500, 2), "d2": Load(90, 1)}
    constraints = Constraints(local=local, **more)
    choice = LoadChooser(loads, 256).choose(fleet, Prompt(prompt_tokens), constraints, 0.0)
    assert choice is not None
    return choice


def test_a_choice_says_what_it_minimized() -> None:
    """Every candidate with its figures, cheapest first in each phase, and a sentence of it."""
    reason = chosen().reason
    assert reason is not None
    assert [(c.backend, c.phase, c.chosen, c.figures[0]) for c in reason.candidates()] == [
        ("d2", "decode", True, ("tokensInFlight", 90)),
        ("d1", "decode", False, ("tokensInFlight", 500)),
        ("p1", "prefill", True, ("tokensInFlight", 0)),
    ]
    assert reason.sentence == (
        "decode on d2: 90 tokens in 1 requests in flight, the least of 2; "
        "prefill on p1: 0 tokens in 0 requests in flight, the only one; the prompt has about 1000 tokens"
    )
    assert reason.weight == 3


def test_a_choice_says_who_was_left_out_and_why_nothing_moved() -> None:
    """Exclusions by name, and the reason of a local prefill in words."""
    left = chosen(excluded=frozenset({"p1"}), avoided=frozenset({"d2"})).reason
    short = chosen(prompt_tokens=10).reason
    vectors = chosen(local="no_generation").reason
    assert left is not None
    assert short is not None
    assert vectors is not None
    assert "decode on d1" in left.sentence
    assert "no prefill worker of its revision" in left.sentence
    assert left.sentence.endswith("not used again: p1; avoided: d2")
    assert "too short to be worth moving" in short.sentence
    assert "nothing is generated" in vectors.sentence
