"""Waiting for a condition with a deadline, and looking for what is left of a cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from turnout_devcluster.processes import marked_processes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def eventually(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    """Return when *condition* is true; fail after *seconds* with *what* was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def gone(state_dir: Path) -> bool:
    """Whether no process and no file of the cluster in *state_dir* is left."""
    return not marked_processes(state_dir) and not state_dir.exists()
