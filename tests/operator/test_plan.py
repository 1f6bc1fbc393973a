"""The plan for a deployment, situation by situation: pure, without a cluster."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.operator_values import CONFIG, Fleet, raw_deployment
from turnout import terms
from turnout.scaling.decision import ScalingDecision, ScalingLimit
from turnout.sizing.architecture import ModelArchitecture
from turnout_operator.plan.status import condition

if TYPE_CHECKING:
    from turnout_operator.plan.config import PlanConfig


def decided(
    fleet: Fleet, *, apply: bool = True, limit: ScalingLimit | None = None, **desired: int
) -> ScalingDecision:
    current: Any = {
        role: (fleet.raw["status"].get("prefill" if role == "prefill" else "decode") or {})["desired"]
        for role in desired
    }
    return ScalingDecision(desired, current, apply, "because the test says so", limit)  # type: ignore[arg-type]


def settled(
    fleet: Fleet, decision: ScalingDecision | None = None, config: PlanConfig = CONFIG, steps: int = 40
) -> Fleet:
    """Step until a plan has nothing left to do."""
    for _ in range(steps):
        made = fleet.step(decision, config)
        if not (made.apply or made.patches or made.delete or fleet.plan(decision, config).requeue_seconds):
            return fleet
    raise AssertionError(f"not settled: {fleet.replicas()}")


def test_no_worker_is_left_to_cut_its_answers_silently() -> None:
    """Workers drain before SIGTERM, and their shutdown time-out is the pod's grace period: vLLM's default is 0."""
    for manifest in Fleet(raw_deployment()).plan().apply:
        if manifest["kind"] == "Deployment":
            pod = manifest["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            args = container["args"]
            assert args[args.index("--shutdown-timeout") + 1] == str(pod["terminationGracePeriodSeconds"])
            assert container["lifecycle"]["preStop"]["exec"]["command"][:2] == ["turnout-worker", "drain"]


def test_a_fresh_deployment_starts_at_its_minimum() -> None:
    """Everything it needs is applied at once, pools at replicas.min, and it is not called ready."""
    made = Fleet(raw_deployment()).plan()
    kinds = sorted(manifest["kind"] for manifest in made.apply)
    assert kinds == [
        "Deployment",
        "Deployment",
        "PodDisruptionBudget",
        "PodDisruptionBudget",
        "Service",
        "Service",
        "ServiceAccount",
    ]
    replicas = {
        m["metadata"]["labels"][terms.LABEL_ROLE]: m["spec"]["replicas"]
        for m in made.apply
        if m["kind"] == "Deployment"
    }
    assert replicas == {"prefill": 1, "decode": 2}
    assert condition(made.status, "Ready")["reason"] == "NoReadyWorkers"
    assert "lastScaling" not in made.status


def test_every_child_is_owned_by_the_deployment() -> None:
    """The garbage collector finds all of it, so no finalizer is needed."""
    for manifest in Fleet(raw_deployment()).plan().apply:
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner["uid"] == "uid-llama"
        assert owner["controller"]
        assert owner["blockOwnerDeletion"]


def test_ready_once_a_worker_of_every_role_serves() -> None:
    """With one ready pod per role the deployment serves, and says under which names."""
    fleet = settled(Fleet(raw_deployment()))
    ready = condition(fleet.raw["status"], "Ready")
    assert (ready["status"], ready["reason"], ready["message"]) == ("True", "Serves", "serves llama")
    assert fleet.raw["status"]["prefill"] == {"desired": 1, "replicas": 1, "ready": 1, "summary": "1/1"}


def test_nothing_is_done_where_nothing_differs() -> None:
    """A settled deployment's plan is empty, whatever the API server filled in."""
    fleet = settled(Fleet(raw_deployment()))
    for (kind, _), child in fleet.children.items():
        child["metadata"]["labels"] = {**child["metadata"]["labels"], "team": "blue"}
        if kind == "Deployment":
            child["spec"] = {**child["spec"], "progressDeadlineSeconds": 600}
    made = fleet.plan()
    assert (made.apply, made.patches, made.delete, made.notices, made.requeue_seconds) == (
        (),
        (),
        (),
        (),
        None,
    )


