"""Fifty deployments at once, and a broken one among them that the others do not notice."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from support.installation import conditions, is_true, llmdeployment, wait_until

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster

COUNT = 50


@pytest.mark.timeout(480)
def test_fifty_deployments_become_ready_beside_a_broken_one(turnout: Installation, space: str) -> None:
    """All fifty are Ready; the broken one says what is wrong with it."""
    broken = llmdeployment("broken", prefill=None)
    broken["spec"]["decode"]["accelerator"]["count"] = 7  # does not divide 32 attention heads
    whole = [llmdeployment(f"many-{number:02}", prefill=None) for number in range(COUNT)]
    turnout.apply(*whole[: COUNT // 2], copy.deepcopy(broken), *whole[COUNT // 2 :], namespace=space)

    def ready() -> int:
        items = turnout.get("llmdeployments", namespace=space)["items"]
        return sum(is_true(item, "Ready") for item in items)

    wait_until("fifty are ready", lambda: ready() == COUNT, 300)
    reported = {one["type"]: one for one in conditions(turnout.deployment("broken", space))}
    assert reported["ModelFits"]["status"] == "False"
    assert "7" in reported["ModelFits"]["message"]
    assert reported["Ready"]["status"] == "False"
