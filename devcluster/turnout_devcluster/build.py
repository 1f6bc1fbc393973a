"""Builds the control plane from its Go modules, once, into the cache.

The result is ``$TURNOUT_CACHE/controlplane/KEY/``: the binary ``controlplane`` and a link to it for each tool. KEY
covers the sources, go.sum and the version of Go, so nothing is ever rebuilt in place. Builders of one key take
turns by a lock; the later ones find the result of the first. A build happens in a folder with another name and is
renamed when it is whole; what an interrupted one left is removed by the next.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout_devcluster.components import CLIENTS, SERVERS
from turnout_devcluster.errors import BuildError
from turnout_devcluster.files import exclusive
from turnout_devcluster.layout import cache_root
from turnout_devcluster.toolchain import find_go

if TYPE_CHECKING:
    from turnout_devcluster.gocommand import GoCommand
    from turnout_devcluster.progress import Progress

_BUILD_SECONDS: Final = 3600.0
_KEPT_BUILDS: Final = 3
_BINARY: Final = "controlplane"
_KEY_DIGITS: Final = 16


def source_folder() -> Path:
    """Return the Go module: beside this package in a checkout, inside it in an installed wheel.

    :raises BuildError: when it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / _BINARY, package.parent / _BINARY):
        if (candidate / "go.mod").is_file():
            return candidate
    raise BuildError(
        f"The Go module of the control plane is missing beside {package}: install Turnout again."
    )


def ensure_built(progress: Progress) -> Path:
    """Return the folder that holds the built tools, building them first if need be (minutes, once).

    :raises BuildError: when the build fails; the message ends with what Go said.
    :raises ToolchainError: when there is no Go and none can be fetched.
    """
    source = source_folder()
    go = find_go(required_go(source), progress)
    builds = cache_root() / _BINARY
    target = builds / _key(source, go.version)
    if target.is_dir():
        return target
    lock = exclusive(
        builds / f".{target.name}.lock",
        deadline_seconds=_BUILD_SECONDS,
        waiting=lambda: progress.line("waiting: the control plane is being built by another process"),
    )
    with lock:
        if not target.is_dir():
            _build(go, source, target, progress)
            _prune(builds)
    return target


def required_go(source: Path) -> tuple[int, ...]:
    """Return the least version of Go that go.mod asks for, as numbers."""
    found = re.search(r"^go (\d+(?:\.\d+)*)$", (source / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise BuildError(f"{source / 'go.mod'} names no Go version.")
    return tuple(int(number) for number in found[1].split("."))


def version_flags(go_mod: str) -> str:
    """Return the linker flags that set the tools' versions, which are go.mod's own.

    A release build of Kubernetes and Helm gets them from git, which a module has not.
    """
    kubernetes = _required(go_mod, "k8s.io/kubernetes")
    helm = _required(go_mod, "helm.sh/helm/v4")
    major, minor, _ = kubernetes.removeprefix("v").split(".", 2)
    values = {"helm.sh/helm/v4/internal/version.version": helm}
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        values[f"{package}.gitVersion"] = kubernetes
        values[f"{package}.gitMajor"] = major
        values[f"{package}.gitMinor"] = minor
        values[f"{package}.gitTreeState"] = "clean"
        values[f"{package}.gitCommit"] = ""
    return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in values.items())])


def _required(go_mod: str, module: str) -> str:
    found = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise BuildError(f"go.mod does not require {module}.")
    return found[1]


def _key(source: Path, go_version: str) -> str:
    digest = hashlib.sha256(go_version.encode())
    for path in sorted([source / "go.mod", source / "go.sum", *source.glob("*.go")]):
        content = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:_KEY_DIGITS]


def _build(go: GoCommand, source: Path, target: Path, progress: Progress) -> None:
    for leftover in target.parent.glob(f".{target.name}.building-*"):
        shutil.rmtree(leftover)
    building = target.with_name(f".{target.name}.building-{os.getpid()}")
    building.mkdir(parents=True)
    own = target.with_name(f".{target.name}.go")
    own.mkdir(exist_ok=True)
    try:
        progress.line(
            f"building the control plane with {go.version}: some minutes, once, then cached in {target}"
        )
        packages = go.list_dependencies(source, own, progress)
        go_mod = (source / "go.mod").read_text(encoding="utf-8")
        go.build(
            source,
            own,
            progress,
            output=building / _BINARY,
            linker_flags=version_flags(go_mod),
            packages=packages,
        )
        for tool in (*SERVERS, *CLIENTS):
            (building / tool).symlink_to(_BINARY)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        # Else kept: the next try goes on from what was fetched and compiled.
        if target.is_dir() or not go.fetched:
            shutil.rmtree(own, ignore_errors=True)
    progress.line("the control plane is built")


def _prune(builds: Path) -> None:
    """Remove all but the newest builds: each takes 145 MB."""
    finished = [path for path in builds.iterdir() if path.is_dir() and not path.name.startswith(".")]
    finished.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in finished[_KEPT_BUILDS:]:
        shutil.rmtree(path, ignore_errors=True)
