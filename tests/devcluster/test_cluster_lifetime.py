"""A cluster ends on request, and when anything that carries it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.devcluster_waiting import eventually, gone
from turnout_devcluster.cluster import Cluster
from turnout_devcluster.errors import CommandError, StartError, StopError, UnknownClusterError
from turnout_devcluster.layout import STATE_VARIABLE
from turnout_devcluster.processes import MARKER, marked_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True, scope="module")
def state_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep these clusters' files away from those of the run's own cluster."""
    root = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATE_VARIABLE, str(root))
        yield root


@pytest.fixture(scope="module")
def own(state_root: Path) -> Iterator[Cluster]:
    """Yield a cluster whose parts these tests kill; no other tests use it."""
    assert state_root.is_dir()
    with a_cluster("own") as cluster:
        yield cluster


@contextmanager
def a_cluster(name: str) -> Iterator[Cluster]:
    """Yield a control plane that belongs to this process."""
    with Cluster.up(name, nodes=0, owner_pid=os.getpid()) as cluster:
        yield cluster


def pod_like(cluster: Cluster) -> subprocess.Popen[bytes]:
    """Start a process as the node agent starts a pod's: with the marker, in a session of its own."""
    return subprocess.Popen(
        ["sleep", "600"],
        env={**os.environ, MARKER: str(cluster.state_dir)},
        start_new_session=True,
    )


def test_two_clusters_side_by_side(own: Cluster) -> None:
    """Two clusters have addresses, files and objects of their own; the end of one leaves the other alone."""
    with a_cluster("other") as other:
        assert own.config.addresses != other.config.addresses
        own.kubectl("create", "namespace", "only-own")
        assert "only-own" not in other.kubectl("get", "namespaces", "-o", "name")
    assert gone(other.state_dir)
    assert "only-own" in own.kubectl("get", "namespaces", "-o", "name")


def test_down_leaves_nothing(state_root: Path) -> None:
    """After `down` no process and no file is left, and the cluster's addresses can be had again."""
    cluster = Cluster.up("gone", nodes=0)
    stray = pod_like(cluster)
    assert len(marked_processes(cluster.state_dir)) >= 7
    cluster.down()
    assert stray.wait(5) == -signal.SIGKILL or stray.returncode == -signal.SIGTERM
    assert marked_processes(cluster.state_dir) == []
    assert not list((state_root / "dev").glob("*gone*"))
    with pytest.raises(UnknownClusterError, match="no dev cluster called gone"):
        Cluster.attach("gone")
    with a_cluster("gone") as again:
        assert again.config.addresses == cluster.config.addresses


def test_up_finds_what_runs(own: Cluster) -> None:
    """A second `up` of a name returns the running cluster: the same processes, no second set."""
    second = Cluster.up(own.name, nodes=0)
    assert second.config == own.config
    assert second.components() == own.components()
    assert second.supervisor() == own.supervisor()


def test_killed_owner_leaves_nothing(state_root: Path) -> None:
    """Kill -9 of the process that a cluster belongs to ends the cluster and removes its files."""
    program = """
        import os, sys, time
        from turnout_devcluster.cluster import Cluster
        Cluster.up("owned", nodes=0, owner_pid=os.getpid())
        print("up", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        cluster = Cluster.attach("owned")
        with pod_like(cluster) as pod:
            owner.kill()
            eventually(lambda: pod.poll() is not None, seconds=60, what="the pod ended")
            eventually(lambda: gone(cluster.state_dir), seconds=60, what="the cluster is gone")
    assert not list((state_root / "dev").glob("*owned*"))


def test_killed_supervisor_leaves_nothing() -> None:
    """Kill -9 of the supervisor ends control plane, node agent and pods within ten seconds."""
    accelerators = {"H100-SXM": 1}
    with (
        Cluster.up("orphan", nodes=1, accelerators=accelerators, owner_pid=os.getpid()) as cluster,
        pod_like(cluster) as stray,
    ):
        cluster.kubectl(
            "run", "sleeper", "--image=none", "--restart=Never", "--command", "--", "sleep", "987"
        )
        cluster.kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s", timeout=70)
        mine = {identity.pid for identity in marked_processes(cluster.state_dir)}
        assert mine & set(processes_called("sleep\0987\0"))
        supervisor = cluster.supervisor()
        assert supervisor is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        eventually(lambda: stray.poll() is not None, seconds=60, what="the stray ended")
        eventually(lambda: not marked_processes(cluster.state_dir), seconds=60, what="no process is left")
        assert not mine & set(processes_called("sleep\0987\0"))


def processes_called(command_line: str) -> list[int]:
    """Return the pids of the processes with this command line, its words ended by NUL."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if path.read_bytes().decode(errors="replace") == command_line:
                found.append(int(path.parent.name))
    return found


