"""Logs of containers: found, followed, and kept within bounds.

Containers write to their files themselves, so that they outlive the agent. A file over its bound is copied
aside and cut to nothing (lines written in between are lost): at most twice the bound is kept of a run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING, Final

from turnout_devcluster.node.attempts import pods_on_disk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

BOUND_BYTES: Final = 10 * 1024 * 1024
LOOK_SECONDS: Final = 10.0
FOLLOW_SECONDS: Final = 0.2
MESSAGE_LINES: Final = 80
MESSAGE_BYTES: Final = 2048
CHUNK: Final = 64 * 1024


def cut(path: Path, bound: int = BOUND_BYTES) -> bool:
    """Move what *path* holds to ``PATH.1`` where it is larger than *bound*. Return whether it was."""
    try:
        if path.stat().st_size <= bound:
            return False
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        with path.open("r+b") as file:
            file.truncate(0)
    except FileNotFoundError:
        return False
    return True


async def keep_bounded(state_dir: Path) -> None:
    """Cut logs that have grown too large, until cancelled."""
    while True:
        for disk in pods_on_disk(state_dir):
            for path in disk.path.glob("containers/*/*.log"):
                cut(path)
        await asyncio.sleep(LOOK_SECONDS)


def tail_offset(path: Path, lines: int | None) -> int:
    """Return where the last *lines* lines of *path* begin; 0 for all of it."""
    if lines is None:
        return 0
    with path.open("rb") as file:
        position = end = file.seek(0, 2)
        found = 0
        while position > 0:
            size = min(CHUNK, position)
            position -= size
            file.seek(position)
            block = file.read(size)
            for index in range(len(block) - 1, -1, -1):
                if block[index : index + 1] == b"\n" and position + index + 1 < end:
                    found += 1
                    if found == lines:
                        return position + index + 1
        return end if lines == 0 else 0


def last_words(path: Path) -> str:
    """Return the end of the log *path* as the kubelet takes it for a message: at most 80 lines and 2,048 bytes."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(tail_offset(path, MESSAGE_LINES), end - MESSAGE_BYTES))
            return file.read(MESSAGE_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""


async def read(
    path: Path, *, lines: int | None, limit: int | None, is_over: Callable[[], bool], follow: bool
) -> AsyncIterator[bytes]:
    """Yield the content of *path*: its last *lines*, at most *limit* bytes, and what comes while *follow*.

    Following ends when *is_over* says that the container has ended and all has been read. While nothing
    comes, empty blocks are yielded, so that the reader can check whether the client is still connected.
    """
    with path.open("rb") as file:
        file.seek(tail_offset(path, lines))
        left = limit
        while left is None or left > 0:
            over = is_over()
            block = file.read(CHUNK if left is None else min(CHUNK, left))
            if block:
                left = None if left is None else left - len(block)
                yield block
            elif not follow or over:
                return
            else:
                if os.fstat(file.fileno()).st_size < file.tell():
                    file.seek(0)  # it was cut
                yield b""
                await asyncio.sleep(FOLLOW_SECONDS)
