"""What the node survives: its own death, pods that end meanwhile, the API server's absence."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from support.devcluster_waiting import eventually
from support.node_pods import Namespace, pod, shell

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture
def ns(cluster: Cluster, namespace: str) -> Namespace:
    return Namespace(cluster, namespace)


def _back(cluster: Cluster, old: int | None) -> bool:
    return cluster.pid("node") not in {None, old}


def _pid(ns: Namespace, name: str) -> int:
    ns.wait(lambda: ns.kubectl("logs", name).strip(), f"{name} has printed its process id")
    return int(ns.kubectl("logs", name).split()[0])


def test_killed_agent_finds_its_processes_again(ns: Namespace) -> None:
    """Kill -9 of the agent: the next one adopts the same process, counts no restart, and can still stop it."""
    ns.apply(pod("lasting", shell("echo $$$$; exec sleep 600")))
    ns.wait_ready("lasting")
    pid, agent = _pid(ns, "lasting"), ns.cluster.pid("node")
    ns.cluster.kill("node")
    eventually(lambda: _back(ns.cluster, agent), seconds=60, what="the agent is back")
    ns.apply(pod("after", shell("exec sleep 600")))
    ns.wait_ready("after")
    assert ns.ready("lasting")
    assert ns.state("lasting")["restartCount"] == 0
    assert _pid(ns, "lasting") == pid
    os.kill(pid, 0)
    ns.kubectl("delete", "pod", "lasting")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_end_while_the_agent_was_away_is_seen(ns: Namespace) -> None:
    """A container that ended without an agent has its exit code and is restarted by the next agent."""
    ns.apply(
        pod(
            "once", shell("echo $$$$; trap 'exit 9' USR1; while :; do sleep 0.1; done"), restartPolicy="Never"
        ),
        pod("again", shell("echo $$$$; trap 'exit 9' USR1; while :; do sleep 0.1; done")),
    )
    for name in ("once", "again"):
        ns.wait_ready(name)
    once, again, agent = _pid(ns, "once"), _pid(ns, "again"), ns.cluster.pid("node")
    ns.cluster.kill("node")
    os.kill(once, signal.SIGUSR1)
    os.kill(again, signal.SIGUSR1)
    eventually(lambda: _back(ns.cluster, agent), seconds=60, what="the agent is back")
    ns.wait_phase("once", "Failed")
    assert ns.state("once")["state"]["terminated"]["exitCode"] == 9
    ns.wait(lambda: ns.state("again")["restartCount"] == 1 and ns.ready("again"), "restarted")
    assert ns.state("again")["lastState"]["terminated"]["exitCode"] == 9


def test_pod_deleted_by_force_while_the_agent_was_away(ns: Namespace) -> None:
    """What a pod left that is gone from the API server is ended when the agent comes back."""
    ns.apply(pod("orphan", shell("echo $$$$; exec sleep 600")))
    ns.wait_ready("orphan")
    pid, agent = _pid(ns, "orphan"), ns.cluster.pid("node")
    ns.cluster.kill("node")
    ns.kubectl("delete", "pod", "orphan", "--force", "--grace-period=0")
    eventually(lambda: _back(ns.cluster, agent), seconds=60, what="the agent is back")

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    eventually(gone, seconds=60, what="the process is gone")


def test_killed_shim_takes_its_container_along(ns: Namespace) -> None:
    """Kill -9 of a container's shim: the container ends with it and is started again."""
    ns.apply(pod("bereft", shell("echo $$$$ $PPID; exec sleep 600")))
    ns.wait_ready("bereft")
    ns.wait(lambda: ns.kubectl("logs", "bereft").strip(), "the log")
    pid, shim = (int(word) for word in ns.kubectl("logs", "bereft").split())
    os.kill(shim, signal.SIGKILL)
    ns.wait(lambda: ns.state("bereft")["restartCount"] == 1 and ns.ready("bereft"), "restarted")
    assert ns.state("bereft")["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_pods_go_on_without_an_api_server(ns: Namespace) -> None:
    """Kill -9 of the API server: containers are restarted meanwhile, and the status is right afterwards."""
    ns.apply(pod("steady", shell("echo $$$$; trap 'exit 4' USR1; while :; do sleep 0.1; done")))
    ns.wait_ready("steady")
    pid = _pid(ns, "steady")
    ns.cluster.kill("kube-apiserver")
    os.kill(pid, signal.SIGUSR1)

    def restarted() -> bool:
        return "restartCount" in str(_try_state(ns)) and ns.state("steady")["restartCount"] == 1

    eventually(restarted, seconds=60, what="the API server is back and knows of the restart")
    ns.wait_ready("steady")


def _try_state(ns: Namespace) -> object:
    return ns.state("steady") if ns.exists("steady") else None
