"""Names and what they lead to; goodput; estimates of prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.routing import (
    Backend,
    DeploymentRoute,
    NamedRoute,
    Timing,
    build_fleet,
    choose_target,
    estimate_prompt_tokens,
    in_service,
    is_good,
    mean_inter_token_seconds,
    needs_local_prefill,
    resolve,
)

if TYPE_CHECKING:
    from turnout.api import Role


def backend(id_: str, role: Role) -> Backend:
    return Backend(id_, "a/m", "127.0.0.1", 8000, role, "r", ())


def deployment(
    key: str, *names: str, settled: tuple[str, ...] | None = None, created: float = 0
) -> DeploymentRoute:
    return DeploymentRoute(key, names, settled, created)


def test_the_operators_word_decides_who_has_a_name() -> None:
    """The younger deployment has it where the status says so."""
    fleet = build_fleet(
        [
            deployment("a/old", "chat", settled=(), created=1),
            deployment("a/young", "chat", settled=("chat",), created=2),
        ],
        [],
        [],
        [],
    )
    assert resolve(fleet, "chat", 0) == "a/young"


def test_without_a_status_the_oldest_has_it() -> None:
    """Creation time, then the key."""
    fleet = build_fleet(
        [deployment("a/young", "x", created=2), deployment("a/old", "x", created=1)], [], [], []
    )
    assert resolve(fleet, "x", 0) == "a/old"
    same = build_fleet([deployment("a/n", "x"), deployment("a/m", "x")], [], [], [])
    assert resolve(same, "x", 0) == "a/m"


def test_a_served_name_comes_before_a_route_and_an_old_route_before_a_young_one() -> None:
    """No object loses a name to a route that came later."""
    fleet = build_fleet(
        [deployment("a/m", "x"), deployment("a/n", "n")],
        [
            NamedRoute("a/late", ("x", "y"), (("a/n", 1),), created=9),
            NamedRoute("a/early", ("y",), (("a/m", 1),), created=1),
        ],
        [],
        [],
    )
    assert resolve(fleet, "x", 0) == "a/m"
    assert resolve(fleet, "y", 0) == "a/m"


def test_namespace_and_name_always_lead_to_the_deployment() -> None:
    """Also where it has lost all its served names; such names are not listed."""
    fleet = build_fleet([deployment("a/m", "x", settled=())], [], [], [])
    assert resolve(fleet, "a/m", 0) == "a/m"
    assert resolve(fleet, "x", 0) is None
    assert not fleet.names["a/m"].listed


def test_targets_that_do_not_exist_get_nothing() -> None:
    """A route goes on with those that do; with none of them it leads nowhere."""
    fleet = build_fleet(
        [deployment("a/m", "m")],
        [
            NamedRoute("a/r", ("r",), (("a/gone", 99), ("a/m", 1))),
            NamedRoute("a/s", ("s",), (("a/gone", 1),)),
        ],
        [],
        [],
    )
    assert {resolve(fleet, "r", draw / 10) for draw in range(10)} == {"a/m"}
    assert resolve(fleet, "s", 0.5) is None


def test_backends_of_unknown_deployments_are_left_out() -> None:
    """A pod whose deployment is gone serves no request."""
    stray = Backend("s", "a/gone", "h", 1, "decode", "a", ())
    assert build_fleet([deployment("a/m", "m")], [], [], [stray]).backends == {"a/m": ()}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_weights_are_shares(weights: list[int]) -> None:
    """Over evenly spread draws each target gets its share exactly; a weight of 0 gets nothing."""
    targets = tuple((str(i), weight) for i, weight in enumerate(weights))
    total = sum(weights)
    if total == 0:
        assert choose_target(targets, 0.5) is None
        return
    counts = Counter(choose_target(targets, (i + 0.5) / total) for i in range(total))
    assert counts == Counter({key: weight for key, weight in targets if weight})


ROUTE = DeploymentRoute("a/m", (), time_to_first_token_seconds=1, inter_token_seconds=0.1)


@pytest.mark.parametrize(
    ("timing", "good"),
    [
        (Timing(5, 10, 1.0, 0.1), True),
        (Timing(5, 10, 1.1, 0.1), False),
        (Timing(5, 10, 0.5, 0.11), False),
        (Timing(0.5, 1, 0.5, None), True),
        (Timing(1.9, 10), True),
        (Timing(2.0, 10), False),
        (Timing(1.0, 0), True),
    ],
)
def test_what_is_good(timing: Timing, good: bool) -> None:  # noqa: FBT001 - a table's column
    """Both objectives for a stream; their sum for an answer in one piece."""
    assert is_good(timing, ROUTE) is good


def test_inter_token_latency_is_the_mean_over_tokens() -> None:
    """By tokens, not by events; a single token has none."""
    assert mean_inter_token_seconds(1.0, 3.0, 5) == 0.5
    assert mean_inter_token_seconds(1.0, 1.0, 1) is None


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"content": "abcdefgh"}, {"content": "abcd"}]}, 3),
        ({"messages": [{"content": [{"type": "text", "text": "abcdefgh"}, {"type": "image_url"}]}]}, 2),
        ({"messages": [{"content": "ääää"}]}, 2),
        ({"messages": [{"content": None}, 5, {"content": {"a": 1}}]}, 0),
        ({"messages": "no list"}, 0),
        ({"prompt": "abcdefgh"}, 2),
        ({"prompt": [1, 2, 3]}, 3),
        ({"prompt": ["abcd", "abcdefgh", [1, 2]]}, 5),
        ({}, 0),
    ],
)
def test_prompts_are_estimated(body: dict[str, object], tokens: int) -> None:
    """Four bytes of UTF-8 a token; token ids exactly; what is not understood counts as nothing."""
    assert estimate_prompt_tokens(body) == tokens


@pytest.mark.parametrize(
    ("body", "local"),
    [
        ({"prompt": "a"}, False),
        ({"prompt": [1, 2]}, False),
        ({"prompt": ["a"]}, False),
        ({"prompt": ["a", "b"]}, True),
        ({"n": 1}, False),
        ({"n": 2}, True),
        ({"best_of": 3}, True),
        ({"echo": True}, True),
        ({"prompt_logprobs": 0}, True),
    ],
)
def test_what_only_the_decoding_worker_can_give(body: dict[str, object], local: bool) -> None:  # noqa: FBT001 - a column
    """Several sequences, or the prompt itself in the answer."""
    assert needs_local_prefill(body) is local


def test_unready_workers_are_the_last_resort_of_their_half() -> None:
    """Where a phase has a ready worker, only ready ones are in service; where it has none, all that have come up are."""
    ready = [backend("p1", "prefill"), backend("d1", "decode")]
    unready = [replace(backend("p2", "prefill"), ready=False), replace(backend("d2", "decode"), ready=False)]
    assert in_service([*ready, *unready]) == tuple(ready)
    assert in_service([ready[0], *unready]) == (ready[0], unready[1])
    assert in_service(unready) == tuple(unready)
    assert in_service([replace(backend("a", "aggregated"), ready=False), ready[1]]) == (ready[1],)
