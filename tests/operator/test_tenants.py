"""Namespaces side by side on a real API server: one of them is deleted, or takes what belongs to another."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from support.installation import llmdeployment
from support.operator_process import (
    OperatorProcess,
    apply,
    condition,
    get,
    install,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture
def home(cluster: Cluster) -> Iterator[str]:
    """Namespace of an operator that has rights where a test gives it some, and nowhere else."""
    name = f"home-{uuid.uuid4().hex[:10]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def other(cluster: Cluster) -> Iterator[str]:
    """Name of a second namespace."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def plain(name: str, *served: str) -> dict[str, Any]:
    """Return a deployment of one pool."""
    made = llmdeployment(name, prefill=None)
    made["spec"]["model"]["servedNames"] = list(served)
    return made


def budget(name: str, *digests: str, **spec: Any) -> dict[str, Any]:
    keys = [{"name": f"k{place}", "sha256": digest} for place, digest in enumerate(digests)]
    return {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "TokenBudget",
        "metadata": {"name": name},
        "spec": {"keys": keys, **spec},
    }


def ready(cluster: Cluster, namespace: str, kind: str, name: str) -> dict[str, Any]:
    return condition(get(cluster, namespace, kind, name), "Ready")


def test_a_watched_namespace_that_is_deleted_stops_no_other(
    cluster: Cluster, home: str, namespace: str, other: str, tmp_path: Path
) -> None:
    """Neither while the operator runs nor when it starts anew; made anew, with its Role, it is taken up by itself."""
    watched = f"watchNamespaces={{{namespace},{other}}}"
    install(cluster, home, watched)
    flags = ("--watch-namespace", namespace, "--watch-namespace", other)

    def serves(where: str, operator: OperatorProcess) -> None:
        wait_until("status", lambda: ready(cluster, where, "llmd", "m"), 60, (operator,))
        wait_until("its child", lambda: get(cluster, where, "service", "m-aggregated"), 20, (operator,))

    def repairs(where: str, operator: OperatorProcess) -> None:
        cluster.kubectl("delete", "service", "m-aggregated", "--namespace", where)
        wait_until("the repair", lambda: get(cluster, where, "service", "m-aggregated"), 20, (operator,))

    with OperatorProcess(cluster, home, tmp_path, arguments=flags) as operator:
        for where in (namespace, other):
            apply(cluster, where, plain("m", where))
            serves(where, operator)
        cluster.kubectl("delete", "namespace", other, "--timeout=60s", timeout=70)
        repairs(namespace, operator)
        operator.kill()
        operator.start()
        wait_until("it is ready", lambda: operator.get("/readyz")[0] == 200, 60, (operator,))
        repairs(namespace, operator)
        label = f'namespace_unreadable{{namespace="{other}"'
        assert label in operator.get("/metrics")[1]
        assert f'namespace_unreadable{{namespace="{namespace}"' not in operator.get("/metrics")[1]
        assert operator.text().count(f"namespace {other} cannot be read") <= 2, "once in each life"
        cluster.kubectl("create", "namespace", other)
        install(cluster, home, watched)
        apply(cluster, other, plain("m", other))
        serves(other, operator)
        wait_until("nothing is unreadable", lambda: label not in operator.get("/metrics")[1], 30, (operator,))


