"""The node's decisions, which are pure: order of containers, back-off, phases, conditions, probes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout_devcluster.node.backoff import BackOff
from turnout_devcluster.node.decide import Step, decide
from turnout_devcluster.node.model import ContainerState, Policy, Run, shape_of
from turnout_devcluster.node.probes import HttpGet, Probe, action_of, initial, observe, probes_of
from turnout_devcluster.node.status import Placement, differs, pod_status, timestamp

BACK_OFF = BackOff(base_seconds=1.0, cap_seconds=60.0)
NOW = 1_800_000_000.0
NONE = ContainerState()
RUNNING = ContainerState(run=Run(0, NOW - 10), started=True, ready=True)
BEGINNING = ContainerState(run=Run(0, NOW - 10))
DONE = ContainerState(run=Run(0, NOW - 10, NOW - 5, reason="Completed"))
FAILED = ContainerState(run=Run(0, NOW - 10, NOW - 5, exit_code=3, reason="Error"))


def _pod(policy: Policy = "Always", inits: tuple[str, ...] = (), **metadata: Any) -> dict[str, Any]:
    """Return a pod with init containers *inits* (those called side are sidecars) and one main container."""
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", **metadata},
        "spec": {
            "restartPolicy": policy,
            "initContainers": [
                {"name": name, **({"restartPolicy": "Always"} if name.startswith("side") else {})}
                for name in inits
            ],
            "containers": [{"name": "main", "image": "i"}],
        },
    }


CASES: dict[str, tuple[Policy, dict[str, ContainerState], Step]] = {
    "a new pod starts": ("Always", {"main": NONE}, Step(start=("main",))),
    "a running one needs nothing": ("Always", {"main": RUNNING}, Step()),
    "one on its way is not started twice": ("Always", {"main": replace(NONE, starting=True)}, Step()),
    "first restart at once": ("Always", {"main": FAILED}, Step(start=("main",))),
    "also after success": ("Always", {"main": DONE}, Step(start=("main",))),
    "later ones wait": ("Always", {"main": replace(FAILED, streak=5)}, Step(wake_at=NOW - 5 + 16)),
    "OnFailure: success is the end": ("OnFailure", {"main": DONE}, Step(finished=True)),
    "OnFailure: failure is not": ("OnFailure", {"main": FAILED}, Step(start=("main",))),
    "Never: failure is the end": ("Never", {"main": FAILED}, Step(finished=True)),
    "a refused start waits": ("Always", {"main": replace(NONE, retry_at=NOW + 3)}, Step(wake_at=NOW + 3)),
    "init first": ("Always", {"init": NONE, "main": NONE}, Step(start=("init",))),
    "main after init": ("Always", {"init": DONE, "main": NONE}, Step(start=("main",))),
    "main waits while init runs": ("Always", {"init": RUNNING, "main": NONE}, Step()),
    "failed init again": ("Always", {"init": FAILED, "main": NONE}, Step(start=("init",))),
    "failed init, Never": ("Never", {"init": FAILED, "main": NONE}, Step(finished=True)),
    "second init after the first": (
        "Always",
        {"init": DONE, "two": NONE, "main": NONE},
        Step(start=("two",)),
    ),
    "sidecar before the next": ("Always", {"side": NONE, "two": NONE, "main": NONE}, Step(start=("side",))),
    "sidecar must have started": ("Always", {"side": BEGINNING, "two": NONE, "main": NONE}, Step()),
    "then the next": ("Always", {"side": RUNNING, "two": NONE, "main": NONE}, Step(start=("two",))),
    "a dead sidecar comes back": ("Always", {"side": FAILED, "main": RUNNING}, Step(start=("side",))),
    "sidecars end last": ("Never", {"side": RUNNING, "main": DONE}, Step(stop=("side",))),
    "in reverse": ("Never", {"side": RUNNING, "side2": RUNNING, "main": DONE}, Step(stop=("side2", "side"))),
    "and then all is over": ("Never", {"side": DONE, "main": DONE}, Step(finished=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_next_step(case: str) -> None:
    """From what is seen of the containers follows what to start, to stop and to wait for."""
    policy, states, step = CASES[case]
    shape = shape_of(_pod(policy, tuple(n for n in states if n != "main")))
    assert decide(shape, states, BACK_OFF, NOW) == step


RUNS = st.one_of(
    st.none(),
    st.builds(Run, st.integers(0, 3), st.just(NOW - 10)),
    st.builds(Run, st.integers(0, 3), st.just(NOW - 10), st.just(NOW - 5), st.integers(0, 3)),
)


@given(
    st.sampled_from(["Always", "OnFailure", "Never"]),
    st.lists(RUNS, min_size=4, max_size=4),
    st.integers(0, 40),
)
def test_steps_never_contradict_what_is_seen(policy: Policy, runs: list[Run | None], streak: int) -> None:
    """Whatever is seen: nothing that runs is started, only what runs is stopped, and never main before init."""
    names = ("side", "one", "two", "main")
    states = {n: ContainerState(run=r, streak=streak) for n, r in zip(names, runs, strict=True)}
    step = decide(shape_of(_pod(policy, names[:3])), states, BACK_OFF, NOW)
    assert not any(states[n].running for n in step.start)
    assert all(states[n].running for n in step.stop)
    if "main" in step.start and states["main"].run is None:
        assert all((run := states[n].run) is not None and run.exit_code == 0 for n in ("one", "two"))
    assert not (step.finished and (step.start or step.wake_at))


@given(st.integers(0, 10_000))
def test_back_off_grows_to_its_cap(streak: int) -> None:
    """Restarts wait ever longer, never longer than the cap; a long run begins anew."""
    short = Run(0, NOW, NOW + 1)
    assert BACK_OFF.delay(short, streak) <= BACK_OFF.delay(short, streak + 1) <= BACK_OFF.cap_seconds
    long = Run(0, NOW, NOW + 2 * BACK_OFF.cap_seconds)
    assert BACK_OFF.delay(long, streak) == 0
    assert BACK_OFF.next_streak(long, streak) == 1


PHASES: dict[str, tuple[Policy, dict[str, ContainerState], str]] = {
    "new": ("Always", {"main": NONE}, "Pending"),
    "init runs": ("Always", {"init": RUNNING, "main": NONE}, "Pending"),
    "runs": ("Always", {"main": RUNNING}, "Running"),
    "between restarts": ("Always", {"main": FAILED}, "Running"),
    "done": ("Never", {"main": DONE}, "Succeeded"),
    "failed": ("Never", {"main": FAILED}, "Failed"),
    "to be tried again": ("OnFailure", {"main": FAILED}, "Running"),
    "init failed": ("Never", {"init": FAILED, "main": NONE}, "Failed"),
    "sidecar still runs": ("Never", {"side": RUNNING, "main": DONE}, "Running"),
}


def _status(pod: dict[str, Any], states: dict[str, ContainerState], now: float = NOW) -> dict[str, Any]:
    placement = Placement("127.64.1.1", "127.64.0.1", NOW - 20)
    return pod_status(pod, shape_of(pod), states, placement, back_off=BACK_OFF, now=now)


@pytest.mark.parametrize("case", PHASES)
def test_phase(case: str) -> None:
    """The phase follows from the containers by the kubelet's rules."""
    policy, states, phase = PHASES[case]
    assert _status(_pod(policy, tuple(n for n in states if n != "main")), states)["phase"] == phase