@pytest.mark.parametrize(
    "edit",
    [
        lambda child: child["spec"].update(replicas=7),
        lambda child: child["spec"]["template"]["spec"]["containers"][0].update(image="evil:1"),
        lambda child: child["spec"]["template"]["spec"]["containers"][0].update(args=["simulate"]),
        lambda child: (
            child["metadata"]["labels"].pop(terms.LABEL_ROLE)
            and child["metadata"]["labels"].update({terms.LABEL_ROLE: "prefill"})
        ),
        lambda child: child["metadata"].update(ownerReferences=[]),
    ],
    ids=["replicas", "image", "arguments", "label", "owner"],
)
def test_an_edited_child_is_put_back(edit: Any) -> None:
    """Whatever another writer changes of ours is applied again, and nothing else is."""
    fleet = settled(Fleet(raw_deployment(prefill=None)))
    key = next(key for key in fleet.children if key[0] == "Deployment")
    fleet.children[key] = copy.deepcopy(fleet.children[key])
    edit(fleet.children[key])
    assert [manifest["metadata"]["name"] for manifest in fleet.plan().apply] == [key[1]]


def test_a_deleted_child_comes_back() -> None:
    """A Service that was deleted is applied again."""
    fleet = settled(Fleet(raw_deployment()))
    del fleet.children["Service", "llama-decode"]
    assert [(m["kind"], m["metadata"]["name"]) for m in fleet.plan().apply] == [("Service", "llama-decode")]


def test_edited_replicas_are_not_taken_for_a_request() -> None:
    """What scaling asked for stands in status: someone's kubectl scale does not become the new size."""
    fleet = settled(Fleet(raw_deployment()))
    pool = next(
        child for (kind, name), child in fleet.children.items() if kind == "Deployment" and "decode" in name
    )
    pool["spec"] = {**pool["spec"], "replicas": 5}
    fleet.follow()
    made = fleet.plan()
    assert made.status["decode"]["desired"] == 2
    assert "lastScaling" not in made.status


def test_scaling_up_applies_and_reports() -> None:
    """More replicas are asked for at once; status and Event carry the decision's sentence."""
    fleet = settled(Fleet(raw_deployment()))
    made = fleet.step(decided(fleet, prefill=1, decode=3))
    assert fleet.replicas("decode") == {next(iter(fleet.replicas("decode"))): 3}
    assert made.status["lastScaling"]["from"] == "prefill 1, decode 2"
    assert made.status["lastScaling"]["to"] == "prefill 1, decode 3"
    assert [(n.reason, n.message) for n in made.notices] == [("ScaledUp", "because the test says so")]
    assert fleet.plan(decided(fleet, prefill=1, decode=3)).notices == ()


def test_scaling_down_drains_first() -> None:
    """The victim is labeled, keeps serving its requests, and goes only once it is idle."""
    fleet = settled(Fleet(raw_deployment(decode=(1, 6))))
    settled(fleet, decided(fleet, prefill=1, decode=2))
    busy, idle = sorted(name for name in fleet.pods if "decode" in name)
    fleet.loads = {busy: 9, idle: 3}
    down = decided(fleet, prefill=1, decode=1)
    made = fleet.step(down)
    assert [patch.name for patch in made.patches] == [idle]
    assert [n.reason for n in made.notices] == ["ScaledDown"]
    for _ in range(30):
        fleet.step(down)
    assert fleet.gone == []
    fleet.loads[idle] = 0
    settled(fleet, down)
    assert fleet.gone == [idle]
    assert fleet.ready("decode") == 1


def test_a_stream_without_end_does_not_hold_a_pod_for_good() -> None:
    """After the drain deadline the pod goes with what it still has; its preStop hook and grace period follow."""
    fleet = settled(Fleet(raw_deployment(decode=(1, 6))))
    settled(fleet, decided(fleet, prefill=1, decode=2))
    fleet.loads = dict.fromkeys(fleet.pods, 5)
    down = decided(fleet, prefill=1, decode=1)
    fleet.step(down)
    fleet.now += 121
    settled(fleet, down)
    assert len(fleet.gone) == 1


