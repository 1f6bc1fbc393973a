"""A reason that Kubernetes gives for missing workers stands in Ready and in the role's condition."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.installation import llmdeployment
from support.operator_process import OperatorProcess, apply, condition, get, wait_until
from support.operator_values import CONFIG, NOW, Fleet, raw_deployment
from turnout import terms
from turnout_operator.plan.conditions import rfc3339
from turnout_operator.plan.plan import plan
from turnout_operator.plan.pods import MAX_WORDS, failed_pod, words
from turnout_operator.plan.status import condition as condition_of

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

QUOTA = (
    'pods "llama-aggregated-7f3c-x7k2p" is forbidden: failed quota: compute: must specify limits.memory for: '
    "worker; requests.cpu for: worker"
)
WEBHOOK = 'admission webhook "guard.example" denied the request: images come from registry.example only'


def started(**more: Any) -> Fleet:
    """Return a deployment of one pool whose pods have been made, and none is ready."""
    fleet = Fleet(raw_deployment(prefill=None, decode=(1, 2), **more))
    fleet.step(ready=False)
    return fleet


def refused(fleet: Fleet, message: str) -> None:
    """Have Kubernetes refuse the pool's pods."""
    fleet.pods.clear()
    (pool,) = [child for (kind, _), child in fleet.children.items() if kind == "Deployment"]
    pool["status"] = {
        "conditions": [
            {"type": "Progressing", "status": "True", "reason": "NewReplicaSetCreated", "message": "..."},
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message},
        ]
    }


def messages(fleet: Fleet) -> tuple[str, str]:
    """Return what Ready and the role's condition say."""
    observed = fleet.observed()
    status = plan(observed, None, CONFIG, fleet.now).status
    return condition_of(status, "Ready")["message"], condition_of(status, "DecodeReady")["message"]


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "worker", "state": state, "restartCount": 0, **more}]}


def ended(exit_code: int, message: str, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (QUOTA, "gets no more pods: pods are forbidden: failed quota: compute: must specify limits.memory"),
        (WEBHOOK, f"gets no more pods: {WEBHOOK}"),
        ("two\nlines\tand \x1b[31m colors", "gets no more pods: two lines and [31m colors"),
    ],
    ids=["quota", "webhook", "control characters"],
)
def test_refused_pods_say_why(message: str, expected: str) -> None:
    """The words of ReplicaFailure, without the pod's name, which is another one each time."""
    fleet = started()
    refused(fleet, message)
    for said in messages(fleet):
        assert expected in said


def test_a_refusal_that_is_over_is_not_reported() -> None:
    """All pods are there, though the condition still stands for a moment."""
    fleet = started()
    pods = dict(fleet.pods)
    refused(fleet, QUOTA)
    fleet.pods.update(pods)
    assert "forbidden" not in "".join(messages(fleet))


PODS: dict[str, tuple[dict[str, Any], str]] = {
    "no node": (
        {
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
                }
            ]
        },
        "finds no node: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
    ),
    "gated": (
        {
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                }
            ]
        },
        "does not run: SchedulingGated: Scheduling is blocked",
    ),
    "no image": (
        waiting("ErrImagePull", "pull access denied for turnout/worker"),
        "does not run: ErrImagePull: pull access denied for turnout/worker",
    ),
    "bad configuration": (
        waiting("CreateContainerConfigError", 'secret "hub" not found'),
        'does not run: CreateContainerConfigError: secret "hub" not found',
    ),
    "crashes, waits": (
        waiting("CrashLoopBackOff", "back-off 40s", restartCount=3, lastState=ended(1, "no such model")),
        "does not run: CrashLoopBackOff: worker ended with Error, exit status 1: no such model",
    ),
    "crashes, has just ended": (
        {
            "containerStatuses": [
                {"name": "worker", "restartCount": 2, "state": ended(137, "", "OOMKilled"), "lastState": {}}
            ]
        },
        "does not run: CrashLoopBackOff: worker ended with OOMKilled, exit status 137",
    ),
    "crashes, runs once more": (
        {
            "containerStatuses": [
                {
                    "name": "worker",
                    "restartCount": 2,
                    "state": {"running": {}},
                    "lastState": ended(1, "no such model"),
                }
            ]
        },
        "does not run: CrashLoopBackOff: worker ended with Error, exit status 1: no such model",
    ),
    "crashes and nothing is known": (
        waiting("CrashLoopBackOff", "back-off 40s", restartCount=3),
        "does not run: CrashLoopBackOff: back-off 40s",
    ),
    "an init container": (
        {
            "initContainerStatuses": [
                {"name": "fetch", "restartCount": 1, "state": ended(2, "disk full"), "lastState": {}}
            ],
            "containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "PodInitializing"}}}],
        },
        "does not run: CrashLoopBackOff: fetch ended with Error, exit status 2: disk full",
    ),
}


