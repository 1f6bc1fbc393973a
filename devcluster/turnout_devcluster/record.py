"""What the supervisor knows of its components, written to a file for other commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from turnout_devcluster.files import write_atomically
from turnout_devcluster.processes import ProcessId, is_alive

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from turnout_devcluster.layout import ClusterFiles


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """One component as the supervisor last saw it."""

    name: str
    process: ProcessId | None
    """None while it is not running."""
    restarts: int
    last_exit: str | None
    """How it ended last time, in words; None when it never ended."""


_ADAPTER: Final = TypeAdapter(tuple[ComponentRecord, ...])


def load_records(files: ClusterFiles) -> tuple[ComponentRecord, ...]:
    """Read the components' records; none when the supervisor has not written them yet."""
    try:
        return _ADAPTER.validate_json(files.components.read_bytes())
    except (FileNotFoundError, ValidationError):
        return ()


def store_records(files: ClusterFiles, records: Sequence[ComponentRecord]) -> None:
    """Replace the components' records."""
    write_atomically(files.components, _ADAPTER.dump_json(tuple(records), indent=2))


def running_supervisor(files: ClusterFiles) -> ProcessId | None:
    """Return the supervisor of the cluster if it runs."""
    try:
        process = ProcessId.parse(files.supervisor_pid.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    return process if process is not None and is_alive(process) else None


def log_tail(path: Path, lines: int = 15) -> str:
    """Return the last *lines* of a log file, indented for a message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (empty log)"
