"""Pods as local processes: starting, probing, restarting and ending them by the kubelet's rules."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.node_pods import Namespace, container, pod, server, shell

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture
def ns(cluster: Cluster, namespace: str) -> Namespace:
    return Namespace(cluster, namespace)


def _home(ns: Namespace, name: str) -> Path:
    uid = ns.get(name)["metadata"]["uid"]
    return ns.cluster.state_dir / "pods" / f"{ns.name}_{name}_{uid}" / "home"


def test_readiness_follows_the_probe(ns: Namespace) -> None:
    """A pod is Ready while its HTTP probe passes, and not a moment of its life else."""
    probe = {"httpGet": {"port": "web", "path": "/"}, "periodSeconds": 1, "failureThreshold": 1}
    ns.apply(pod("web", server(readinessProbe=probe)))
    ns.wait_phase("web", "Running")
    assert not ns.ready("web")
    (_home(ns, "web") / "ok").touch()
    ns.wait_ready("web")
    (_home(ns, "web") / "ok").unlink()
    ns.wait(lambda: not ns.ready("web"), "unready again")
    assert ns.state("web")["restartCount"] == 0


def test_liveness_failure_restarts_the_container(ns: Namespace) -> None:
    """A container that fails its liveness probe is stopped and started again, and the events say why."""
    probe = {
        "exec": {"command": ["sh", "-c", "test ! -e $HOME/sick"]},
        "periodSeconds": 1,
        "failureThreshold": 2,
    }
    ns.apply(pod("sick", shell("rm -f $HOME/sick; exec sleep 600", livenessProbe=probe)))
    ns.wait_ready("sick")
    (_home(ns, "sick") / "sick").touch()
    ns.wait(lambda: ns.state("sick")["restartCount"] == 1 and ns.ready("sick"), "restarted")
    assert ns.state("sick")["lastState"]["terminated"]["exitCode"] == 128 + 15
    assert "liveness probe failed" in ns.events("sick")


def test_startup_probe_holds_the_others_back(ns: Namespace) -> None:
    """Until its startup probe passes a container is neither started nor ready, and no liveness probe kills it."""
    startup = {
        "exec": {"command": ["sh", "-c", "test -e $HOME/up"]},
        "periodSeconds": 1,
        "failureThreshold": 100,
    }
    liveness = {
        "exec": {"command": ["sh", "-c", "test -e $HOME/up"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
    }
    ns.apply(pod("slow", shell("exec sleep 600", startupProbe=startup, livenessProbe=liveness)))
    ns.wait(lambda: "startup probe failed" in ns.events("slow"), "asked at least once")
    assert ns.state("slow")["started"] is False
    (_home(ns, "slow") / "up").touch()
    ns.wait_ready("slow")
    assert ns.state("slow")["restartCount"] == 0


def test_tcp_probe(ns: Namespace) -> None:
    """A TCP probe passes once the port accepts."""
    ns.apply(pod("tcp", server(readinessProbe={"tcpSocket": {"port": 8000}, "periodSeconds": 1})))
    ns.wait_ready("tcp")


def test_crash_loop_shows_in_kubectl(ns: Namespace) -> None:
    """A container that keeps failing waits longer and longer, and kubectl says CrashLoopBackOff."""
    ns.apply(pod("crash", shell("echo about to fail; exit 3")))
    ns.wait(lambda: "CrashLoopBackOff" in ns.kubectl("get", "pods"), "CrashLoopBackOff")
    status = ns.state("crash")
    assert status["restartCount"] >= 1
    assert status["lastState"]["terminated"]["exitCode"] == 3
    assert "about to fail" in ns.kubectl("logs", "crash", "--previous")


def test_phases_and_exit_codes_of_pods_that_end(ns: Namespace) -> None:
    """Never: Succeeded and Failed with the exit code; OnFailure: again until it succeeds."""
    ns.apply(
        pod("good", shell("exit 0"), restartPolicy="Never"),
        pod("bad", shell("exit 7"), restartPolicy="Never"),
        pod("again", shell("test -e $HOME/x || { touch $HOME/x; exit 1; }"), restartPolicy="OnFailure"),
    )
    ns.wait_phase("good", "Succeeded")
    ns.wait_phase("bad", "Failed")
    ns.wait_phase("again", "Succeeded")
    assert ns.state("bad")["state"]["terminated"]["exitCode"] == 7
    assert ns.state("bad")["state"]["terminated"]["reason"] == "Error"
    assert ns.state("again")["restartCount"] == 1
    assert ns.state("good")["state"]["terminated"]["reason"] == "Completed"


def test_command_that_does_not_exist(ns: Namespace) -> None:
    """What cannot be started ends as StartError with the reason, as container runtimes do."""
    ns.apply(pod("missing", container("no-such-program-here"), restartPolicy="Never"))
    ns.wait_phase("missing", "Failed")
    ended = ns.state("missing")["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("StartError", 128)
    assert "no-such-program-here" in ended["message"]


def test_init_containers_run_in_order_before_the_main_ones(ns: Namespace) -> None:
    """Each init container ends before the next begins, a sidecar runs on, and then the pod runs."""
    note = "echo {} >> /shared/order; "
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    ns.apply(
        pod(
            "ordered",
            shell("cat /shared/order; exec sleep 600", volumeMounts=mounts),
            initContainers=[
                shell(note.format("one"), name="one", volumeMounts=mounts),
                shell(
                    note.format("side") + "exec sleep 600",
                    name="side",
                    volumeMounts=mounts,
                    restartPolicy="Always",
                ),
                shell("sleep 0.5; " + note.format("two"), name="two", volumeMounts=mounts),
            ],
            volumes=[{"name": "shared", "emptyDir": {}}],
        )
    )
    ns.wait_ready("ordered")
    ns.wait(
        lambda: ns.kubectl("logs", "ordered", "-c", "main").split() == ["one", "side", "two"], "the order"
    )
    inits = ns.get("ordered")["status"]["initContainerStatuses"]
    assert ["running" in s["state"] for s in inits] == [False, True, False]


def test_failing_init_container_fails_the_pod(ns: Namespace) -> None:
    """With restartPolicy Never one failed init container is the end, and the main one never starts."""
    ns.apply(
        pod("stuck", shell("exit 0"), initContainers=[shell("exit 5", name="init")], restartPolicy="Never")
    )
    ns.wait_phase("stuck", "Failed")
    assert "waiting" in ns.state("stuck")["state"]


def test_sidecar_ends_after_the_main_container(ns: Namespace) -> None:
    """A pod whose main container is done stops its sidecar and succeeds."""
    side = shell("trap 'exit 0' TERM; sleep 600 & wait", name="side", restartPolicy="Always")
    ns.apply(pod("job", shell("sleep 0.5"), initContainers=[side], restartPolicy="Never"))
    ns.wait_phase("job", "Succeeded")


def test_pre_stop_runs_before_sigterm(ns: Namespace) -> None:
    """Deleting runs the hook first, then SIGTERM; what the container does then is in its time."""
    script = "trap 'echo term >> /shared/order; exit 0' TERM; while :; do sleep 0.1; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "sleep 1; echo hook >> /shared/order"]}}}
    reader = "sleep 600 & wait"
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    ns.apply(
        pod(
            "polite",
            shell(script, lifecycle=hook, volumeMounts=mounts),
            shell(
                f"trap 'while ! grep -qs term /shared/order; do sleep 0.1; done; cat /shared/order; exit 0' TERM; {reader}",
                name="reader",
                volumeMounts=mounts,
            ),
            volumes=[{"name": "shared", "emptyDir": {}}],
            terminationGracePeriodSeconds=20,
        )
    )
    ns.wait_ready("polite")
    log = _home(ns, "polite").parent / "containers" / "reader" / "0.log"
    kept = log.open("rb")  # the pod's folder goes with the pod; an open file stays readable
    ns.kubectl("delete", "pod", "polite")
    with kept:
        assert kept.read().split() == [b"hook", b"term"]
    ns.wait(lambda: not log.exists(), "its folder is gone")


def test_sigkill_at_the_end_of_the_grace_period(ns: Namespace) -> None:
    """A container that ignores SIGTERM is killed when its grace period is over, and its children with it."""
    ns.apply(pod("stubborn", shell("trap '' TERM; sleep 601 & sleep 602 & while :; do sleep 1; done")))
    ns.wait_ready("stubborn")
    before = time.monotonic()
    ns.kubectl("delete", "pod", "stubborn")
    assert 2 <= time.monotonic() - before < 20
    assert not _processes_of(ns, "stubborn")


def _processes_of(ns: Namespace, name: str) -> list[str]:
    """Return the command lines of processes that have the pod's folder in their environment."""
    found = []
    needle = f"{ns.name}_{name}_".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if needle in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
    return found