@pytest.mark.parametrize("name", list(PODS))
def test_a_pod_that_does_not_run_says_why(name: str) -> None:
    """The scheduler's, the node's or the container's own words, in both conditions."""
    status, expected = PODS[name]
    fleet = started()
    (pod,) = fleet.pods.values()
    pod["status"] = {"phase": "Pending", **status}
    for said in messages(fleet):
        assert expected in said


def test_a_pod_that_starts_is_no_obstacle() -> None:
    """Creating a container, and a first start, take their time."""
    fleet = started()
    (pod,) = fleet.pods.values()
    pod["status"] = {"phase": "Pending", **waiting("ContainerCreating")}
    assert messages(fleet)[0] == "waiting for workers: aggregated 0 of 1 ready"


def test_a_ready_pod_that_once_crashed_is_no_obstacle() -> None:
    """What it said then is history."""
    fleet = started()
    (pod,) = fleet.pods.values()
    pod["status"] = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
        **waiting("", lastState=ended(1, "no such model"), restartCount=1),
    }
    assert messages(fleet) == ("serves llama", "1 of 1 aggregated workers ready")


def failed(name: str, reason: str, message: str, created: float) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": rfc3339(created),
            "labels": {terms.LABEL_ROLE: "aggregated", terms.LABEL_REVISION: "r"},
        },
        "status": {"phase": "Failed", "reason": reason, "message": message},
    }


def test_pods_that_their_node_refuses_say_why() -> None:
    """A pod that has failed for good is none of the pool's any more, but its reason is all that is known."""
    fleet = started()
    fleet.pods.clear()
    raws = [
        failed("old", "Evicted", "The node was low on resource: memory.", NOW - 50),
        failed("new", "UnexpectedAdmissionError", "no healthy devices present", NOW - 5),
    ]
    found = [pod for raw in raws if (pod := failed_pod(raw)) is not None]
    status = plan(replace(fleet.observed(), failed=found), None, CONFIG, NOW).status
    expected = "; new has failed: UnexpectedAdmissionError: no healthy devices present"
    assert condition_of(status, "Ready")["message"].endswith(expected)
    assert condition_of(status, "DecodeReady")["message"].endswith(expected)


def test_a_rollout_that_is_refused_says_so_while_the_old_revision_serves() -> None:
    """The role is ready, so Ready alone can report what the new revision waits for."""
    fleet = started()
    fleet.follow()
    fleet.step()
    fleet.raw["spec"]["model"]["revision"] = "v2"
    fleet.raw["metadata"]["generation"] = 2
    fleet.carry_out(fleet.plan())
    newest = max(
        (child for (kind, _), child in fleet.children.items() if kind == "Deployment"),
        key=lambda child: str(child["metadata"]["creationTimestamp"]),
    )
    newest["status"] = {
        "conditions": [
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA}
        ]
    }
    ready, role = messages(fleet)
    assert ready.startswith("serves llama; rollout: ")
    assert "failed quota: compute" in ready
    assert role == "1 of 1 aggregated workers ready"


@given(st.text(max_size=3000))
def test_words_are_one_bounded_line(text: str) -> None:
    """Whatever a container writes: no control characters, no line breaks, its beginning and its end."""
    made = words(text)
    assert len(made) <= MAX_WORDS
    assert made.isprintable()
    if len(made) < MAX_WORDS - 5:
        assert made.split() == "".join(c if c.isprintable() else " " for c in text).split()


def test_the_end_of_a_long_message_is_kept() -> None:
    """It is where a traceback names its cause."""
    made = words("Traceback: " + "frame " * 1000 + "ValueError: no such model")
    assert made.startswith("Traceback: ")
    assert made.endswith("ValueError: no such model")


@pytest.mark.cluster
def test_a_quota_that_refuses_the_workers_is_reported(
    cluster: Cluster, namespace: str, operator: OperatorProcess
) -> None:
    """On a real API server, and what is missing is no longer reported once the quota is gone."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    apply(cluster, namespace, quota)
    wait_until("the quota holds", lambda: get(cluster, namespace, "resourcequota", "none").get("status"))
    apply(cluster, namespace, llmdeployment("quota", prefill=None, decode=(1, 1)))

    def said(type_: str) -> str:
        return str(condition(get(cluster, namespace, "llmd", "quota"), type_).get("message"))

    for type_ in ("Ready", "DecodeReady"):
        wait_until(
            "the reason",
            lambda type_=type_: "exceeded quota: none" in said(type_),
            30,
            (operator,),  # type: ignore[misc]
        )
    cluster.kubectl("delete", "resourcequota", "none", "--namespace", namespace)
    wait_until("it serves", lambda: said("Ready") == "serves quota", 90, (operator,))
    assert "quota" not in said("DecodeReady")
