"""`turnout dev`: what it prints, what it refuses, and the status it ends with."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from support.devcluster_waiting import eventually, gone
from turnout_cli.dev import app
from turnout_devcluster.layout import STATE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from turnout_devcluster.cluster import Cluster

PROGRAM = "from turnout_cli.dev import app; app(prog_name='turnout dev')"


def dev(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `turnout dev` with *arguments*."""
    kept = {name: value for name, value in os.environ.items() if name != "TURNOUT_KUBECONFIG"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**kept, "NO_COLOR": "1", **environment},
    )


@pytest.fixture
def empty_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Point TURNOUT_STATE to an empty folder; what a failing test left running there is taken down."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path))
    yield tmp_path
    if (tmp_path / "dev").exists():
        dev("down", "--all")


@pytest.mark.cluster
def test_up_status_down(empty_state: Path) -> None:
    """Up prints the kubeconfig's path last on stdout and all else on stderr; down leaves no process and no file."""
    up = dev("up", "--name", "cli", "--nodes", "0")
    assert up.returncode == 0, up.stderr
    kubeconfig = empty_state / "dev" / "cli" / "kubeconfig"
    assert up.stdout == f"{kubeconfig}\n"
    assert "starting the cluster cli" in up.stderr
    again = dev("up", "--name", "cli")
    assert again.returncode == 0
    assert again.stdout == up.stdout
    assert "runs already" in again.stderr
    status = dev("status")
    assert status.returncode == 0
    for component in (
        "supervisor",
        "guard",
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
    ):
        assert component in status.stdout
    down = dev("down", "--name", "cli")
    assert down.returncode == 0
    assert list((empty_state / "dev").iterdir()) == []
    assert dev("status").returncode == 1


@pytest.mark.cluster
def test_up_with_parent_ends_with_it(empty_state: Path) -> None:
    """A cluster that was started --with-parent is gone when the shell that started it has ended."""
    script = f'{sys.executable} -c "$0" up --name tied --nodes 0 --with-parent && test -d {empty_state}/dev/tied && read x'
    with subprocess.Popen(
        ["sh", "-c", script, PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline().endswith("/dev/tied/kubeconfig\n")
        assert shell.poll() is None
        shell.communicate("done\n", timeout=20)
    eventually(lambda: gone(empty_state / "dev" / "tied"), seconds=60, what="the cluster is gone")


@pytest.mark.cluster
def test_status_shows_nodes(cluster: Cluster) -> None:
    """Status lists the nodes with their addresses and accelerators, and ends with 0 while all is well."""
    status = dev("status", "--name", cluster.name)
    assert status.returncode == 0, status.stdout
    assert "64 NVIDIA-H100-80GB-HBM3" in status.stdout
    assert f"127.{cluster.config.addresses.network}.0." in status.stdout


@pytest.mark.cluster
def test_tools_are_passed_through(cluster: Cluster) -> None:
    """Kubectl and helm get their arguments as they are, and their output and status come back."""
    named = ("--name", cluster.name)
    listed = dev("kubectl", *named, "get", "namespaces", "-o", "name")
    assert "namespace/default" in listed.stdout.split()
    missing = dev("kubectl", *named, "-n", "default", "get", "pod", "nonesuch")
    assert missing.returncode == 1
    assert 'pods "nonesuch" not found' in missing.stderr
    assert dev("helm", *named, "list", "--all-namespaces", "-q").returncode == 0
    assert "kubectl controls" in dev("kubectl", *named, "--help").stdout


@pytest.mark.cluster
def test_logs_without_the_api_server(cluster: Cluster, namespace: str) -> None:
    """Logs come from the node's files: kubectl is not asked."""
    run = (
        "run",
        "talker",
        "--image=none",
        "--restart=Never",
        "--command",
        "--",
        "sh",
        "-c",
        "echo hello; sleep 600",
    )
    cluster.kubectl("-n", namespace, *run)
    ready = ("wait", "--for=condition=Ready", "pod/talker", "--timeout=60s")
    cluster.kubectl("-n", namespace, *ready, timeout=70)
    said = dev("logs", "talker", "--name", cluster.name, "-n", namespace, PATH="/usr/bin:/bin")
    assert said.stdout == "hello\n"
    previous = dev("logs", "talker", "--name", cluster.name, "-n", namespace, "--previous")
    assert previous.returncode == 1
    assert "no earlier run" in previous.stderr


@pytest.mark.cluster
def test_an_existing_cluster_is_used(cluster: Cluster, empty_state: Path) -> None:
    """With --kubeconfig or TURNOUT_KUBECONFIG nothing is started, and the tools go there."""
    up = dev("up", "--kubeconfig", str(cluster.kubeconfig))
    assert up.returncode == 0, up.stderr
    assert up.stdout == f"{cluster.kubeconfig}\n"
    assert "starting nothing" in up.stderr
    assert not (empty_state / "dev").exists()
    nodes = dev("kubectl", "get", "nodes", "-o", "name", TURNOUT_KUBECONFIG=str(cluster.kubeconfig))
    assert "node/h100-sxm-0" in nodes.stdout.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("up", "--accelerators", "H100=4"), "'H100' is not one of"),
        (("up", "--accelerators", "H100-SXM"), "H100-SXM=8"),
        (("up", "--nodes", "-1"), "greater than or equal to 0"),
        (("up", "--name", "No"), "cannot name a dev cluster"),
        (("up", "--kubeconfig", "/nonesuch"), "no kubeconfig at /nonesuch"),
        (("down", "--name", "nonesuch"), "no dev cluster called nonesuch; there are: none"),
        (("kubectl", "--name", "nonesuch", "get", "pods"), "turnout dev up --name nonesuch"),
        (("logs", "p", "--name", "nonesuch"), "no dev cluster called nonesuch"),
        (("status", "--name", "nonesuch"), "no dev cluster called nonesuch"),
        (("status",), "no dev cluster"),
    ],
)
@pytest.mark.usefixtures("empty_state")
def test_bad_requests_say_what_to_do(arguments: tuple[str, ...], message: str) -> None:
    """Each ends with a status above 0 and one message, no traceback."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit)
    assert message in done.stderr


def test_an_existing_cluster_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    """What kubectl complains of is said in one line, beside the kubeconfig that is meant."""
    for tool in ("kubectl", "helm"):
        (tmp_path / tool).write_text(
            "#!/bin/sh\necho 'E1201 11:00:19.4 1 memcache.go:265] \"Unhandled Error\"' >&2\n"
            "echo 'The connection to the server 10.0.0.1:6443 was refused - did you specify the right host?' >&2\nexit 1\n"
        )
        (tmp_path / tool).chmod(0o755)
    (tmp_path / "kubeconfig").touch()
    done = dev("up", TURNOUT_KUBECONFIG=str(tmp_path / "kubeconfig"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "memcache" not in done.stderr
    assert "kubeconfig: the cluster's API server cannot be reached" in done.stderr