def test_demand_that_returns_takes_a_draining_pod_back() -> None:
    """The label goes instead of a new pod starting."""
    fleet = settled(Fleet(raw_deployment(decode=(1, 6))))
    settled(fleet, decided(fleet, prefill=1, decode=2))
    fleet.loads = dict.fromkeys(fleet.pods, 5)
    fleet.step(decided(fleet, prefill=1, decode=1))
    assert fleet.ready("decode") == 1
    before = set(fleet.pods)
    fleet.step(decided(fleet, prefill=1, decode=2))
    assert fleet.ready("decode") == 2
    assert set(fleet.pods) == before


@given(data=st.data())
@settings(max_examples=60)
def test_no_loaded_pod_ever_leaves_before_its_deadline(data: st.DataObject) -> None:
    """However decisions change and operators restart between passes, only idle pods are taken."""
    fleet = settled(Fleet(raw_deployment(prefill=None, decode=(1, 6))))
    for _ in range(data.draw(st.integers(3, 12))):
        decision = decided(fleet, aggregated=data.draw(st.integers(1, 6)))
        # A router gives nothing new to a draining pod, and nothing at all to one that is not ready.
        fleet.loads = {
            pod.name: data.draw(st.integers(0, fleet.loads.get(pod.name, 0) if pod.draining else 2))
            for pod in fleet.observed_pods()
            if pod.ready
        }
        before = len(fleet.gone)
        fleet.step(decision if data.draw(st.booleans()) else None, ready=data.draw(st.booleans()))
        assert all(fleet.loads.get(name, 0) == 0 for name in fleet.gone[before:])
    fleet.loads = {}
    settled(fleet, decided(fleet, aggregated=1), steps=200)
    assert fleet.ready("aggregated") == 1


def test_a_new_model_rolls_prefill_and_decode_out_together() -> None:
    """At every step a revision that serves has both roles, as many as are asked for in all, and the old one drains."""
    fleet = settled(Fleet(raw_deployment(prefill=(2, 4), decode=(4, 6))))
    fleet.raw["spec"]["model"]["revision"] = "v2"
    fleet.raw["metadata"]["generation"] = 2
    old = fleet.raw["status"]["revision"]
    milestones: list[str] = []
    for _ in range(200):
        made = fleet.step()
        milestones += [notice.reason for notice in made.milestones]
        for role, least in (("prefill", 2), ("decode", 4)):
            assert fleet.ready(f"llama-{role}") >= least, fleet.replicas()
        if len(fleet.replicas()) == 2 and old not in str(fleet.replicas()):
            break
    assert milestones == ["RolloutStarted", "RolloutFinished"]
    fleet.step()
    assert fleet.raw["status"]["revision"] != old
    assert sorted(fleet.replicas().values()) == [2, 4]


def test_a_rollout_that_is_taken_back_ends_where_it_began() -> None:
    """The old revision in the spec again: its pools grow back, the new ones drain and go."""
    fleet = settled(Fleet(raw_deployment(prefill=(1, 4), decode=(2, 6))))
    first = fleet.raw["status"]["revision"]
    fleet.raw["spec"]["model"]["revision"] = "v2"
    for _ in range(3):
        fleet.step()
    fleet.raw["spec"]["model"]["revision"] = "main"
    settled(fleet, steps=100)
    assert fleet.raw["status"]["revision"] == first
    assert all(first in name for name in fleet.replicas())


def test_joining_prefill_and_decode_keeps_the_old_pools_until_the_new_one_serves() -> None:
    """From two pools to an aggregated one: nothing leaves before its successor is ready, and then all of it goes."""
    fleet = settled(Fleet(raw_deployment(prefill=(1, 4), decode=(2, 6))))
    del fleet.raw["spec"]["prefill"]
    fleet.step(ready=False)
    fleet.step(ready=False)
    assert fleet.ready("prefill") == 1
    assert condition(fleet.raw["status"], "Ready")["status"] == "True"
    settled(fleet, steps=100)
    assert list(fleet.replicas().values()) == [2]
    assert ("Service", "llama-prefill") not in fleet.children
    assert ("Service", "llama-aggregated") in fleet.children


def test_a_model_that_does_not_fit_starts_nothing() -> None:
    """70B on one accelerator: no pods that could only crash, and the message says what to write."""
    raw = raw_deployment(model={"source": "hf://meta-llama/Llama-3.1-70B-Instruct", "servedNames": ["big"]})
    made = Fleet(raw).plan()
    assert made.apply == ()
    assert condition(made.status, "ModelFits")["reason"] == "TooLittleMemory"
    assert condition(made.status, "Ready")["reason"] == "ModelDoesNotFit"
    assert "accelerator.count" in condition(made.status, "Ready")["message"]


