"""A dev cluster comes up with a real control plane and goes without a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster


def test_versions_are_those_of_the_modules(cluster: Cluster) -> None:
    """The tools report the versions that go.mod names, not a placeholder."""
    assert "Server Version: v1.36.3" in cluster.kubectl("version")
    assert 'Version:"v4.3.1"' in cluster.helm("version")


def test_services_get_loopback_addresses(cluster: Cluster, namespace: str) -> None:
    """Cluster IPs come from the cluster's own part of 127.0.0.0/8, so that a local process can listen on them."""
    cluster.kubectl("-n", namespace, "create", "service", "clusterip", "web", "--tcp=80:80")
    address = cluster.kubectl("-n", namespace, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    assert address.startswith(f"127.{cluster.config.addresses.network}.")
