"""A new model revision replaces prefill and decode together, and no request fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.clients import asking, until
from support.installation import llmdeployment

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster


async def test_a_new_revision_replaces_both_pools_without_a_failed_request(
    turnout: Installation, space: str
) -> None:
    """Clients ask all the while; afterwards every pod is of the new revision."""
    manifest = llmdeployment("roll", prefill=(2, 2), decode=(2, 2))
    turnout.apply(manifest, namespace=space)
    await until("it is ready", lambda: turnout.wait_condition("roll", space, "Ready"), 90)

    def revisions() -> set[str]:
        return {
            pod["metadata"]["labels"]["turnout.dev/revision"]
            for pod in turnout.get("pods", namespace=space)["items"]
        }

    before = revisions()
    assert len(before) == 1
    async with asking(turnout.router_url(), "roll", clients=4, tokens=150) as tally:
        await until("clients are served", lambda: tally.succeeded > 4, 30)
        manifest["spec"]["model"]["revision"] = "v2"
        turnout.apply(manifest, namespace=space)

        def rolled() -> Any:
            now = revisions()
            return len(now) == 1 and now != before and len(turnout.ready_pods("", space)) == 4

        await until("every pod is of the new revision", rolled, 180)
        served = tally.succeeded
        await until("clients are served by the new ones", lambda: tally.succeeded > served + 4, 30)
    assert tally.failures == []
