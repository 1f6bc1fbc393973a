"""Kubernetes' objects as routing needs them, where no API server is needed to show it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.previous_release import recorded_deployment, recorded_pod
from turnout import terms
from turnout.api import load_deployment
from turnout.api.loading import InvalidResource
from turnout.routing import Backend, KvEventPorts
from turnout.routing.admission import AdmissionBounds
from turnout_operator.plan.facts import worker_facts
from turnout_router.fleet.discovery.translate import backend_of, deployment_of, grants_of

if TYPE_CHECKING:
    from turnout.api import Role


def deployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": terms.API_VERSION,
        "kind": "LLMDeployment",
        "metadata": {"name": "m", "namespace": "ns"},
        "spec": {
            "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct"},
            "engine": {"type": "simulated"},
            "decode": {"accelerator": {"type": "H100-SXM"}},
            **spec,
        },
    }


def test_a_deployments_own_bounds_are_read() -> None:
    """What it does not say is left to the router."""
    assert deployment_of(deployment()).admission == AdmissionBounds()
    own = {"requestsPerWorker": 3, "waitingRequests": 0, "maxWait": "1m500ms"}
    assert deployment_of(deployment(routing={"admission": own})).admission == AdmissionBounds(
        requests_per_worker=3, waiting=0, wait_seconds=60.5
    )


def test_where_requests_wait_is_read() -> None:
    """In the engines by default."""
    assert deployment_of(deployment()).queueing == "Engine"
    assert deployment_of(deployment(routing={"queueing": "Router"})).queueing == "Router"


def pod(**facts: Any) -> dict[str, Any]:
    """Return a ready pod with that annotation, and arguments and ports that say something else."""
    payload = {"engine": "simulated", "names": ["m"], **facts}
    container = {
        "name": "worker",
        "args": ["simulate", "--served-name", "other", "--tensor-parallel", "\u00b2"],
        "ports": [{"name": "http", "containerPort": "many"}, {"name": "kv-events", "containerPort": 1}],
    }
    return {
        "metadata": {
            "name": "w",
            "namespace": "ns",
            "labels": {
                terms.LABEL_DEPLOYMENT: "m",
                terms.LABEL_ROLE: "decode",
                terms.LABEL_REVISION: "r",
            },
            "annotations": {terms.ANNOTATION_WORKER: json.dumps(payload)},
        },
        "spec": {"containers": [container]},
        "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def test_adapters_are_names_of_the_deployment() -> None:
    """Clients call them like the model's own names."""
    route = deployment_of(deployment(lora={"adapters": [{"name": "sql", "source": "hf://acme/sql"}]}))
    assert (route.adapters, route.claimed_names) == ({"sql"}, ("m", "sql"))


def test_what_the_operator_says_of_a_worker_is_all_that_is_read() -> None:
    """Names, KV cache and ports come from the annotation, whatever the pod's arguments and ports are."""
    ports = {"http": 8001, "kvEvents": 5557, "kvReplay": 5558}
    assert backend_of(pod(names=["m", "sql"], kvTokens=1000, ports=ports)) == Backend(
        id="ns/w",
        deployment="ns/m",
        host="127.0.0.1",
        port=8001,
        role="decode",
        revision="r",
        names=("m", "sql"),
        kv_tokens=1000,
        kv_events=KvEventPorts(5557, 5558),
    )
    least = backend_of(pod())
    assert least is not None
    assert (least.port, least.names, least.kv_tokens, least.kv_events) == (8000, ("m",), 0, None)


def test_arguments_do_not_stand_in_for_an_annotation_that_cannot_be_read() -> None:
    """Such a pod is no backend, even where its arguments could be read."""
    odd = pod(names=[])
    odd["spec"]["containers"][0] = {"name": "worker", "args": ["--served-name", "m"]}
    with pytest.raises(InvalidResource, match=r"annotation turnout\.dev/worker: names"):
        backend_of(odd)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_pods_of_the_release_before_mean_the_same(role: Role) -> None:
    """What was read of their arguments is what this release's operator says of the same workers."""
    before = backend_of(recorded_pod(role, "w"))
    assert before == Backend(
        id="models/w",
        deployment="models/llama",
        host="127.0.0.1",
        port=8000,
        role=role,
        revision="6b28c6f8",
        names=("llama-8b", "llama", "sql"),
        kv_tokens=435_343,
        kv_events=KvEventPorts(5557, 5558),
    )
    facts = worker_facts(load_deployment(recorded_deployment()), role)
    marked = recorded_pod(role, "w")
    marked["metadata"]["annotations"] = {terms.ANNOTATION_WORKER: facts.to_annotation()}
    marked["spec"] = {}
    assert backend_of(marked) == before


@pytest.mark.parametrize(
    ("container", "says"),
    [
        ({"args": ["simulate"]}, "names"),
        ({"args": ["--served-name", "a/b"]}, "a name has 1 to 96"),
        ({"args": ["--served-name", "m"], "ports": [{"name": "http", "containerPort": "many"}]}, "http"),
    ],
)
def test_a_pod_of_the_release_before_that_makes_no_sense_is_refused(
    container: dict[str, Any], says: str
) -> None:
    """With a sentence that names the container."""
    odd = recorded_pod("decode", "w")
    odd["spec"]["containers"] = [{"name": "worker", **container}]
    with pytest.raises(InvalidResource, match=f"its container worker: .*{says}"):
        backend_of(odd)


def test_a_budget_says_whose_holders_may_ask_why() -> None:
    """None by default."""
    budget: dict[str, Any] = {
        "apiVersion": terms.API_VERSION,
        "kind": "TokenBudget",
        "metadata": {"name": "b", "namespace": "ns"},
        "spec": {"keys": [{"name": "k", "sha256": "0" * 64}]},
    }
    assert [grant.explain for grant in grants_of(budget, "")] == [False]
    budget["spec"]["explain"] = True
    assert [grant.explain for grant in grants_of(budget, "")] == [True]
