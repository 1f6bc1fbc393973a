"""What the operator says of workers to routers: on new pods, on those of the release before, and never by replacing one."""

from __future__ import annotations

from typing import Any

import pytest

from support.operator_values import CONFIG, Fleet, raw_deployment
from support.previous_release import recorded_deployment, recorded_pool
from turnout import terms
from turnout.api import load_deployment
from turnout.api.worker_facts import MAX_KV_TOKENS, WorkerFacts, WorkerPorts
from turnout_operator.plan import manifests
from turnout_operator.plan.facts import worker_facts
from turnout_operator.plan.revision import model_revision

ROLES: Any = ("prefill", "decode")
EXACT = {"routing": {"cacheKnowledge": "Exact"}}


def upgraded() -> Fleet:
    """Return a deployment whose pools and pods the operator of the release before made, with nothing left to do for it."""
    fleet = Fleet(recorded_deployment())
    for role in ROLES:
        wanted = recorded_pool(role)
        fleet.children["Deployment", wanted["metadata"]["name"]] = wanted
    fleet.follow()
    return fleet


def settle(fleet: Fleet) -> None:
    for _ in range(10):
        made = fleet.step()
        if not (made.apply or made.patches or made.delete):
            return
    raise AssertionError("there is always something left to do")


def said(fleet: Fleet) -> dict[str, set[str | None]]:
    """Return the annotations on the pods of each role."""
    found: dict[str, set[str | None]] = {}
    for pod in fleet.observed_pods():
        found.setdefault(pod.role, set()).add(pod.facts)
    return found


def facts(fleet: Fleet) -> dict[str, set[str]]:
    """Return what they should be."""
    return {
        role: {worker_facts(fleet.deployment, role).to_annotation()} for role in fleet.deployment.spec.roles
    }


def templates(fleet: Fleet) -> dict[str, Any]:
    return {
        name: child["spec"]["template"]
        for (kind, name), child in fleet.children.items()
        if kind == "Deployment"
    }


def test_facts_of_a_worker() -> None:
    """Its names, adapters last; the tokens that fit into its KV cache; where it listens, and whether it publishes."""
    adapters = {"adapters": [{"name": "sql", "source": "hf://acme/sql"}]}
    deployment = Fleet(raw_deployment(lora=adapters)).deployment
    assert worker_facts(deployment, "decode") == WorkerFacts(
        engine="simulated", names=("llama", "sql"), kv_tokens=435_343, ports=WorkerPorts(http=8000)
    )
    exact = worker_facts(Fleet(raw_deployment(**EXACT)).deployment, "prefill")
    assert (exact.ports.kv_events, exact.ports.kv_replay) == (5557, 5558)


def kv_tokens(model: dict[str, Any], accelerator: str = "H100-SXM", count: int = 1) -> int:
    raw = raw_deployment(model=model)
    raw["spec"]["decode"]["accelerator"] = {"type": accelerator, "count": count}
    return worker_facts(Fleet(raw).deployment, "decode").kv_tokens


def test_kv_tokens_are_those_of_sequences_as_long_as_the_model_may_have() -> None:
    """Layers with windows make tokens of long sequences cheap."""
    gemma = {"source": "hf://google/gemma-3-27b-it"}
    assert kv_tokens({**gemma, "maxLength": 65_536}) > 1.5 * kv_tokens({**gemma, "maxLength": 8_192})


def test_kv_tokens_are_never_more_than_routers_read() -> None:
    """The smallest models on the most accelerators hold more."""
    assert kv_tokens({"source": "hf://google/gemma-3-1b-it"}, "H200-SXM", 4) == MAX_KV_TOKENS


def test_kv_tokens_that_are_not_known_are_0() -> None:
    """Of a model that nothing is known of, and on a node whose memory is not known."""
    assert kv_tokens({"source": "hf://acme/own"}) == 0
    assert kv_tokens({"source": "hf://meta-llama/Llama-3.1-8B-Instruct"}, "CPU") == 0


def test_kv_tokens_follow_the_size_that_the_user_writes() -> None:
    """It overrides the catalog: four times the KV heads hold a quarter of the tokens."""
    size = {"parametersMillion": 8030, "layers": 32, "attentionHeads": 32, "headDimension": 128}
    few, many = (
        kv_tokens({"source": "hf://meta-llama/Llama-3.1-8B", "architecture": {**size, "kvHeads": heads}})
        for heads in (8, 32)
    )
    assert few == pytest.approx(kv_tokens({"source": "hf://meta-llama/Llama-3.1-8B"}), rel=0.01)
    assert many == pytest.approx(few / 4, rel=0.01)


def test_every_pod_of_a_new_pool_is_born_with_its_facts() -> None:
    """They stand in the template, so no pod waits for the operator before routers know it."""
    fleet = Fleet(raw_deployment(**EXACT))
    fleet.step()
    assert said(fleet) == facts(fleet)
    assert not fleet.plan().patches