def test_force_deletion_kills_at_once(ns: Namespace) -> None:
    """With --force the object goes at once, and the processes follow without a grace period."""
    ns.apply(
        pod("forced", shell("trap '' TERM; sleep 603 & wait; sleep 604"), terminationGracePeriodSeconds=600)
    )
    ns.wait_ready("forced")
    ns.kubectl("delete", "pod", "forced", "--force", "--grace-period=0")
    ns.wait(lambda: not _processes_of(ns, "forced"), "its processes are gone")


def test_eviction_is_a_deletion(ns: Namespace) -> None:
    """The eviction API ends a pod like a deletion does."""
    ns.apply(pod("evicted", shell("exec sleep 600")))
    ns.wait_ready("evicted")
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "evicted", "namespace": ns.name},
    }
    path = f"/api/v1/namespaces/{ns.name}/pods/evicted/eviction"
    ns.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    ns.wait(lambda: not ns.exists("evicted"), "it is gone")


def test_post_start_failure_restarts_the_container(ns: Namespace) -> None:
    """A postStart hook that fails stops the container, and an event says so."""
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "echo not today; exit 1"]}}}
    ns.apply(pod("hooked", shell("exec sleep 600", lifecycle=hook)))
    ns.wait(lambda: "FailedPostStartHook" in ns.events("hooked"), "the event")
    assert "not today" in ns.events("hooked")


def test_active_deadline_fails_the_pod(ns: Namespace) -> None:
    """A pod that outlives its activeDeadlineSeconds ends as Failed, DeadlineExceeded."""
    ns.apply(pod("late", shell("exec sleep 600"), activeDeadlineSeconds=2))
    ns.wait_phase("late", "Failed")
    assert ns.get("late")["status"]["reason"] == "DeadlineExceeded"
