"""The chart with `watchNamespaces`: one of them is deleted, and the others' users see nothing of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.installation import SYSTEM_NAMESPACE, Installation, is_true, llmdeployment, wait_until
from turnout_devcluster.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster

VALUES = ("watchNamespaces={w1,w2}", "router.replicas=1", "operator.replicas=1")


@pytest.fixture
def scoped(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """Install Turnout for two namespaces of a cluster of its own."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        cluster = Cluster.up(
            f"scoped-{os.getpid()}", nodes=1, accelerators={"H100-SXM": 8}, owner_pid=os.getpid()
        )
    with cluster:
        for namespace in ("w1", "w2"):
            cluster.kubectl("create", "namespace", namespace)
        installation = Installation(cluster)
        installation.install(*VALUES)
        yield installation


def deployment(namespace: str) -> dict[str, Any]:
    return llmdeployment("m", served=f"{namespace}-m", prefill=None)


def status(turnout: Installation, namespace: str) -> int:
    """Return what a request for the namespace's model is answered with."""
    body = {"model": f"{namespace}-m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    try:
        return httpx.post(f"{turnout.router_url()}/chat/completions", json=body, timeout=10).status_code
    except httpx.HTTPError:
        return 0


def test_a_watched_namespace_that_is_deleted_stops_no_other(scoped: Installation) -> None:
    """Its Role goes with it. Router and operator serve the other one, also started anew, and take it up when it is back."""
    for namespace in ("w1", "w2"):
        scoped.apply(deployment(namespace), namespace=namespace)
    for namespace in ("w1", "w2"):
        wait_until(f"{namespace} is served", lambda where=namespace: status(scoped, where) == 200, 60)
    scoped.cluster.kubectl("delete", "namespace", "w2", "--timeout=60s", timeout=70)
    assert status(scoped, "w1") == 200
    before = {pod["metadata"]["uid"] for pod in scoped.pods("", SYSTEM_NAMESPACE)}
    scoped.cluster.kubectl(
        "delete", "pod", "--namespace", SYSTEM_NAMESPACE, "--selector=app.kubernetes.io/instance=turnout"
    )

    def fresh() -> list[dict[str, Any]]:
        found = scoped.pods("", SYSTEM_NAMESPACE)
        ready = [pod for pod in found if is_true(pod, "Ready") and pod["metadata"]["uid"] not in before]
        return ready if len(ready) == len(found) == 2 else []

    pods = wait_until("both are ready again", fresh, 60)
    wait_until("w1 is served", lambda: status(scoped, "w1") == 200, 20)
    for pod in pods:
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        port = {"router": 9090, "operator": 9091}[component]
        page = httpx.get(f"http://{pod['status']['podIP']}:{port}/metrics", timeout=10).text
        series = f'turnout_{component}_namespace_unreadable{{namespace="w2",resource="llmdeployments"}} 1.0'
        assert series in page
        assert f'turnout_{component}_namespace_unreadable{{namespace="w1"' not in page
    scoped.cluster.kubectl("delete", "service", "m-aggregated", "--namespace", "w1")
    wait_until("the operator acts", lambda: scoped.get("services", namespace="w1")["items"], 30)
    scoped.cluster.kubectl("create", "namespace", "w2")
    scoped.install(*VALUES)
    scoped.apply(deployment("w2"), namespace="w2")
    wait_until("w2 is served", lambda: status(scoped, "w2") == 200, 60)
