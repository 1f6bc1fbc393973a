"""The operator on a real API server: from apply to Ready, drift, restarts, deletion."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from support.installation import llmdeployment
from support.operator_node import ACCELERATOR, Load
from support.operator_process import apply, condition, get, items, kubeconfig, service_account, wait_until
from turnout.sizing.accelerators import ACCELERATORS, PRODUCT_LABEL
from turnout_operator.plan.conditions import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.operator_node import TestNode
    from support.operator_process import OperatorProcess
    from turnout_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("node")]

CHILDREN = "deployments,services,poddisruptionbudgets,pods"


def manifest(
    name: str = "llama",
    prefill: tuple[int, int] | None = (1, 2),
    decode: tuple[int, int] = (2, 4),
    **spec: Any,
) -> dict[str, Any]:
    """Return a deployment that runs on the node under control; its time runs fast, so decisions come every second."""
    made = llmdeployment(name, prefill=prefill, decode=decode, **spec)
    for pool in ("prefill", "decode"):
        if pool in made["spec"]:
            made["spec"][pool]["accelerator"]["type"] = ACCELERATOR
    return made


def ready(cluster: Cluster, namespace: str, name: str = "llama") -> bool:
    """Whether the deployment says so about its newest generation."""
    found = get(cluster, namespace, "llmd", name)
    said = condition(found, "Ready")
    return said.get("status") == "True" and said["observedGeneration"] == found["metadata"]["generation"]


def pools(cluster: Cluster, namespace: str) -> dict[str, dict[str, Any]]:
    """Return the Deployments of a namespace by name."""
    return {item["metadata"]["name"]: item for item in items(cluster, namespace, "deployments")}


def test_apply_leads_to_ready(cluster: Cluster, namespace: str, operator: OperatorProcess) -> None:
    """A manifest becomes pools, services and budgets; status matches; the children are its own."""
    apply(cluster, namespace, manifest())
    wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))
    found = get(cluster, namespace, "llmd", "llama")
    assert found["status"]["servedNames"] == ["llama"]
    assert found["status"]["endpoint"].endswith(":8080/v1")
    assert condition(found, "ModelFits")["status"] == "True"
    assert condition(found, "SLOMet")["status"] == "Unknown"
    wait_until(
        "both roles",
        lambda: get(cluster, namespace, "llmd", "llama")["status"]["decode"]["ready"] == 2,
        processes=(operator,),
    )
    owned = items(cluster, namespace, "deployments,services,poddisruptionbudgets")
    assert len(owned) == 6
    assert {child["metadata"]["ownerReferences"][0]["uid"] for child in owned} == {found["metadata"]["uid"]}
    assert "finalizers" not in found["metadata"]
    assert "annotations" not in found["metadata"] or not any(
        "kopf" in key for key in found["metadata"]["annotations"]
    )
    reasons = {
        item["reason"]
        for item in items(cluster, namespace, "events")
        if item["involvedObject"]["kind"] == "LLMDeployment"
    }
    assert "Ready" in reasons


def test_workers_run_for_real(cluster: Cluster, namespace: str, operator: OperatorProcess) -> None:
    """On nodes with a node agent the pods' simulated workers start, answer /health, and the deployment gets ready."""
    apply(cluster, namespace, llmdeployment("real"))

    def serves() -> bool:
        return ready(cluster, namespace, "real")

    try:
        wait_until("Ready", serves, 60, processes=(operator,))
    except AssertionError as error:
        error.add_note(cluster.kubectl("describe", "pods", "--namespace", namespace))
        raise


def test_what_another_changes_is_repaired(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """A deleted Deployment, an edited image and a deleted Service come back; a user's own label stays."""
    apply(cluster, namespace, manifest())
    wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))
    decode, prefill = sorted(pools(cluster, namespace))
    cluster.kubectl("label", "deployment", decode, "team=blue", "--namespace", namespace)
    cluster.kubectl("set", "image", f"deployment/{decode}", "worker=evil:1", "--namespace", namespace)
    cluster.kubectl("delete", "deployment", prefill, "--namespace", namespace)
    cluster.kubectl("delete", "service", "llama-decode", "--namespace", namespace)

    def whole() -> bool:
        found = pools(cluster, namespace)
        return (
            prefill in found
            and found[decode]["spec"]["template"]["spec"]["containers"][0]["image"] != "evil:1"
            and get(cluster, namespace, "service", "llama-decode") is not None
        )

    wait_until("everything is back", whole, 15, processes=(operator,))
    assert pools(cluster, namespace)[decode]["metadata"]["labels"]["team"] == "blue"


