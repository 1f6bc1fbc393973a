"""Turnout installed through its chart on a cluster that no other suite uses: it acts on every namespace."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import pytest

from support.installation import Installation, wait_until
from turnout_devcluster.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERYTHING: Final = "llmdeployments,llmroutes,tokenbudgets,pods"


@pytest.fixture(scope="session")
def turnout(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """Return an installation with two operators and two routers."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        cluster = Cluster.up(
            f"e2e-{os.getpid()}", nodes=2, accelerators={"H100-SXM": 64}, owner_pid=os.getpid()
        )
    with cluster:
        installation = Installation(cluster)
        installation.install("router.replicas=2", "operator.hostPaths=allow")
        yield installation


@pytest.fixture
def space(turnout: Installation, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a new namespace; what is in it is gone before the next test begins."""
    name = "e2e-" + re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:50].strip("-")
    turnout.cluster.kubectl("create", "namespace", name)
    yield name
    # A namespace whose pods have a grace period is looked at again only when half of that is over.
    turnout.cluster.kubectl("delete", "llmdeployments", "--all", "--namespace", name)
    turnout.cluster.kubectl("delete", "namespace", name, "--wait=false")
    wait_until("what was in it is gone", lambda: not turnout.get(EVERYTHING, namespace=name)["items"], 120)
