"""The API server of the dev cluster is a real one: it refuses what a real one refuses."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from turnout_devcluster.errors import CommandError

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster

CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "ranges.devcluster.test"},
    "spec": {
        "group": "devcluster.test",
        "names": {"kind": "Range", "plural": "ranges"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "min": {"type": "integer"},
                                    "max": {"type": "integer", "default": 7},
                                },
                                "x-kubernetes-validations": [
                                    {"rule": "self.min <= self.max", "message": "min is above max"}
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def a_range(least: int) -> str:
    """Return a Range as JSON."""
    return json.dumps(
        {
            "apiVersion": "devcluster.test/v1",
            "kind": "Range",
            "metadata": {"name": "r"},
            "spec": {"min": least},
        }
    )


def test_versions_are_those_of_the_modules(cluster: Cluster) -> None:
    """The tools report the versions that go.mod names, not a placeholder."""
    assert "Server Version: v1.36.3" in cluster.kubectl("version")
    assert 'Version:"v4.3.1"' in cluster.helm("version")


def test_services_get_loopback_addresses(cluster: Cluster, namespace: str) -> None:
    """Cluster IPs come from the cluster's own part of 127.0.0.0/8, so that a local process can listen on them."""
    cluster.kubectl("-n", namespace, "create", "service", "clusterip", "web", "--tcp=80:80")
    address = cluster.kubectl("-n", namespace, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    assert address.startswith(f"127.{cluster.config.addresses.network}.")


def test_rights_are_real(cluster: Cluster, namespace: str) -> None:
    """A service account's token opens nothing until a role says so: 403 before, an answer after."""
    in_namespace = ("-n", namespace)
    cluster.kubectl(*in_namespace, "create", "serviceaccount", "app")
    token = cluster.kubectl(*in_namespace, "create", "token", "app").strip()
    # A kubeconfig without a certificate: the administrator's would win over the token.
    as_app = (
        f"--server={cluster.config.server}",
        f"--certificate-authority={cluster.state_dir / 'pki' / 'ca.crt'}",
        f"--token={token}",
        "--kubeconfig=/dev/null",
    )
    with pytest.raises(CommandError, match=r"Forbidden.*system:serviceaccount:.*:app"):
        cluster.kubectl(*as_app, *in_namespace, "get", "pods")
    cluster.kubectl(*in_namespace, "create", "role", "see", "--verb=list", "--resource=pods")
    account = f"--serviceaccount={namespace}:app"
    cluster.kubectl(*in_namespace, "create", "rolebinding", "see", "--role=see", account)
    assert cluster.kubectl(*as_app, *in_namespace, "get", "pods") == ""
    with pytest.raises(CommandError, match="Forbidden"):
        cluster.kubectl(*as_app, *in_namespace, "get", "secrets")


def test_strangers_are_refused(cluster: Cluster) -> None:
    """Without a certificate or token there is nothing to be had but the health endpoints."""
    trust = ssl.create_default_context(cafile=str(cluster.state_dir / "pki" / "ca.crt"))
    with httpx.Client(base_url=cluster.config.server, verify=trust) as anonymous:
        assert anonymous.get("/readyz").status_code == 200
        assert anonymous.get("/api/v1/nodes").status_code == 403
        assert anonymous.get("/api/v1/nodes", headers={"Authorization": "Bearer x"}).status_code == 401


def test_schemas_and_rules_are_judged(cluster: Cluster, namespace: str) -> None:
    """CEL rules of a CRD refuse with their message, and defaults are filled in."""
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(CRD))
    try:
        cluster.kubectl("wait", "--for=condition=Established", "crd/ranges.devcluster.test", "--timeout=30s")
        with pytest.raises(CommandError, match="min is above max"):
            cluster.kubectl("-n", namespace, "create", "-f", "-", stdin=a_range(8))
        cluster.kubectl("-n", namespace, "create", "-f", "-", stdin=a_range(7))
        stored = cluster.kubectl("-n", namespace, "get", "range", "r", "-o", "jsonpath={.spec.max}")
        assert stored == "7"
    finally:
        cluster.kubectl("delete", "crd", "ranges.devcluster.test", "--timeout=60s", timeout=70)


def test_trust_and_accounts_are_published(cluster: Cluster, namespace: str) -> None:
    """Each namespace gets its default service account and the authority's certificate."""
    cluster.kubectl("-n", namespace, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    cluster.kubectl("-n", namespace, "wait", "--for=create", "configmap/kube-root-ca.crt", "--timeout=30s")
    path = "jsonpath={.data['ca\\.crt']}"
    published = cluster.kubectl("-n", namespace, "get", "configmap", "kube-root-ca.crt", "-o", path)
    assert published.strip() == (cluster.state_dir / "pki" / "ca.crt").read_text().strip()


def test_a_deleted_owner_takes_its_pods_along(cluster: Cluster, namespace: str) -> None:
    """Deployments, ReplicaSets and the garbage collector work."""
    inside = ("-n", namespace)
    cluster.kubectl(
        *inside, "create", "deployment", "web", "--image=none", "--replicas=2", "--", "sleep", "600"
    )
    cluster.kubectl(*inside, "wait", "--for=create", "pod", "-l", "app=web", "--timeout=30s")
    cluster.kubectl(
        *inside, "delete", "deployment", "web", "--cascade=foreground", "--timeout=90s", timeout=100
    )
    assert cluster.kubectl(*inside, "get", "replicasets,pods", "-o", "name") == ""


def test_a_failing_command_says_why(cluster: Cluster) -> None:
    """An error of kubectl carries its stderr and status; one that takes too long says so."""
    with pytest.raises(CommandError, match='namespaces "nonesuch" not found') as caught:
        cluster.kubectl("get", "namespace", "nonesuch")
    assert caught.value.returncode == 1
    with pytest.raises(CommandError, match="did not end within 1 s") as caught:
        cluster.kubectl("get", "events", "--watch", timeout=1)
    assert caught.value.returncode == 124
