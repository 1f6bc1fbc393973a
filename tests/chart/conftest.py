"""A cluster for the chart alone: it changes CRDs, which all namespaces share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from turnout_devcluster.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def bare_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Start a cluster on which Turnout has never been installed; it ends with the module."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        started = Cluster.up(
            f"chart-{os.getpid()}", nodes=1, accelerators={"H100-SXM": 16}, owner_pid=os.getpid()
        )
    with started:
        yield started
