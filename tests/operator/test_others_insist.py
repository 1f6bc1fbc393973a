"""Others that insist on a field of ours, on a real API server: a mutating policy, and a controller."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.installation import llmdeployment
from support.operator_node import ACCELERATOR
from support.operator_process import OperatorProcess, apply, condition, get, items, wait_until
from turnout_devcluster.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from turnout_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("node")]


def manifest() -> dict[str, Any]:
    made = llmdeployment("llama", prefill=None, decode=(1, 1))
    made["spec"]["decode"]["accelerator"]["type"] = ACCELERATOR
    return made


def ready(cluster: Cluster, namespace: str) -> bool:
    return condition(get(cluster, namespace, "llmd", "llama"), "Ready").get("status") == "True"


def said(cluster: Cluster, namespace: str) -> str:
    return str(condition(get(cluster, namespace, "llmd", "llama"), "FieldsOverridden").get("message", ""))


def pool(cluster: Cluster, namespace: str) -> dict[str, Any]:
    (found,) = items(cluster, namespace, "deployments")
    return found


def applies(operator: OperatorProcess) -> float:
    """Return how many objects the operator has applied."""
    lines = operator.get("/metrics")[1].splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("turnout_operator_api_requests_total{") and 'verb="apply"' in line
    )


def rounds(operator: OperatorProcess, count: int) -> None:
    """Wait for *count* decisions, each of which is followed by a pass."""
    begun = operator.metric("turnout_operator_scaling_decisions_total")
    wait_until(
        f"{count} rounds",
        lambda: operator.metric("turnout_operator_scaling_decisions_total") >= begun + count,
        processes=(operator,),
    )


@contextmanager
def policy(cluster: Cluster, namespace: str) -> Iterator[None]:
    """Have the API server itself set another grace period on every Deployment of *namespace*."""
    change = (
        "Object{spec: Object.spec{template: Object.spec.template{spec: "
        "Object.spec.template.spec{terminationGracePeriodSeconds: 300}}}}"
    )
    group = "admissionregistration.k8s.io/v1"
    rule = {
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["deployments"],
    }
    name = f"grace-{namespace}"
    made = (
        {
            "apiVersion": group,
            "kind": "MutatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {
                    "resourceRules": [rule],
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                },
                "failurePolicy": "Fail",
                "reinvocationPolicy": "Never",
                "mutations": [
                    {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": change}}
                ],
            },
        },
        {
            "apiVersion": group,
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name},
        },
    )
    for each in made:
        cluster.kubectl("apply", "--filename", "-", stdin=json.dumps(each))
    try:
        yield
    finally:
        cluster.kubectl(
            "delete", "mutatingadmissionpolicybindings,mutatingadmissionpolicies", name, "--ignore-not-found"
        )


def test_a_mutating_policy_is_accepted_and_named(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """It changes a field of each write: it stands, is said once, and costs no further write; an edit is put back."""
    probe = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "probe"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "probe"}},
            "template": {
                "metadata": {"labels": {"app": "probe"}},
                "spec": {"containers": [{"name": "c", "image": "c"}]},
            },
        },
    }
    with policy(cluster, namespace):

        def in_force() -> bool:
            cluster.kubectl("delete", "deployment", "probe", "--namespace", namespace, "--ignore-not-found")
            apply(cluster, namespace, probe)
            made = get(cluster, namespace, "deployment", "probe")
            return bool(made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 300)

        wait_until("the policy is in force", in_force, 60)
        cluster.kubectl("delete", "deployment", "probe", "--namespace", namespace)
        apply(cluster, namespace, manifest())
        wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))
        wait_until("it says so", lambda: said(cluster, namespace), processes=(operator,))
        assert "spec.template.spec.terminationGracePeriodSeconds is 300, not 120" in said(cluster, namespace)
        rounds(operator, 3)
        before = applies(operator)
        rounds(operator, 10)
        assert applies(operator) == before
        name = pool(cluster, namespace)["metadata"]["name"]
        cluster.kubectl("set", "image", f"deployment/{name}", "worker=evil:1", "--namespace", namespace)

        def mended() -> bool:
            spec = pool(cluster, namespace)["spec"]["template"]["spec"]
            return spec["containers"][0]["image"] != "evil:1" and spec["terminationGracePeriodSeconds"] == 300

        wait_until("the edit is put back", mended, processes=(operator,))
        events = [item["reason"] for item in items(cluster, namespace, "events")]
        assert events.count("FieldsOverridden") == 1


@contextmanager
def insisting(change: Callable[[], None]) -> Iterator[list[int]]:
    """Call *change* again and again until the context ends; yield a list that grows with each call."""
    over, calls = threading.Event(), [0]

    def insist() -> None:
        while not over.wait(0.2):
            try:
                change()
            except CommandError:
                continue  # the object is being replaced
            calls[0] += 1

    thread = threading.Thread(target=insist, daemon=True)
    thread.start()
    try:
        yield calls
    finally:
        over.set()
        thread.join(30)


def test_a_controller_that_insists_is_named_and_answered_ever_more_rarely(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """It sets replicas after each of our writes: three are repaired at once, then its name is said and the pauses grow."""
    apply(cluster, namespace, manifest())
    wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))
    name = pool(cluster, namespace)["metadata"]["name"]
    patch = json.dumps({"spec": {"revisionHistoryLimit": 9}})

    def change() -> None:
        cluster.kubectl(
            *("patch", "deployment", name, "--namespace", namespace, "--type=merge", "--patch", patch),
            "--field-manager=some-controller",
        )

    with insisting(change) as calls:
        wait_until("it is named", lambda: said(cluster, namespace), 60, (operator,))
        message = said(cluster, namespace)
        assert 'field manager "some-controller" changes spec.revisionHistoryLimit again and again' in message
        # The pause is 10 s by now: far more changes and passes than writes.
        before, changed = applies(operator), calls[0]
        rounds(operator, 12)
        wait_until("it insists", lambda: calls[0] >= changed + 12)
        assert applies(operator) - before <= 3
        assert said(cluster, namespace) == message
        events = [item["reason"] for item in items(cluster, namespace, "events")]
        assert events.count("FieldsOverridden") == 1
    wait_until(
        "it is put back once the other is gone",
        lambda: pool(cluster, namespace)["spec"]["revisionHistoryLimit"] == 2,
        45,
        (operator,),
    )
