"""Workers closed to everybody but Turnout: a NetworkPolicy where the deployment asks for it, and none where not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.installation import llmdeployment
from support.operator_process import apply, get, wait_until
from support.operator_values import CONFIG, Fleet, raw_deployment
from turnout import terms
from turnout_operator.plan.revision import model_revision

if TYPE_CHECKING:
    from support.operator_process import OperatorProcess
    from turnout_devcluster.cluster import Cluster

NAME = "llama-worker"


def policies(manifests: Any) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector picks *labels*, as Kubernetes reads it."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ())
    )


def test_who_is_let_in() -> None:
    """Router and operator of this installation and the deployment's own workers, on any port; no other client."""
    made = Fleet(raw_deployment(networkPolicy="Restrict")).plan()
    (policy,) = policies(made.apply)
    spec = policy["spec"]
    pod = next(m for m in made.apply if m["kind"] == "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert matches(spec["podSelector"], pod)
    assert spec["policyTypes"] == ["Ingress"]
    (rule,) = spec["ingress"]
    turnout, workers = rule["from"]
    assert turnout["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": CONFIG.namespace}}
    for component, let_in in (("router", True), ("operator", True), ("worker", False), ("other", False)):
        labels = {terms.LABEL_NAME: "turnout", terms.LABEL_COMPONENT: component}
        assert matches(turnout["podSelector"], labels) is let_in
    assert not matches(turnout["podSelector"], {terms.LABEL_COMPONENT: "router"})
    assert "namespaceSelector" not in workers
    assert matches(workers["podSelector"], pod)
    assert not matches(workers["podSelector"], {**pod, terms.LABEL_DEPLOYMENT: "other"})


def test_it_comes_and_goes_with_its_field_and_replaces_no_pod() -> None:
    """None by default; applied when asked for, removed when not any more; the model revision is the same."""
    fleet = Fleet(raw_deployment())
    fleet.step()
    assert not policies(fleet.children.values())
    before = model_revision(fleet.deployment, CONFIG.worker_image)
    fleet.raw["spec"]["networkPolicy"] = "Restrict"
    fleet.step()
    assert len(policies(fleet.children.values())) == 1
    assert not policies(fleet.plan().apply)
    assert model_revision(fleet.deployment, CONFIG.worker_image) == before
    fleet.raw["spec"]["networkPolicy"] = "None"
    fleet.step()
    assert not policies(fleet.children.values())


@pytest.mark.cluster
@pytest.mark.usefixtures("node")
def test_on_a_cluster_it_is_made_kept_and_removed(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """The API server takes it, it is the deployment's own, what others change is repaired, and it goes with its field."""
    manifest = llmdeployment("llama", prefill=(1, 1), decode=(1, 1))
    manifest["spec"]["networkPolicy"] = "Restrict"
    apply(cluster, namespace, manifest)

    def policy() -> dict[str, Any] | None:
        return get(cluster, namespace, "networkpolicy", NAME)

    wait_until("the NetworkPolicy", policy, processes=(operator,))
    made = policy()
    assert made is not None
    owner = get(cluster, namespace, "llmd", "llama")["metadata"]["uid"]
    assert [one["uid"] for one in made["metadata"]["ownerReferences"]] == [owner]
    cluster.kubectl(
        *("patch", "networkpolicy", NAME, "--namespace", namespace, "--type=json"),
        *("--patch", '[{"op": "replace", "path": "/spec/ingress", "value": [{}]}]'),
    )
    wait_until(
        "the repair",
        lambda: (policy() or {"spec": {}})["spec"].get("ingress") == made["spec"]["ingress"],
        processes=(operator,),
    )
    settled = policy()
    assert settled is not None
    manifest["spec"]["networkPolicy"] = "None"
    apply(cluster, namespace, manifest)
    wait_until("the removal", lambda: policy() is None, processes=(operator,))
