"""The chart from the first install to the last uninstall, on a real cluster with running pods."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.api_manifests import deployment, edited
from support.chart_rendering import CHART, NAMESPACE, copy_with_field, copy_without_rules
from turnout_devcluster.errors import CommandError

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster

CRDS = {"llmdeployments.turnout.dev", "llmroutes.turnout.dev", "tokenbudgets.turnout.dev"}
SMALL = ("--set", "operator.replicas=1", "--set", "router.replicas=1")
"""For tests that are about something else."""
NOTED = edited(deployment(), {"spec.note": "kept"})
"""An object with a field that only the changed chart knows."""


def helm(cluster: Cluster, verb: str, *args: str) -> str:
    waiting = () if verb == "uninstall" else ("--timeout", "3m")
    return cluster.helm(verb, "turnout", *args, "--namespace", NAMESPACE, "--wait", *waiting, timeout=200)


def install(cluster: Cluster, *flags: str, chart: Path = CHART) -> str:
    # Without --reset-values an upgrade that sets nothing keeps what the last one set.
    return helm(cluster, "upgrade", str(chart), "--install", "--create-namespace", "--reset-values", *flags)


def uninstall(cluster: Cluster) -> None:
    helm(cluster, "uninstall", "--ignore-not-found")


def crds(cluster: Cluster) -> set[str]:
    listed = json.loads(cluster.kubectl("get", "crd", "-o", "json"))["items"]
    return {crd["metadata"]["name"] for crd in listed if crd["spec"]["group"] == "turnout.dev"}


def apply(cluster: Cluster, manifest: dict[str, Any]) -> None:
    cluster.kubectl("apply", "-n", "default", "-f", "-", stdin=json.dumps(manifest))


def stored(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.kubectl("get", "llmd", "case", "-n", "default", "-o", "json"))
    return found


def ready_pods(cluster: Cluster, component: str) -> int:
    selector = f"app.kubernetes.io/instance=turnout,app.kubernetes.io/component={component}"
    pods = json.loads(cluster.kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "json"))["items"]
    return sum(
        any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", []))
        for pod in pods
    )


def front_door(cluster: Cluster) -> str:
    """Return the base URL of the OpenAI API, through the router's Service."""
    service = json.loads(cluster.kubectl("get", "service", "turnout-router", "-n", NAMESPACE, "-o", "json"))
    return f"http://{service['spec']['clusterIP']}:8080/v1"


def ask(cluster: Cluster) -> httpx.Response:
    """Ask the front door for its models."""
    return httpx.get(f"{front_door(cluster)}/models", timeout=10)


def clear(cluster: Cluster) -> None:
    """Leave the cluster as if Turnout had never been there."""
    uninstall(cluster)
    cluster.kubectl("delete", "crd", *sorted(CRDS), "--ignore-not-found", "--timeout=60s", timeout=70)


def test_install_serves(bare_cluster: Cluster) -> None:
    """After `helm install` all pods are ready and the front door answers; after an upgrade it asks for keys."""
    clear(bare_cluster)
    said = install(bare_cluster)
    assert "rollout status deployment/turnout-operator" in said
    assert (ready_pods(bare_cluster, "operator"), ready_pods(bare_cluster, "router")) == (2, 2)
    models = ask(bare_cluster)
    assert (models.status_code, models.json()["data"]) == (200, [])
    install(bare_cluster, "--set", "router.auth=required")
    assert ask(bare_cluster).status_code == 401