@pytest.mark.parametrize("role", ROLES)
def test_the_annotation_is_all_that_the_release_before_did_not_write(role: Any) -> None:
    """Its pools are what this operator makes, but for that: to the digest, so it does not even apply them again."""
    deployment = load_deployment(recorded_deployment())
    revision = model_revision(deployment, CONFIG.worker_image)
    before = recorded_pool(role)
    made = manifests.pool(
        deployment, role, revision, before["spec"]["replicas"], CONFIG.worker_image, facts="x"
    )
    assert made != before
    assert manifests.with_annotation(made, None) == before


def test_an_upgrade_replaces_no_worker_and_marks_all() -> None:
    """Pools of the release before keep their template, their pods get the annotation in place."""
    fleet = upgraded()
    before, pods = templates(fleet), set(fleet.pods)
    made = fleet.step()
    assert not [manifest for manifest in made.apply if manifest["kind"] == "Deployment"]
    assert {patch.name for patch in made.patches} == pods
    settle(fleet)
    assert said(fleet) == facts(fleet)
    assert (templates(fleet), set(fleet.pods), fleet.gone) == (before, pods, [])


def test_a_pod_that_is_made_from_an_old_template_later_is_marked_as_well() -> None:
    """The pool grows after the upgrade."""
    fleet = upgraded()
    settle(fleet)
    before = templates(fleet)
    fleet.raw["spec"]["decode"]["replicas"]["min"] = 4
    settle(fleet)
    assert fleet.ready("decode") == 4
    assert said(fleet) == facts(fleet)
    assert templates(fleet) == before


def test_a_template_that_changes_anyway_takes_the_annotation_along() -> None:
    """Here for a flag of the workers that is no part of the revision; and a new revision has it from the start."""
    fleet = upgraded()
    settle(fleet)
    fleet.raw["spec"]["routing"]["cacheKnowledge"] = "Estimated"
    made = fleet.plan()
    applied = [manifest for manifest in made.apply if manifest["kind"] == "Deployment"]
    assert len(applied) == len(ROLES)
    for manifest in applied:
        (fact,) = facts(fleet)[manifest["metadata"]["labels"][terms.LABEL_ROLE]]
        assert manifest["spec"]["template"]["metadata"]["annotations"] == {terms.ANNOTATION_WORKER: fact}


def test_a_pod_that_runs_with_other_arguments_is_not_marked_like_the_others() -> None:
    """While a template rolls, pods of both stand in one pool: those that do not publish must not say that they do."""
    fleet = Fleet(raw_deployment())
    settle(fleet)
    old = dict(said(fleet))
    fleet.raw["spec"]["routing"] = EXACT["routing"]
    fleet.carry_out(fleet.plan())
    assert not fleet.plan().patches
    assert said(fleet) == old != facts(fleet)


def test_an_annotation_that_is_edited_is_put_back_in_place() -> None:
    """On a pod, and in a template: another template would replace the pods, so it stays until something else changes."""
    fleet = Fleet(raw_deployment())
    settle(fleet)
    for name in list(fleet.pods)[:2]:
        fleet.pods[name]["metadata"]["annotations"][terms.ANNOTATION_WORKER] = "{}"
    assert len(fleet.plan().patches) == 2
    settle(fleet)
    assert said(fleet) == facts(fleet)
    (name,) = [name for name in templates(fleet) if "decode" in name]
    child = fleet.children["Deployment", name]
    fleet.children["Deployment", name] = manifests.with_annotation(
        child, '{"engine":"simulated","names":["x"]}'
    )
    pods = set(fleet.pods)
    settle(fleet)
    assert set(fleet.pods) == pods
    fleet.raw["spec"]["decode"]["replicas"]["min"] = 3
    settle(fleet)
    assert said(fleet) == facts(fleet)


def test_a_pod_that_leaves_is_left_alone() -> None:
    """Routers give it nothing more: a pod of the release before that drains is not marked."""
    fleet = upgraded()
    leaving = next(name for name in fleet.pods if "decode" in name)
    meta = fleet.pods[leaving]["metadata"]
    meta["labels"][terms.LABEL_DRAINING] = "true"
    fleet.raw["spec"]["decode"]["replicas"] = {"min": 1, "max": 1}
    marking = [
        patch.name
        for patch in fleet.plan().patches
        if terms.ANNOTATION_WORKER in patch.body["metadata"].get("annotations", {})
    ]
    assert sorted([*marking, leaving]) == sorted(fleet.pods)


def test_a_real_engine_says_itself_how_much_its_cache_holds() -> None:
    """It knows what its weights have left of the memory. What a pod has said once stays, also where it does not answer."""
    fleet = Fleet(raw_deployment(engine={"type": "vllm"}))

    def known() -> dict[str, int]:
        return {
            pod.name: WorkerFacts.from_annotation(pod.facts or "").kv_tokens for pod in fleet.observed_pods()
        }

    settle(fleet)
    assert set(known().values()) == {0}
    fleet.kv_tokens = {name: 5000 + index for index, name in enumerate(fleet.pods)}
    fleet.step()
    assert known() == fleet.kv_tokens
    fleet.kv_tokens = {}
    assert not fleet.plan().patches