SIZE = {"parametersMillion": 70_000, "layers": 80, "attentionHeads": 64, "kvHeads": 8, "headDimension": 128}


def pod_specs(fleet: Fleet) -> list[dict[str, Any]]:
    """Return what the pools' pods are made from."""
    return [
        child["spec"]["template"]["spec"]
        for (kind, _), child in fleet.children.items()
        if kind == "Deployment"
    ]


def test_a_model_of_unknown_size_is_rolled_out() -> None:
    """Nothing can be checked, so nothing is refused; the condition says what to write to have it checked."""
    fleet = settled(Fleet(raw_deployment(model={"source": "hf://acme/own", "servedNames": ["own"]})))
    found = condition(fleet.raw["status"], "ModelFits")
    assert (found["status"], found["reason"]) == ("Unknown", "UnknownModel")
    assert "write spec.model.architecture" in found["message"]
    assert condition(fleet.raw["status"], "Ready")["status"] == "True"


def test_the_size_that_a_user_writes_is_checked() -> None:
    """As that of the catalog is, with the same arithmetic; it reaches the workers, and one that fits is rolled out."""
    model = {"source": "hf://acme/own", "servedNames": ["own"], "architecture": SIZE}
    made = Fleet(raw_deployment(model=model)).plan()
    found = condition(made.status, "ModelFits")
    assert (found["status"], found["reason"]) == ("False", "TooLittleMemory")
    assert "acme/own has 130 GiB of weights" in found["message"]
    assert made.apply == ()
    smaller = settled(Fleet(raw_deployment(model={**model, "architecture": {**SIZE, "bitsPerParameter": 4}})))
    assert condition(smaller.raw["status"], "ModelFits")["status"] == "True"
    for spec in pod_specs(smaller):
        (container,) = spec["containers"]
        described = json.loads(container["args"][container["args"].index("--architecture") + 1])
        assert ModelArchitecture.from_fields(described).weight_bytes == 35_000_000_000


def test_the_size_is_no_part_of_the_model() -> None:
    """Another one makes no other revision, and pairs workers as before."""
    plain = settled(Fleet(raw_deployment()))
    revision = plain.raw["status"]["revision"]
    plain.raw["spec"]["model"]["architecture"] = {**SIZE, "parametersMillion": 8_000}
    assert settled(plain).raw["status"]["revision"] == revision


def test_workers_on_processors_ask_for_no_device() -> None:
    """They run on any node, and whether the model fits there is not known."""
    raw = raw_deployment()
    for role in ("prefill", "decode"):
        raw["spec"][role]["accelerator"] = {"type": "CPU"}
    fleet = settled(Fleet(raw))
    assert condition(fleet.raw["status"], "ModelFits")["reason"] == "UnknownMemory"
    assert len(pod_specs(fleet)) == 2
    for spec in pod_specs(fleet):
        assert not {"nodeSelector", "tolerations"} & set(spec)
        assert "resources" not in spec["containers"][0]


def test_a_misfit_of_one_pool_outweighs_what_is_not_known_of_another() -> None:
    """Prefill on processors, decode on an accelerator that is too small."""
    raw = raw_deployment(model={"source": "hf://meta-llama/Llama-3.1-70B", "servedNames": ["big"]})
    raw["spec"]["prefill"]["accelerator"] = {"type": "CPU"}
    assert condition(Fleet(raw).plan().status, "ModelFits")["reason"] == "TooLittleMemory"


def test_a_change_that_does_not_fit_leaves_what_serves_alone() -> None:
    """The old revision goes on serving, and ModelFits says why the new one is not there."""
    fleet = settled(Fleet(raw_deployment()))
    before = fleet.replicas()
    fleet.raw["spec"]["model"]["source"] = "hf://meta-llama/Llama-3.1-70B-Instruct"
    fleet.step()
    assert fleet.replicas() == before
    assert condition(fleet.raw["status"], "Ready")["status"] == "True"
    assert condition(fleet.raw["status"], "ModelFits")["status"] == "False"