def test_what_another_owns_is_left_alone(cluster: Cluster, namespace: str, operator: OperatorProcess) -> None:
    """A Service that has a child's name is not taken over; the condition says so until the name is free."""
    cluster.kubectl("create", "service", "clusterip", "llama-decode", "--tcp=80:80", "--namespace", namespace)
    before = get(cluster, namespace, "service", "llama-decode")
    apply(cluster, namespace, manifest())

    def said() -> dict[str, Any]:
        return condition(get(cluster, namespace, "llmd", "llama"), "Ready")

    wait_until(
        "it serves, and says so",
        lambda: said().get("reason") == "ChildNameTaken" and said()["status"] == "True",
        processes=(operator,),
    )
    assert "there is a Service llama-decode that this deployment does not own" in said()["message"]
    assert f"kubectl --namespace {namespace} delete service llama-decode" in said()["message"]
    now = get(cluster, namespace, "service", "llama-decode")
    assert (now["metadata"], now["spec"]) == (before["metadata"], before["spec"])
    reasons = [item["reason"] for item in items(cluster, namespace, "events")]
    assert reasons.count("ChildNameTaken") == 1
    cluster.kubectl("delete", "service", "llama-decode", "--namespace", namespace)
    wait_until("the name is used", lambda: said()["reason"] == "Serves", 30, processes=(operator,))
    assert get(cluster, namespace, "service", "llama-decode")["spec"]["clusterIP"] == "None"


def test_labels_that_were_removed_come_back(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """A child that left the watched selection is found again, as often as that happens."""
    apply(cluster, namespace, manifest())
    wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))
    label = "app.kubernetes.io/managed-by"

    def labeled() -> bool:
        found = get(cluster, namespace, "service", "llama-decode")
        return found["metadata"]["labels"].get(label) == "turnout-operator"

    for _ in range(2):
        cluster.kubectl("label", "service", "llama-decode", f"{label}-", "--namespace", namespace)
        wait_until("the label is back", labeled, 15, processes=(operator,))


def test_pods_are_drained_before_the_pool_shrinks(
    cluster: Cluster, namespace: str, home: str, node: TestNode, operator: OperatorProcess
) -> None:
    """Load grows the decode pool; when it is over, the pod that leaves was labeled, and waited for, until it was idle."""
    apply(cluster, home, _router())  # without what clients experience nothing is taken away
    scaling = {"scaleDown": {"stabilization": "20s"}}
    apply(cluster, namespace, manifest(prefill=None, decode=(1, 3), scaling=scaling))
    wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))
    (first,) = [item["metadata"]["name"] for item in items(cluster, namespace, "pods")]
    node.loads[first] = Load(running=20, kv=0.97)
    wait_until(
        "growth",
        lambda: get(cluster, namespace, "llmd", "llama")["status"]["decode"]["ready"] >= 2,
        processes=(operator,),
    )
    scaled = get(cluster, namespace, "llmd", "llama")["status"]["lastScaling"]
    assert "KV cache" in scaled["reason"]
    for item in items(cluster, namespace, "pods"):
        node.loads[item["metadata"]["name"]] = Load(running=1, kv=0.02)
    draining = wait_until(
        "a victim",
        lambda: items(cluster, namespace, "pods", "-l", "turnout.dev/draining=true"),
        60,
        (operator,),
    )
    victim = draining[0]["metadata"]["name"]
    assert draining[0]["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"] == "-100"
    before = operator.metric("turnout_operator_scaling_decisions_total")
    wait_until(
        "more decisions",
        lambda: operator.metric("turnout_operator_scaling_decisions_total") >= before + 4,
        processes=(operator,),
    )
    assert victim not in node.gone
    node.loads[victim] = Load()
    wait_until("it leaves", lambda: victim in node.gone, 30, (operator,))
    reasons = [item["reason"] for item in items(cluster, namespace, "events")]
    assert "ScaledUp" in reasons
    assert "ScaledDown" in reasons


