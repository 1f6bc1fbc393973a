"""The rights that the chart gives the operator: enough, and not more."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from support.operator_process import (
    OperatorProcess,
    apply,
    condition,
    get,
    install,
    service_account,
    wait_until,
)
from support.operator_values import raw_deployment
from turnout_devcluster.errors import CommandError

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster


def may(cluster: Cluster, home: str, verb: str, resource: str, namespace: str) -> bool:
    """Whether the operator's service account may do that, by the API server's word."""
    user = f"system:serviceaccount:{home}:{service_account(home)}"
    kind, _, subresource = resource.partition("/")
    flags = ("--subresource", subresource) if subresource else ()
    try:
        answer = cluster.kubectl("auth", "can-i", verb, kind, *flags, "--as", user, "--namespace", namespace)
    except CommandError as error:
        if "ended with status 1" in str(error):
            return False
        raise
    return answer.strip() == "yes"


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("*", "*"),
        ("get", "secrets"),
        ("list", "configmaps"),
        ("create", "pods"),
        ("delete", "pods"),
        ("create", "pods/exec"),
        ("create", "llmdeployments.turnout.dev"),
        ("delete", "llmdeployments.turnout.dev"),
        ("patch", "llmdeployments.turnout.dev"),
        ("patch", "tokenbudgets.turnout.dev"),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
        ("escalate", "clusterroles.rbac.authorization.k8s.io"),
        ("impersonate", "users"),
        ("list", "nodes"),
        ("create", "serviceaccounts/token"),
        ("get", "leases.coordination.k8s.io"),
        ("list", "leases.coordination.k8s.io"),
        ("update", "leases.coordination.k8s.io"),
        ("delete", "leases.coordination.k8s.io"),
    ],
)
def test_it_may_not(cluster: Cluster, home: str, namespace: str, verb: str, resource: str) -> None:
    """Nothing that it does not need: no secrets, no pods of its own, no resources of users, no rights for others."""
    assert not may(cluster, home, verb, resource, namespace)


def test_it_may_do_its_work(cluster: Cluster, home: str, namespace: str) -> None:
    """What every other test of this folder proves by doing, asked for once by name."""
    assert may(cluster, home, "patch", "deployments.apps", namespace)
    for kind in ("llmdeployments", "llmroutes", "tokenbudgets"):
        assert may(cluster, home, "patch", f"{kind}.turnout.dev/status", namespace)


def test_rights_in_some_namespaces_are_enough_for_those(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """With watchNamespaces there is no ClusterRole, and the operator works there all the same."""
    home = f"home-{uuid.uuid4().hex[:10]}"
    cluster.kubectl("create", "namespace", home)
    try:
        install(cluster, home, f"watchNamespaces={{{namespace}}}")
        assert get(cluster, home, "clusterrole", service_account(home)) is None
        assert may(cluster, home, "patch", "deployments.apps", namespace)
        assert not may(cluster, home, "patch", "deployments.apps", "default")
        manifest = raw_deployment()
        del manifest["metadata"]
        with OperatorProcess(cluster, home, tmp_path, arguments=("--watch-namespace", namespace)) as operator:
            apply(cluster, namespace, {**manifest, "metadata": {"name": "llama"}})
            wait_until(
                "status",
                lambda: condition(get(cluster, namespace, "llmd", "llama"), "Ready"),
                30,
                (operator,),
            )
            wait_until(
                "children", lambda: get(cluster, namespace, "service", "llama-decode"), 10, (operator,)
            )
    finally:
        cluster.kubectl("delete", "namespace", home, "--wait=false")