def test_examples_come_up(bare_cluster: Cluster) -> None:
    """Every example is Ready on a fresh installation, and the weighted name answers.

    But for those with vLLM, which `make test` does not install: tests/end_to_end/test_real_engine.py has them.
    """
    clear(bare_cluster)
    install(bare_cluster, *SMALL)
    for example in sorted((CHART.parents[1] / "examples").iterdir()):
        if "type: vllm" not in example.read_text():
            bare_cluster.kubectl("apply", "-n", "default", "-f", str(example))
    for kind in ("llmd", "llmr"):
        bare_cluster.kubectl(
            *("wait", kind, "--all", "-n", "default", "--for=condition=Ready", "--timeout=100s"), timeout=110
        )
    question = {"model": "chat", "max_tokens": 4, "messages": [{"role": "user", "content": "Good morning"}]}
    key = {"authorization": "Bearer sk-example-do-not-use"}
    answer = httpx.post(
        f"{front_door(bare_cluster)}/chat/completions", json=question, headers=key, timeout=30
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4


def test_upgrade_changes_the_crds_and_rollback_changes_them_back(
    bare_cluster: Cluster, tmp_path: Path
) -> None:
    """A new field can be used as soon as the chart that brings it is upgraded to, and no longer after a rollback."""
    clear(bare_cluster)
    install(bare_cluster, *SMALL)
    apply(bare_cluster, deployment())
    with pytest.raises(CommandError, match=r'unknown field "spec\.note"'):
        apply(bare_cluster, NOTED)
    install(bare_cluster, *SMALL, chart=copy_with_field(tmp_path, "note"))
    apply(bare_cluster, NOTED)
    before = stored(bare_cluster)
    assert before["spec"]["note"] == "kept"
    helm(bare_cluster, "rollback", "1")
    after = stored(bare_cluster)
    assert after["metadata"]["uid"] == before["metadata"]["uid"], "the object itself stays"
    assert "note" not in after["spec"]
    with pytest.raises(CommandError, match=r'unknown field "spec\.note"'):
        apply(bare_cluster, NOTED)


def test_object_older_than_a_rule_says_so(bare_cluster: Cluster, tmp_path: Path) -> None:
    """An object that a newer rule would refuse ends in a condition, and can still be labeled and put right."""
    clear(bare_cluster)
    install(bare_cluster, *SMALL, chart=copy_without_rules(tmp_path))
    apply(bare_cluster, edited(deployment(), {"spec.decode.replicas": {"min": 3, "max": 1}}))
    install(bare_cluster, *SMALL)
    here = ("-n", "default", "--timeout=60s")
    invalid = "jsonpath={.status.conditions[?(@.type=='Ready')].reason}=InvalidSpec"
    bare_cluster.kubectl("wait", "llmd/case", f"--for={invalid}", *here, timeout=70)
    (ready,) = (one for one in stored(bare_cluster)["status"]["conditions"] if one["type"] == "Ready")
    assert "spec.decode.replicas: replicas.min is greater than replicas.max: raise max" in ready["message"]
    bare_cluster.kubectl("label", "llmd", "case", "-n", "default", "seen=true")
    apply(bare_cluster, edited(deployment(), {"spec.decode.replicas": {"min": 1, "max": 1}}))
    bare_cluster.kubectl("wait", "llmd/case", "--for=condition=Ready", *here, timeout=70)


def test_uninstall_keeps_what_users_made(bare_cluster: Cluster) -> None:
    """Uninstalling takes the pods and the rights; CRDs and LLMDeployments stay, and a new install finds them."""
    clear(bare_cluster)
    install(bare_cluster, *SMALL)
    apply(bare_cluster, deployment())
    uid = stored(bare_cluster)["metadata"]["uid"]
    uninstall(bare_cluster)
    kinds = "deployment,service,poddisruptionbudget,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding"
    selector = "app.kubernetes.io/managed-by=Helm,app.kubernetes.io/instance=turnout"
    left = bare_cluster.kubectl("get", kinds, "-A", "-l", selector, "-o", "name")
    assert left == ""
    assert crds(bare_cluster) == CRDS
    assert stored(bare_cluster)["metadata"]["uid"] == uid
    install(bare_cluster, *SMALL)
    assert stored(bare_cluster)["metadata"]["uid"] == uid
    assert ready_pods(bare_cluster, "operator") == 1


def test_uninstall_removes_the_crds_on_request(bare_cluster: Cluster) -> None:
    """With crds.keep=false nothing is left, also where they were kept at first."""
    clear(bare_cluster)
    install(bare_cluster, *SMALL)
    install(bare_cluster, *SMALL, "--set", "crds.keep=false")
    uninstall(bare_cluster)
    bare_cluster.kubectl("wait", "--for=delete", "--timeout=60s", *(f"crd/{name}" for name in sorted(CRDS)))
    assert crds(bare_cluster) == set()


def test_crds_applied_by_hand_can_be_taken_over(bare_cluster: Cluster) -> None:
    """Who began with `kubectl apply -f crds/` installs with --take-ownership, or leaves them out of the release."""
    clear(bare_cluster)
    bare_cluster.kubectl("apply", "--server-side", "-f", str(CHART.parents[1] / "crds"))
    with pytest.raises(CommandError, match="invalid ownership metadata"):
        install(bare_cluster, *SMALL)
    install(bare_cluster, *SMALL, "--set", "crds.install=false")
    assert crds(bare_cluster) == CRDS
    install(bare_cluster, *SMALL, "--take-ownership")
    labels = json.loads(bare_cluster.kubectl("get", "crd", "llmroutes.turnout.dev", "-o", "json"))["metadata"]
    assert labels["labels"]["app.kubernetes.io/managed-by"] == "Helm"