def test_waiting_for_a_restart_is_called_crash_loop() -> None:
    """In back-off a container waits with CrashLoopBackOff and lastState describes its end; before, it is terminated."""
    waiting = replace(FAILED, streak=8)
    status = _status(_pod(), {"main": waiting})["containerStatuses"][0]
    assert status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert "60s" in status["state"]["waiting"]["message"]
    assert status["lastState"]["terminated"]["exitCode"] == 3
    assert "terminated" in _status(_pod(), {"main": FAILED})["containerStatuses"][0]["state"]


def test_deleted_pod_that_has_ended_is_not_restarted() -> None:
    """While a pod is deleted its ended containers count as ended for good."""
    deleted = _pod(deletionTimestamp="2026-01-01T00:00:00Z")
    status = _status(deleted, {"main": replace(FAILED, streak=8)})
    assert status["phase"] == "Failed"
    assert "terminated" in status["containerStatuses"][0]["state"]


def test_condition_keeps_its_time_until_it_changes() -> None:
    """LastTransitionTime moves with the status, and with nothing else."""
    pod = _pod()
    pod["status"] = _status(pod, {"main": RUNNING})
    later = _status(pod, {"main": RUNNING}, NOW + 50)
    assert {c["lastTransitionTime"] for c in later["conditions"]} == {timestamp(NOW)}
    unready = _status(pod, {"main": replace(RUNNING, ready=False)}, NOW + 50)
    times = {c["type"]: c["lastTransitionTime"] for c in unready["conditions"]}
    assert times["Ready"] == timestamp(NOW + 50)
    assert times["Initialized"] == timestamp(NOW)