def test_a_pool_grows_by_what_routers_hold(
    cluster: Cluster, namespace: str, home: str, node: TestNode, operator: OperatorProcess
) -> None:
    """Its workers have next to nothing to do, for all others wait in the router."""
    node.router_page = f'turnout_router_held{{deployment="{namespace}/llama",role="decode"}} 12\n'
    try:
        apply(cluster, home, _router())
        apply(cluster, namespace, manifest(prefill=None, decode=(1, 3), routing={"queueing": "Router"}))
        wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))
        wait_until(
            "growth",
            lambda: get(cluster, namespace, "llmd", "llama")["status"]["decode"]["ready"] >= 3,
            processes=(operator,),
        )
    finally:
        node.router_page = ""
    scaled = get(cluster, namespace, "llmd", "llama")["status"]["lastScaling"]
    assert "requests waiting per replica, target at most 5" in scaled["reason"]


def test_a_killed_operator_goes_on_in_the_middle_of_a_rollout(
    cluster: Cluster, namespace: str, node: TestNode, start: Callable[..., OperatorProcess]
) -> None:
    """Prefill and decode of the new revision come together, though the operator dies half way."""
    operator = start()
    apply(cluster, namespace, manifest(prefill=(1, 2), decode=(2, 4)))
    wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))
    old = get(cluster, namespace, "llmd", "llama")["status"]["revision"]
    node.held_back.add("llama-decode-")  # new decode workers do not get ready, those that are stay so
    try:
        kept = [item["metadata"]["name"] for item in items(cluster, namespace, "pods")]
        node.exempt.update(kept)
        patch = {"spec": {"model": {"revision": "v2"}}}
        cluster.kubectl(
            "patch", "llmd", "llama", "--namespace", namespace, "--type=merge", "--patch", json.dumps(patch)
        )
        wait_until("both new pools", lambda: len(pools(cluster, namespace)) == 4, processes=(operator,))
        operator.kill()
        assert get(cluster, namespace, "llmd", "llama")["status"]["revision"] == old
        operator = start()
        wait_until("it leads again", operator.leads, 25, (operator,))
        assert all(name not in node.gone for name in kept), (
            "an old worker left before its successor was ready"
        )
    finally:
        node.held_back.clear()
    wait_until("the old revision is gone", lambda: len(pools(cluster, namespace)) == 2, 60, (operator,))
    assert all(old not in name for name in pools(cluster, namespace))
    wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))


def test_another_operator_takes_over(
    cluster: Cluster, namespace: str, home: str, start: Callable[..., OperatorProcess]
) -> None:
    """Two run and one acts; kill -9 the one, and within 20 s the other acts; SIGTERM hands over at once."""
    first = start("operator-a")
    wait_until("the first leads", first.leads, processes=(first,))
    second = start("operator-b")
    wait_until("the second stands by", lambda: second.get("/readyz")[0] == 200, processes=(second,))
    assert not second.leads()
    first.kill()
    killed_at = time.monotonic()
    apply(cluster, namespace, manifest(prefill=None, decode=(1, 1)))
    wait_until("pools", lambda: pools(cluster, namespace), 20, (second,))
    assert time.monotonic() - killed_at <= 20
    third = start("operator-c")
    wait_until("the third stands by", lambda: third.get("/readyz")[0] == 200, processes=(third,))
    assert second.terminate() == 0
    wait_until("the third leads", third.leads, 6, (third,))
    lease = get(cluster, home, "lease", service_account(home))
    assert lease["spec"]["holderIdentity"] == "operator-c"


def test_new_credentials_are_read_when_the_old_ones_are_refused(
    cluster: Cluster, namespace: str, home: str, tmp_path: Path, operator: OperatorProcess
) -> None:
    """The service account is made anew, so its tokens die: with a new one in its file the operator goes on, unharmed."""
    wait_until("it leads", operator.leads, processes=(operator,))
    account = service_account(home)
    cluster.kubectl("delete", "serviceaccount", account, "--namespace", home)
    cluster.kubectl("create", "serviceaccount", account, "--namespace", home)
    assert operator.kubeconfig is not None
    kubeconfig(cluster, home, tmp_path).replace(operator.kubeconfig)

    def refused() -> bool:
        return 'code="401"' in operator.get("/metrics")[1]

    wait_until("the old token is refused", refused, 60, (operator,))
    apply(cluster, namespace, manifest())
    wait_until("Ready", lambda: ready(cluster, namespace), 30, (operator,))
    assert operator.leads()
    assert operator.process is not None
    assert operator.process.poll() is None


