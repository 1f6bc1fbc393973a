"""Files that are either whole or absent, and locks that no crash leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from turnout_devcluster.errors import DevClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

_POLL_SECONDS = 0.1


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace *path* by *content* so that a reader sees the old or the new text, never a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


@contextlib.contextmanager
def exclusive(path: Path, *, deadline_seconds: float, waiting: Callable[[], None]) -> Generator[None]:
    """Hold the lock file *path* alone; the kernel frees it when the holder dies, however it dies.

    *waiting* is called once when another process holds it. The file is removed on the way out.

    :raises DevClusterError: when the lock is not to be had within *deadline_seconds*.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + deadline_seconds
    said = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise DevClusterError(
                    f"Another process has held {path} for {deadline_seconds:.0f} s. "
                    "See who it is with 'fuser' or 'lsof', end it, and try again."
                ) from None
            if not said:
                said = True
                waiting()
            time.sleep(_POLL_SECONDS)
            continue
        if _still_there(path, descriptor):
            break
        os.close(descriptor)  # its last holder removed it between our open and our lock
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)