def test_readiness_gate() -> None:
    """A pod with a readiness gate is Ready only once that condition is set."""
    pod = _pod()
    pod["spec"]["readinessGates"] = [{"conditionType": "example.com/open"}]
    ready = {c["type"]: c["status"] for c in _status(pod, {"main": RUNNING})["conditions"]}
    assert (ready["ContainersReady"], ready["Ready"]) == ("True", "False")
    pod["status"] = {"conditions": [{"type": "example.com/open", "status": "True"}]}
    ready = {c["type"]: c["status"] for c in _status(pod, {"main": RUNNING})["conditions"]}
    assert ready["Ready"] == "True"


def test_status_is_written_only_where_it_differs() -> None:
    """What the API server leaves out or adds is no difference; another value or a missing item is."""
    desired = _status(_pod(), {"main": RUNNING})
    stored = {k: v for k, v in desired.items() if v != ""} | {"qosClass": "BestEffort"}
    stored["conditions"] = [*desired["conditions"], {"type": "PodScheduled", "status": "True"}]
    assert not differs(desired, stored)
    assert differs(desired, stored | {"phase": "Pending"})
    assert differs(desired, stored | {"containerStatuses": []})
    assert differs(desired, {})


def _probe(**fields: Any) -> Probe:
    found = probes_of({"name": "c", "readinessProbe": {"tcpSocket": {"port": 1}, **fields}}, "127.0.0.1")
    return found["readiness"]


@pytest.mark.parametrize(
    ("success", "failure", "answers", "verdicts"),
    [
        (1, 3, "10001", "11101"),
        (2, 1, "1101", "0100"),
        (1, 1, "0101", "0101"),
        (1, 2, "100100", "110110"),
    ],
)
def test_thresholds(success: int, failure: int, answers: str, verdicts: str) -> None:
    """The verdict changes when as many equal answers in a row as the threshold says have come."""
    probe = _probe(successThreshold=success, failureThreshold=failure)
    state, seen = initial("readiness"), ""
    for answer in answers:
        state = observe(probe, state, success=answer == "1")
        seen += str(int(state.passing))
    assert seen == verdicts


def test_probe_defaults_and_named_ports() -> None:
    """Unset fields have the kubelet's defaults, a port may be a name, and an unknown name is refused."""
    probe = _probe()
    assert (probe.period, probe.timeout, probe.success_threshold, probe.failure_threshold) == (10, 1, 1, 3)
    container = {"name": "c", "ports": [{"name": "web", "containerPort": 8000}]}
    assert action_of({"httpGet": {"port": "web", "path": "health"}}, container, "127.0.0.1") == HttpGet(
        "127.0.0.1", 8000, "/health", "HTTP", ()
    )
    with pytest.raises(KeyError, match="no port named admin"):
        action_of({"tcpSocket": {"port": "admin"}}, container, "127.0.0.1")
