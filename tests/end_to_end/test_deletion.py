"""What an LLMDeployment owned goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.installation import SYSTEM_NAMESPACE, llmdeployment, wait_until

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster

OWNED = "deployments,replicasets,pods,services,poddisruptionbudgets,serviceaccounts"


def left(turnout: Installation, space: str) -> list[str]:
    """Return what is left of the deployment ``gone``."""
    items = turnout.get(OWNED, namespace=space)["items"]
    return [item["metadata"]["name"] for item in items if item["metadata"]["name"] != "default"]


def test_deleting_removes_everything(turnout: Installation, space: str) -> None:
    """Deleting it leaves neither a pod nor a Service behind."""
    turnout.apply(llmdeployment("gone"), namespace=space)
    turnout.wait_condition("gone", space, "Ready")
    turnout.cluster.kubectl("delete", "llmd", "gone", "--namespace", space)
    wait_until("nothing is left", lambda: not left(turnout, space), 90)


def test_deleting_removes_everything_while_no_operator_runs(turnout: Installation, space: str) -> None:
    """Owner references do it, not a finalizer that would wait for the operator."""
    turnout.apply(llmdeployment("gone"), namespace=space)
    turnout.wait_condition("gone", space, "Ready")
    operator = ("--namespace", SYSTEM_NAMESPACE, "deployment/turnout-operator")
    turnout.cluster.kubectl("scale", "--replicas=0", *operator)
    try:
        wait_until(
            "the operators are gone",
            lambda: (
                not turnout.get(
                    "pods", "--selector=app.kubernetes.io/component=operator", namespace=SYSTEM_NAMESPACE
                )["items"]
            ),
            60,
        )
        turnout.cluster.kubectl("delete", "llmd", "gone", "--namespace", space, "--timeout=60s", timeout=70)
        wait_until("nothing is left", lambda: not left(turnout, space), 90)
    finally:
        turnout.cluster.kubectl("scale", "--replicas=2", *operator)
        turnout.cluster.kubectl("rollout", "status", "--timeout=60s", *operator, timeout=70)