def test_killed_node_agent_comes_back_to_its_pods() -> None:
    """Kill -9 of the node agent: the supervisor starts it again and the pod's process is the same one."""
    with Cluster.up("agent", nodes=1, accelerators={"H100-SXM": 1}, owner_pid=os.getpid()) as cluster:
        cluster.kubectl(
            "run", "sleeper", "--image=none", "--restart=Never", "--command", "--", "sleep", "986"
        )
        cluster.kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s", timeout=70)
        before = cluster.pid("node")
        mine = {identity.pid for identity in marked_processes(cluster.state_dir)}
        sleepers = mine & set(processes_called("sleep\0986\0"))
        assert len(sleepers) == 1
        cluster.kill("node")
        eventually(lambda: cluster.pid("node") not in (None, before), seconds=60, what="a new agent runs")
        cluster.kubectl("delete", "pod", "sleeper", "--grace-period=1", "--timeout=60s", timeout=70)
        eventually(
            lambda: not sleepers & set(processes_called("sleep\0986\0")),
            seconds=60,
            what="the agent ended it",
        )


def test_killed_guard_is_replaced(own: Cluster) -> None:
    """The guard, which ends pods when the supervisor is killed, is itself started again."""
    before = own.pid("guard")
    own.kill("guard")
    eventually(lambda: own.pid("guard") not in (None, before), seconds=60, what="a new guard runs")


@pytest.mark.parametrize("component", ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"])
def test_killed_component_comes_back(own: Cluster, component: str) -> None:
    """Kill -9 of any part of the control plane: it is started again, and what was stored is still there."""
    name = f"survives-{component}"
    own.kubectl("create", "configmap", name, "--from-literal=key=value")
    before = own.pid(component)
    own.kill(component)
    eventually(lambda: own.pid(component) not in (None, before), seconds=60, what=f"{component} is back")
    eventually(lambda: stored(own, name) == "value", seconds=60, what="the API server answers as before")
    record = next(record for record in own.components() if record.name == component)
    assert record.restarts >= 1
    assert record.last_exit == "was killed by SIGKILL"
    own.kubectl("create", "deployment", name, "--image=none", "--replicas=1", "--", "true")
    pods = ("get", "pods", "-l", f"app={name}", "-o", "name")
    eventually(lambda: own.kubectl(*pods), seconds=60, what="the controllers work")


def stored(cluster: Cluster, config_map: str) -> str | None:
    """Return what a ConfigMap holds, None while the API server or etcd is away."""
    try:
        return cluster.kubectl("get", "configmap", config_map, "-o", "jsonpath={.data.key}", timeout=10)
    except CommandError:
        return None


def test_start_failure_names_the_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state_root: Path
) -> None:
    """A component that cannot start: the message has its last words, and nothing is left behind."""
    broken = tmp_path / "assets"
    broken.mkdir()
    for tool in ("etcd", "kube-apiserver", "kubectl"):
        script = broken / tool
        script.write_text("#!/bin/sh\necho this is no etcd >&2; exit 3\n")
        script.chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(broken))
    monkeypatch.setattr("turnout_devcluster.lifecycle._START_SECONDS", 3.0)
    with pytest.raises(StartError, match=r"(?s)etcd ended with status 3\..*this is no etcd"):
        Cluster.up("broken", nodes=0)
    assert not list((state_root / "dev").glob("*broken*"))


def test_killing_what_does_not_run(own: Cluster) -> None:
    """Asking for the end of a component that there is not says so."""
    with pytest.raises(StopError, match="nonesuch"):
        own.kill("nonesuch")
