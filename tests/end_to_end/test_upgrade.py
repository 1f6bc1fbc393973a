"""From the release before, whose worker pods lack the annotation: its workers are served, marked in place and kept.

Goes with `turnout_router.fleet.discovery.previous_release`, in release 0.3.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.clients import asking, until
from support.installation import SYSTEM_NAMESPACE, llmdeployment
from turnout import terms
from turnout.api import load_deployment
from turnout_operator.plan import manifests

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster

OPERATOR = ("--namespace", SYSTEM_NAMESPACE, "deployment/turnout-operator")


def pools(turnout: Installation, space: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = turnout.get("deployments", namespace=space)["items"]
    return found


def workers(turnout: Installation, space: str, *, marked: bool, count: int) -> dict[str, str]:
    """Return the uids of the ready workers by name, if there are *count*, all with or all without the annotation."""
    pods = turnout.pods("app.kubernetes.io/component=worker", space)
    ready = turnout.ready_pods("app.kubernetes.io/component=worker", space)
    alike = all((terms.ANNOTATION_WORKER in pod["metadata"].get("annotations", {})) is marked for pod in pods)
    if not alike or len(pods) != count or len(ready) != count:
        return {}
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


def make_like_the_release_before(turnout: Installation, space: str, name: str) -> None:
    """Apply the pools in the operator's place, as `test_the_annotation_is_all_that_the_release_before_did_not_write` shows."""
    deployment = load_deployment(turnout.deployment(name, space))
    for live in pools(turnout, space):
        labels, spec = live["metadata"]["labels"], live["spec"]
        made = manifests.pool(
            deployment,
            labels[terms.LABEL_ROLE],
            labels[terms.LABEL_REVISION],
            spec["replicas"],
            spec["template"]["spec"]["containers"][0]["image"],
            facts="",
        )
        turnout.cluster.kubectl(
            *("apply", "--server-side", "--force-conflicts", f"--field-manager={terms.FIELD_MANAGER}"),
            *("--filename", "-"),
            stdin=json.dumps(manifests.with_annotation(made, None)),
        )


async def test_an_upgrade_keeps_every_worker_and_every_stream(turnout: Installation, space: str) -> None:
    """The operator of this release comes to pools of the one before: no pod is replaced, no request fails."""
    turnout.apply(llmdeployment("m", served=space, prefill=(1, 1), decode=(2, 4)), namespace=space)
    turnout.wait_condition("m", space, "Ready")
    await until("three workers", lambda: workers(turnout, space, marked=True, count=3), 60)
    turnout.cluster.kubectl("scale", "--replicas=0", *OPERATOR)
    try:
        await until(
            "no operator runs",
            lambda: (
                not turnout.get(
                    "pods", "--selector=app.kubernetes.io/component=operator", namespace=SYSTEM_NAMESPACE
                )["items"]
            ),
            60,
        )
        make_like_the_release_before(turnout, space, "m")
        before = await until(
            "workers without the annotation",
            lambda: workers(turnout, space, marked=False, count=3),
            180,
        )
        generations = {
            pool["metadata"]["name"]: pool["metadata"]["generation"] for pool in pools(turnout, space)
        }
        async with asking(turnout.router_url(), space, clients=2) as tally:
            await until("they serve", lambda: tally.succeeded >= 4, 60)
            turnout.cluster.kubectl("scale", "--replicas=2", *OPERATOR)
            marked = await until(
                "the operator marks them", lambda: workers(turnout, space, marked=True, count=3), 60
            )
            assert marked == before
            served = tally.succeeded
            await until("they serve on", lambda: tally.succeeded >= served + 4, 60)
        assert tally.failures == []
        assert generations == {
            pool["metadata"]["name"]: pool["metadata"]["generation"] for pool in pools(turnout, space)
        }
    finally:
        turnout.cluster.kubectl("scale", "--replicas=2", *OPERATOR)
        turnout.cluster.kubectl("rollout", "status", "--timeout=60s", *OPERATOR, timeout=70)
