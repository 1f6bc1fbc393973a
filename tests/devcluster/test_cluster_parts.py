"""The parts a cluster's lifetime rests on: identities of processes, locks, files, claims, logs, names."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.devcluster_waiting import eventually
from turnout_devcluster import logfiles
from turnout_devcluster.components import plan_components
from turnout_devcluster.config import Addresses, ClusterConfig, Ports, load_config, store_config
from turnout_devcluster.errors import DevClusterError
from turnout_devcluster.files import exclusive, write_atomically
from turnout_devcluster.layout import STATE_VARIABLE, ClusterFiles
from turnout_devcluster.network import choose_ports, claim_network
from turnout_devcluster.podlogs import find_log, read_log
from turnout_devcluster.processes import (
    MARKER,
    ProcessId,
    end_marked,
    identify,
    is_alive,
    marked_processes,
    send_signal,
    wait_gone,
)

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = ClusterConfig(
    name="c",
    addresses=Addresses(99),
    ports=Ports(api=6443, etcd=2379, etcd_peer=2380),
    nodes=2,
    accelerators={"H100-SXM": 16, "L40S": 4},
    owner=ProcessId(7, 8),
)


def test_a_reused_pid_is_never_signaled() -> None:
    """A process with the pid but another start time is another process: not alive, not signaled, not waited for."""
    with subprocess.Popen(["sleep", "60"]) as child:
        real = identify(child.pid)
        assert real is not None
        other = replace(real, start_ticks=real.start_ticks - 1)
        assert not is_alive(other)
        assert not send_signal(other, signal.SIGKILL)
        assert wait_gone(other, 0)
        assert is_alive(real)
        assert not wait_gone(real, 0)
        assert send_signal(real, signal.SIGKILL)
        assert wait_gone(real, 10)
    assert identify(real.pid) is None
    assert not send_signal(real, signal.SIGKILL)


@pytest.mark.parametrize("text", ["", "12", "12 x", "1 2 3", "-1 5"])
def test_a_damaged_pid_file_names_no_process(text: str) -> None:
    """What is not `PID STARTTIME` names no process."""
    assert ProcessId.parse(text) is None
    assert ProcessId.parse(str(ProcessId(3, 4))) == ProcessId(3, 4)


def test_marked_processes_are_found_with_their_descendants(tmp_path: Path) -> None:
    """The marker finds a process, and a child of it that was started with an empty environment."""
    marked = {**os.environ, MARKER: str(tmp_path)}
    with subprocess.Popen(["sh", "-c", "env -i sleep 60 & wait"], env=marked) as shell:
        eventually(lambda: len(marked_processes(tmp_path)) == 2, seconds=60, what="shell and sleep are found")
        assert marked_processes(tmp_path / "other") == []
        assert end_marked(tmp_path, exempt=frozenset(), term_seconds=0, kill_seconds=10) == []
        assert shell.wait(10) == -signal.SIGKILL


def test_the_deaf_are_killed_after_a_while(tmp_path: Path) -> None:
    """SIGTERM first; what ignores it gets SIGKILL; exempt processes get neither."""
    marked = {**os.environ, MARKER: str(tmp_path)}
    program = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); sys.stdin.read()"
    with (
        subprocess.Popen(
            [sys.executable, "-c", program], env=marked, stdout=subprocess.PIPE, stdin=subprocess.PIPE
        ) as deaf,
        subprocess.Popen(["sleep", "60"], env=marked) as polite,
        subprocess.Popen(["sleep", "60"], env=marked) as spared,
    ):
        assert deaf.stdout is not None
        assert deaf.stdout.readline() == b"1\n"
        rest = end_marked(tmp_path, exempt=frozenset({spared.pid}), term_seconds=1, kill_seconds=10)
        assert rest == []
        assert deaf.wait(10) == -signal.SIGKILL
        assert polite.wait(10) == -signal.SIGTERM
        assert spared.poll() is None
        spared.kill()


def test_locks_are_held_one_at_a_time_and_freed_by_death(tmp_path: Path) -> None:
    """A second taker reports that it waits, and gets the lock when the holder is killed. No lock file is left."""
    path = tmp_path / "lock"
    program = f"""
        import sys
        from pathlib import Path
        from turnout_devcluster.files import exclusive
        with exclusive(Path({str(path)!r}), deadline_seconds=5, waiting=lambda: None):
            print("held", flush=True)
            sys.stdin.read()
    """
    waited = threading.Event()
    taken = threading.Event()

    def take() -> None:
        with exclusive(path, deadline_seconds=30, waiting=waited.set):
            taken.set()

    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        thread = threading.Thread(target=take)
        thread.start()
        assert waited.wait(10)
        assert not taken.is_set()
        holder.kill()
        assert taken.wait(10)
        thread.join()
    assert not path.exists()


def test_a_lock_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """When the deadline passes the message names the lock file."""
    path = tmp_path / "lock"
    with (
        exclusive(path, deadline_seconds=5, waiting=lambda: None),
        pytest.raises(DevClusterError, match=str(path)),
        exclusive(path, deadline_seconds=0.2, waiting=lambda: None),
    ):
        pytest.fail("two holders")


def test_files_with_keys_are_private(tmp_path: Path) -> None:
    """What is written is whole, replaces what was there, and is readable by its owner only."""
    path = tmp_path / "key"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_networks_are_claimed_by_one_cluster_at_a_time() -> None:
    """Two claims under one name give two networks; a released one is given again."""
    first, held = claim_network("claims")
    second, other = claim_network("claims")
    assert first != second
    other.close()
    held.close()
    third, again = claim_network("claims")
    again.close()
    assert third == first


def test_taken_ports_are_avoided() -> None:
    """Where another program listens on the usual port, another is chosen."""
    addresses, claim = claim_network("ports")
    with claim, socket.create_server((addresses.control_plane, 2379)):
        ports = choose_ports(addresses)
    assert ports.api == 6443
    assert ports.etcd != 2379
    assert len({ports.api, ports.etcd, ports.etcd_peer}) == 3


def test_the_configuration_survives_the_disk(tmp_path: Path) -> None:
    """What is stored is what is loaded; a damaged file says how to get rid of the cluster."""
    files = ClusterFiles(tmp_path)
    store_config(files, CONFIG)
    assert load_config(files) == CONFIG
    files.config.write_text("{}")
    with pytest.raises(DevClusterError, match="turnout dev down --name"):
        load_config(files)


def test_commands_keep_to_the_clusters_own_addresses(tmp_path: Path) -> None:
    """Every address in a command line is the cluster's own, and the node agent hears what it is to pretend."""
    components = plan_components(ClusterFiles(tmp_path), CONFIG)
    spoken = [argument for component in components for argument in component.command]
    assert not [argument for argument in spoken if "0.0.0.0" in argument or "127.0.0.1" in argument]
    node = components[-1].command
    assert "--subnet=127.99.0.0/16" in node
    assert "--nodes=2" in node
    assert "--accelerators=H100-SXM=16,L40S=4" in node
    assert CONFIG.expected_nodes == 4


