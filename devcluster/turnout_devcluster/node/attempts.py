"""What a pod leaves on the disk: its record, and one state file per run of a container.

``pods/NAMESPACE_NAME_UID/pod.json``              the record, replaced atomically
``pods/.../CONTAINER/ATTEMPT.TOKEN.json``         the state file of a run, written by its shim
``pods/.../CONTAINER/ATTEMPT.log``                its output
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout_devcluster.node.model import Run
from turnout_devcluster.node.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT_RUNS = 2
"""Runs of a container whose logs and state files are kept."""


@dataclass(frozen=True, slots=True)
class RunAttempt:
    """One attempt to run a container: recorded before its shim is started."""

    attempt: int
    token: str
    streak: int

    @property
    def stem(self) -> str:
        """The state file's name without its ending."""
        return f"{self.attempt}.{self.token}"


@dataclass(slots=True)
class PodRecord:
    """What an agent must know of a pod that another one started."""

    namespace: str
    name: str
    uid: str
    node: str
    ip: str
    start_time: float
    runs: dict[str, list[RunAttempt]] = field(default_factory=dict)
    """By container, oldest first, at most `KEPT_RUNS`."""

    def to_json(self) -> str:
        """Return the record as it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PodRecord:
        """Return a stored record. Raise ValueError or TypeError where it is none."""
        raw = json.loads(text)
        runs = {name: [RunAttempt(**run) for run in kept] for name, kept in raw.pop("runs").items()}
        return cls(**raw, runs=runs)


@dataclass(frozen=True, slots=True)
class RunFile:
    """A run, as its shim recorded it."""

    run: Run
    shim: Process
    process: Process | None
    """The container's first process, once started."""


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put *data* at *path* in one step."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(temporary).chmod(mode)
    Path(temporary).replace(path)


class PodDisk:
    """The folder of one pod."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def container(self, name: str) -> Path:
        """Return the folder of a container's runs."""
        return self.path / "containers" / name

    def state_path(self, name: str, run_attempt: RunAttempt) -> Path:
        """Return the state file of a run."""
        return self.container(name) / f"{run_attempt.stem}.json"

    def log_path(self, name: str, attempt: int) -> Path:
        """Return the log of a run."""
        return self.container(name) / f"{attempt}.log"

    def save(self, record: PodRecord) -> None:
        """Store *record*."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.path / "pod.json", record.to_json().encode())

    def load(self) -> PodRecord | None:
        """Return the stored record, None where there is none that can be read."""
        try:
            return PodRecord.from_json((self.path / "pod.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def forget_old_runs(self, record: PodRecord, name: str) -> None:
        """Delete what older runs than the kept ones left."""
        keep = {b.stem for b in record.runs[name]} | {str(b.attempt) for b in record.runs[name]}
        for path in self.container(name).iterdir():
            if path.name.removesuffix(".1").rpartition(".")[0] not in keep and path.suffix != "":
                path.unlink(missing_ok=True)

    def read_run(self, name: str, run_attempt: RunAttempt) -> RunFile | None:
        """Return a run that has been claimed by its shim, None where none has been."""
        try:
            raw: dict[str, Any] = json.loads(self.state_path(name, run_attempt).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if "shim" not in raw:
            return None
        shim = Process(*raw["shim"])
        process = Process(raw["pid"], raw["pid_start"]) if raw.get("pid_start") is not None else None
        return RunFile(_run(run_attempt.attempt, raw), shim, process)

    def give_up(self, name: str, run_attempt: RunAttempt) -> bool:
        """Claim a run so that a late shim does not start it. Return False where a shim was first."""
        path = self.state_path(name, run_attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".void")
        temporary.write_text("{}", encoding="utf-8")
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True


def _run(attempt: int, raw: dict[str, Any]) -> Run:
    if "finished_at" not in raw:
        return Run(attempt, float(raw.get("started_at", 0.0)))
    code, error = int(raw["exit_code"]), str(raw.get("error", ""))
    reason = "StartError" if error else "Completed" if code == 0 else "Error"
    return Run(
        attempt=attempt,
        started_at=float(raw["started_at"]),
        finished_at=float(raw["finished_at"]),
        exit_code=code,
        signal=int(raw.get("signal", 0)),
        reason=reason,
        message=error,
    )


def lost(run: Run, now: float) -> Run:
    """Return *run* as ended at *now* (Unix seconds) where its shim was killed and could not say how."""
    return Run(
        attempt=run.attempt,
        started_at=run.started_at or now,
        finished_at=now,
        exit_code=128 + signal.SIGKILL,
        signal=signal.SIGKILL,
        reason="ContainerStatusUnknown",
        message="the process that watched the container was killed, and the container with it",
    )


def pods_on_disk(state_dir: Path) -> Iterator[PodDisk]:
    """Return the folders of all pods."""
    with contextlib.suppress(FileNotFoundError):
        yield from (PodDisk(path) for path in sorted((state_dir / "pods").iterdir()) if path.is_dir())


def processes_of(disk: PodDisk) -> list[Process]:
    """Return the containers' processes that may still run, as the pod's record knows them."""
    record = disk.load()
    found = []
    for name, runs in (record.runs if record else {}).items():
        for run_attempt in runs:
            disk.give_up(name, run_attempt)
            run = disk.read_run(name, run_attempt)
            if run is not None and run.run.running and run.process is not None:
                found.append(run.process)
    return found