def test_names_and_keys_are_settled_over_namespaces(
    cluster: Cluster, home: str, namespace: str, other: str, tmp_path: Path
) -> None:
    """The first keeps them, also when it is deleted and made anew, and the other's status says so; a scope of its own making opens nothing."""
    install(cluster, home, f"watchNamespaces={{{namespace},{other}}}")
    flags = ("--watch-namespace", namespace, "--watch-namespace", other)
    name, digest, foreign = f"{namespace}-n", uuid.uuid4().hex * 2, uuid.uuid4().hex * 2
    route = {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "LLMRoute",
        "metadata": {"name": "r"},
        "spec": {"names": [name, f"{name}-r"], "targets": [{"deployment": "m"}]},
    }

    def reports(  # noqa: PLR0917 - of one test
        where: str, kind: str, called: str, reason: str, operator: OperatorProcess, says: str = ""
    ) -> None:
        """Wait for *reason* with a message that holds *says*: its words may follow the reason a second later."""

        def is_reported() -> bool:
            found = ready(cluster, where, kind, called)
            return found.get("reason") == reason and says in found["message"]

        wait_until(f"{reason} that says {says!r}", is_reported, 30, (operator,))

    with OperatorProcess(cluster, home, tmp_path, arguments=flags) as operator:
        apply(cluster, namespace, plain("m", name), budget("b", digest))
        reports(namespace, "tokenbudget", "b", "KeysValid", operator)
        wait_until(
            "its name",
            lambda: (get(cluster, namespace, "llmd", "m").get("status") or {}).get("servedNames") == [name],
            30,
            (operator,),
        )
        apply(cluster, other, plain("m", name), budget("b", digest, foreign, scope="Cluster"), route)
        reports(other, "llmd", "m", "ServedNameConflict", operator, f"served by {namespace}/m")
        reports(other, "tokenbudget", "b", "KeyConflict", operator)
        assert get(cluster, other, "tokenbudget", "b")["status"]["acceptedKeys"] == ["k1"]
        reports(other, "llmr", "r", "NameConflict", operator)
        assert get(cluster, other, "llmr", "r")["status"]["servedNames"] == [f"{name}-r"]
        cluster.kubectl("delete", "llmd,tokenbudget", "--all", "--namespace", namespace)
        wait_until(
            "it is kept",
            lambda: f"kept for namespace {namespace}" in ready(cluster, other, "llmd", "m")["message"],
            20,
            (operator,),
        )
        apply(cluster, namespace, plain("m", name), budget("b", digest))
        reports(namespace, "tokenbudget", "b", "KeysValid", operator)
        reports(other, "llmd", "m", "ServedNameConflict", operator, f"served by {namespace}/m")
        apply(cluster, other, budget("b", foreign, scope="Cluster"))
        reports(other, "tokenbudget", "b", "ScopeNotAllowed", operator, f"namespace {home} alone")
        # Given up by its spec, a name is free at once.
        apply(cluster, namespace, plain("m", f"{name}-2"))
        wait_until(
            "the name passes",
            lambda: get(cluster, other, "llmd", "m")["status"]["servedNames"] == [name],
            20,
            (operator,),
        )


def test_a_flood_in_one_namespace_delays_no_other(
    cluster: Cluster, home: str, namespace: str, other: str, tmp_path: Path
) -> None:
    """A thousand routes that want one name: another namespace's deployment is looked after before they are done."""
    install(cluster, home, f"watchNamespaces={{{namespace},{other}}}")
    flags = ("--watch-namespace", namespace, "--watch-namespace", other)
    flood = [
        {
            "apiVersion": "turnout.dev/v1alpha1",
            "kind": "LLMRoute",
            "metadata": {"name": f"r{number}"},
            "spec": {"names": ["wanted", f"{other}-{number}"], "targets": [{"deployment": "none"}]},
        }
        for number in range(1000)
    ]
    cluster.kubectl(
        "create", "--namespace", other, "--filename", "-", stdin=yaml.safe_dump_all(flood), timeout=120
    )
    with OperatorProcess(cluster, home, tmp_path, arguments=flags) as operator:
        wait_until("it leads", operator.leads, 60, (operator,))
        apply(cluster, namespace, plain("m", namespace))
        wait_until("its status", lambda: ready(cluster, namespace, "llmd", "m"), 15, (operator,))
        left = sum("status" not in item for item in _routes(cluster, other))
        assert left > 0, "it waited for the flood"


def _routes(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(cluster, namespace, "llmr")["items"]
    return found