def test_a_cluster_without_nodes_runs_no_agent(tmp_path: Path) -> None:
    """No nodes: the control plane alone."""
    names = [each.name for each in plan_components(ClusterFiles(tmp_path), replace(CONFIG, nodes=0))]
    assert names == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "-a", "a-", "a" * 41])
def test_names_that_are_no_folder_names_are_refused(name: str) -> None:
    """A cluster's name is a folder's: nothing that leads elsewhere is let through."""
    with pytest.raises(DevClusterError, match="cannot name a dev cluster"):
        ClusterFiles.of(name)


def test_state_goes_where_the_option_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TURNOUT_STATE moves all clusters' files."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path))
    assert ClusterFiles.of("x").directory == tmp_path / "dev" / "x"


def test_logs_are_bounded(tmp_path: Path) -> None:
    """A log over its bound is moved aside and begins anew, while its writer keeps writing."""
    path = tmp_path / "c.log"
    with logfiles.open_append(path) as writer:
        writer.write(b"x" * 100)
        writer.flush()
        logfiles.bound(tmp_path, limit=50)
        writer.write(b"after")
        writer.flush()
    assert path.read_bytes() == b"after"
    assert (tmp_path / "c.log.1").read_bytes() == b"x" * 100
    logfiles.bound(tmp_path, limit=50)
    assert path.read_bytes() == b"after"


def a_log(files: ClusterFiles, pod: str, container: str, attempt: int, text: str) -> Path:
    """Write a container's log as the node agent does."""
    path = files.pods / pod / "containers" / container / f"{attempt}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_pod_logs_are_found_by_name(tmp_path: Path) -> None:
    """The newest run, the previous one, one of several containers; what is ambiguous or absent lists the choice."""
    files = ClusterFiles(tmp_path)
    a_log(files, "ns_web_1", "main", 9, "nine")
    a_log(files, "ns_web_1", "main", 10, "ten")
    a_log(files, "ns_two_2", "a", 0, "")
    a_log(files, "ns_two_2", "b", 0, "b")
    a_log(files, "other_two_3", "a", 0, "")

    def text(
        pod: str, namespace: str | None = None, container: str | None = None, *, previous: bool = False
    ) -> str:
        path = find_log(files, pod, namespace=namespace, container=container, previous=previous)
        return b"".join(read_log(path, follow=False)).decode()

    assert text("web") == "ten"
    assert text("web", previous=True) == "nine"
    assert text("two", "ns", "b") == "b"
    with pytest.raises(DevClusterError, match=r"ns, other.*-n"):
        text("two")
    with pytest.raises(DevClusterError, match=r"a, b.*-c"):
        text("two", "ns")
    with pytest.raises(DevClusterError, match="no earlier run"):
        text("two", "other", previous=True)
    with pytest.raises(DevClusterError, match="keeps: ns/two, ns/web, other/two"):
        text("nonesuch")


def test_a_followed_log_goes_on_over_a_restart_until_the_pod_is_gone(tmp_path: Path) -> None:
    """Following yields what is added, then the next run, and ends with the pod's folder."""
    files = ClusterFiles(tmp_path)
    first = a_log(files, "ns_web_1", "main", 0, "one ")
    seen: list[bytes] = []

    def follow() -> None:
        seen.extend(read_log(first, follow=True))

    thread = threading.Thread(target=follow)
    thread.start()
    eventually(lambda: b"".join(seen) == b"one ", seconds=60, what="the beginning is read")
    with first.open("a") as file:
        file.write("two ")
    eventually(lambda: b"".join(seen) == b"one two ", seconds=60, what="the addition is read")
    second = a_log(files, "ns_web_1", "main", 1, "three")
    eventually(lambda: b"".join(seen) == b"one two three", seconds=60, what="the next run is read")
    first.unlink()
    second.unlink()
    thread.join(10)
    assert not thread.is_alive()
