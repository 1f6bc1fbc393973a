"""What the demo hears of its deployment: replicas, scaling sentences, ready workers."""

from __future__ import annotations

from typing import Any

import pytest

from support.demo_values import deployment, raw_deployment, scaling
from turnout_cli.demo.fleet import MAX_SCALINGS, Fleet, with_deployment, with_pods
from turnout_cli.demo.setup import ready_state


def pod(*, role: str = "prefill", ip: str | None = "127.70.0.9", ready: str = "True") -> dict[str, Any]:
    status: dict[str, Any] = {"conditions": [{"type": "Ready", "status": ready}]}
    if ip:
        status["podIP"] = ip
    return {"metadata": {"labels": {"turnout.dev/role": role}}, "status": status}


def test_every_scaling_is_kept_once() -> None:
    """A sentence counts when it is new; other changes of the status do not count it again."""
    fleet = Fleet(deployment())
    for status in (
        {},
        {"lastScaling": scaling(1)},
        {"lastScaling": scaling(1), "goodputPercent": 90},
        {"lastScaling": scaling(2)},
    ):
        fleet = with_deployment(fleet, deployment(**status))
    assert [each.reason for each in fleet.scalings] == [scaling(1)["reason"], scaling(2)["reason"]]


def test_a_scaling_before_the_watch_does_not_count() -> None:
    """What the deployment had scaled before traffic began is no action of the run."""
    fleet = Fleet(deployment(lastScaling=scaling(1)))
    assert with_deployment(fleet, deployment(lastScaling=scaling(1))).scalings == ()


def test_the_list_of_scalings_is_bounded() -> None:
    """A deployment that scales forever does not fill the memory."""
    fleet = Fleet(deployment())
    for number in range(MAX_SCALINGS + 10):
        fleet = with_deployment(fleet, deployment(lastScaling=scaling(number)))
    assert len(fleet.scalings) == MAX_SCALINGS


def test_replicas_of_a_pool_without_status_are_none() -> None:
    """A fresh deployment has no pools in its status yet."""
    assert Fleet(deployment()).prefill.ready == 0
    assert Fleet(deployment(decode={"desired": 3, "ready": 2})).decode.desired == 3


def test_only_ready_pods_with_an_address_are_workers() -> None:
    """Pods that start, leave or have no address yet are not asked for metrics."""
    pods = {
        "a": pod(),
        "b": pod(role="decode", ip="127.70.0.10"),
        "c": pod(ready="False"),
        "d": pod(ip=None),
    }
    fleet = with_pods(Fleet(deployment()), pods)
    assert fleet.workers == {"prefill": ("http://127.70.0.9:8000",), "decode": ("http://127.70.0.10:8000",)}


@pytest.mark.parametrize(
    ("ready", "holds"),
    [
        ({"status": "True", "observedGeneration": 2}, True),
        ({"status": "True", "observedGeneration": 1}, False),
        ({"status": "False", "observedGeneration": 2}, False),
        (None, False),
    ],
)
def test_ready_means_this_generation(ready: dict[str, Any] | None, holds: bool) -> None:  # noqa: FBT001 - a table's column
    """Ready about an older spec, or no word of it, is not Ready."""
    conditions = [{"type": "Ready", "message": "because", **ready}] if ready else []
    done, where = ready_state(raw_deployment(conditions=conditions, decode={"desired": 2, "ready": 1}))
    assert done is holds
    assert ("decode 1/2" in where) is bool(ready)
