"""Ends what is left of a cluster whose supervisor was killed.

The control plane dies with its supervisor by the kernel's doing. Pods must outlive their node agent, so nothing
ties them to a parent: this small process does. It waits for the supervisor to end, however it ends, and then
kills whatever carries the cluster's marker. It needs the standard library only and starts without
site-packages: a few MB, no CPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from turnout_devcluster.processes import ProcessId, end_marked, wait_gone

_FOREVER_SECONDS: Final = 86_400.0
_KILL_SECONDS: Final = 30.0

PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from turnout_devcluster import guard; guard.main()"
)


def command(directory: Path, supervisor: ProcessId, *, remove: bool) -> list[str]:
    """Return the command that guards the cluster in *directory*; *remove*: its files go as well."""
    source = Path(__file__).resolve().parent.parent
    files = "remove" if remove else "keep"
    return [
        *(sys.executable, "-I", "-S", "-c", PROGRAM),
        *(str(source), str(directory), str(supervisor.pid), str(supervisor.start_ticks), files),
    ]


def main() -> None:
    """Wait for the supervisor named in the arguments, then clear away its cluster."""
    _, _, directory, pid, start_ticks, files = sys.argv
    while not wait_gone(ProcessId(int(pid), int(start_ticks)), _FOREVER_SECONDS):
        pass
    path = Path(directory)
    end_marked(path, exempt=frozenset({os.getpid()}), term_seconds=0.0, kill_seconds=_KILL_SECONDS)
    if files == "remove":
        shutil.rmtree(path, ignore_errors=True)
