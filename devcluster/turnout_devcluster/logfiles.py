"""Log files of components that write to them directly, kept at a bounded size."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_BYTES: Final = 16 << 20
"""Size at which a log file is turned: its content moves to ``NAME.log.1`` and it begins anew."""


def open_append(path: Path) -> IO[bytes]:
    """Open a log file so that every write goes to its end, also after it was shortened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def bound(directory: Path, limit: int = LIMIT_BYTES) -> None:
    """Turn each log file of *directory* that has outgrown *limit* bytes, by copying and truncating.

    The writer keeps its descriptor; a line that it writes between copy and truncation is lost.
    """
    for path in directory.glob("*.log"):
        if path.stat().st_size <= limit:
            continue
        previous = path.with_name(path.name + ".1")
        previous.write_bytes(path.read_bytes())
        os.truncate(path, 0)