def test_deletion_takes_everything_also_while_the_operator_is_down(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """Owner references do it: there is no finalizer that would wait for an operator."""
    apply(cluster, namespace, manifest())
    wait_until("Ready", lambda: ready(cluster, namespace), processes=(operator,))
    operator.kill()
    cluster.kubectl("delete", "llmd", "llama", "--namespace", namespace, "--timeout=20s")
    wait_until(
        "nothing is left",
        lambda: not items(cluster, namespace, CHILDREN),
        30,
    )
    accounts = [item["metadata"]["name"] for item in items(cluster, namespace, "serviceaccounts")]
    assert accounts == ["default"]


def test_the_oldest_keeps_a_name_that_two_claim(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """The newcomer's status names the holder of the name, and gets it once that one is gone."""
    apply(cluster, namespace, manifest("older", prefill=None, decode=(1, 1), model=_model("shared")))
    wait_until("the older is ready", lambda: ready(cluster, namespace, "older"), processes=(operator,))
    created = get(cluster, namespace, "llmd", "older")["metadata"]["creationTimestamp"]
    # creationTimestamp has whole seconds, and the younger must have a later one.
    wait_until("the next second", lambda: rfc3339(time.time()) > created)
    apply(cluster, namespace, manifest("newer", prefill=None, decode=(1, 1), model=_model("shared")))
    wait_until(
        "the conflict",
        lambda: (
            condition(get(cluster, namespace, "llmd", "newer"), "Ready").get("reason") == "ServedNameConflict"
        ),
        processes=(operator,),
    )
    assert "older" in condition(get(cluster, namespace, "llmd", "newer"), "Ready")["message"]
    assert get(cluster, namespace, "llmd", "older")["status"]["servedNames"] == ["shared"]
    cluster.kubectl("delete", "llmd", "older", "--namespace", namespace)
    wait_until("the name is free", lambda: ready(cluster, namespace, "newer"), processes=(operator,))


def test_a_route_says_which_target_is_missing(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """An LLMRoute is ready while its targets exist."""
    route = {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "LLMRoute",
        "metadata": {"name": "chat"},
        "spec": {"names": ["chat"], "targets": [{"deployment": "llama"}]},
    }
    apply(cluster, namespace, route)
    wait_until(
        "it says so",
        lambda: (
            condition(get(cluster, namespace, "llmroute", "chat"), "Ready").get("reason")
            == "DeploymentNotFound"
        ),
        processes=(operator,),
    )
    apply(cluster, namespace, manifest(prefill=None, decode=(1, 1)))
    wait_until(
        "it leads somewhere",
        lambda: condition(get(cluster, namespace, "llmroute", "chat"), "Ready").get("status") == "True",
        processes=(operator,),
    )


def test_an_idle_operator_leaves_the_api_server_alone(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """Once all is as it should be, five rounds of decisions cost no request but those for the lease."""
    apply(cluster, namespace, manifest())
    wait_until(
        "all ready",
        lambda: (
            (get(cluster, namespace, "llmd", "llama").get("status") or {}).get("decode", {}).get("ready") == 2
        ),
        processes=(operator,),
    )

    def requests() -> float:
        lines = operator.get("/metrics")[1].splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("turnout_operator_api_requests_total{") and "leases" not in line
        )

    def rounds() -> float:
        return operator.metric("turnout_operator_scaling_decisions_total")

    begun = rounds()
    wait_until("it settles", lambda: rounds() >= begun + 3, 60, processes=(operator,))
    before, begun = requests(), rounds()
    wait_until("five rounds", lambda: rounds() >= begun + 5, 90, processes=(operator,))
    assert requests() == before


def _router() -> dict[str, Any]:
    """Return a pod that looks like a router, on the node under control."""
    known = ACCELERATORS[ACCELERATOR]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "router",
            "labels": {"app.kubernetes.io/name": "turnout", "app.kubernetes.io/component": "router"},
        },
        "spec": {
            "nodeSelector": {PRODUCT_LABEL: known.product},
            "containers": [{"name": "router", "image": "router", "command": ["turnout-router"]}],
        },
    }


def _model(served: str) -> dict[str, Any]:
    return {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "servedNames": [served], "maxLength": 32768}