def test_narrower_bounds_hold_at_once() -> None:
    """replicas.max below what runs: the pool drains down to it without a decision, and status says why."""
    fleet = settled(Fleet(raw_deployment(decode=(1, 6))))
    settled(fleet, decided(fleet, prefill=1, decode=5))
    fleet.raw["spec"]["decode"]["replicas"]["max"] = 3
    settled(fleet, steps=60)
    assert fleet.raw["status"]["decode"]["desired"] == 3
    assert "bounds" in fleet.raw["status"]["lastScaling"]["reason"]
    assert fleet.ready("decode") == 3


def test_advice_changes_nothing_and_is_posted_once() -> None:
    """Mode Advisory: the recommendation stands in a condition and one Event, replicas stay."""
    fleet = settled(Fleet(raw_deployment(scaling={"mode": "Advisory"})))
    advice = decided(fleet, apply=False, prefill=1, decode=4)
    made = fleet.step(advice)
    assert [notice.reason for notice in made.notices] == ["ScalingAdvised"]
    assert fleet.ready("decode") == 2
    limited = condition(fleet.raw["status"], "ScalingLimited")
    assert limited["message"].startswith("would change prefill 1, decode 2 to prefill 1, decode 4:")
    assert fleet.step(advice).notices == ()


def test_a_limit_of_scaling_shows() -> None:
    """What keeps scaling from what the load asks for stands in the condition ScalingLimited."""
    fleet = settled(Fleet(raw_deployment()))
    limit = ScalingLimit("MaxReplicas", "the load asks for 9 decode replicas, replicas.max is 6")
    fleet.step(decided(fleet, limit=limit, prefill=1, decode=6))
    found = condition(fleet.raw["status"], "ScalingLimited")
    assert (found["status"], found["reason"], found["message"]) == ("True", "MaxReplicas", limit.message)


def test_conditions_keep_their_time_while_they_stay_the_same() -> None:
    """The time of a condition moves with the status of a condition, not with every pass."""
    fleet = settled(Fleet(raw_deployment()))
    before = condition(fleet.raw["status"], "Ready")["lastTransitionTime"]
    fleet.now += 500
    fleet.step()
    assert condition(fleet.raw["status"], "Ready")["lastTransitionTime"] == before
    for pod in fleet.pods.values():
        pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}
    fleet.step(ready=False)
    assert condition(fleet.raw["status"], "Ready")["status"] == "False"
    assert condition(fleet.raw["status"], "Ready")["lastTransitionTime"] != before


def test_a_pod_without_a_node_is_named() -> None:
    """The scheduler's words stand in Ready, so that users need not look for them."""
    fleet = Fleet(raw_deployment(prefill=None))
    fleet.step(ready=False)
    for pod in fleet.pods.values():
        pod["spec"] = {}
        pod["status"] = {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/2 nodes are available",
                }
            ],
        }
    made = fleet.plan()
    assert "0/2 nodes are available" in condition(made.status, "Ready")["message"]


def test_bounds_objectives_and_routing_are_no_part_of_the_revision() -> None:
    """To change them replaces no pod; the model, the engine, the accelerators and the image do."""
    base = Fleet(raw_deployment()).plan()

    def revision(raw: dict[str, Any], config: PlanConfig = CONFIG) -> str:
        made = Fleet(raw).plan(config=config)
        return str(
            next(m for m in made.apply if m["kind"] == "Deployment")["metadata"]["labels"][
                terms.LABEL_REVISION
            ]
        )

    here = next(m for m in base.apply if m["kind"] == "Deployment")["metadata"]["labels"][
        terms.LABEL_REVISION
    ]
    assert (
        revision(raw_deployment(decode=(1, 9), slo={"goodputPercent": 50}, scaling={"mode": "Paused"}))
        == here
    )
    model = {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "servedNames": ["llama"]}
    for other in (
        raw_deployment(model={**model, "revision": "v2"}),
        raw_deployment(model={**model, "maxLength": 8192}),
        raw_deployment(model={**model, "servedNames": ["other"]}),
        raw_deployment(engine={"type": "simulated", "simulated": {"seed": 7}}),
        raw_deployment(prefill=None),
    ):
        assert revision(other) != here
    assert revision(raw_deployment(), replace(CONFIG, worker_image="turnout-worker:next")) != here
    assert revision(raw_deployment(), replace(CONFIG, vllm_image="turnout-worker-vllm:next")) == here
