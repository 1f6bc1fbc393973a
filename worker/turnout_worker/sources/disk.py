"""Whether a model's files fit into the cache, before they are copied."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from turnout_worker.errors import CacheError, NoSpaceError

if TYPE_CHECKING:
    from turnout_worker.errors import SourceError
    from turnout_worker.sources.request import FetchRequest, Listing, RemoteFile


def free_bytes(folder: Path) -> int:
    """Return the bytes that the file system of *folder* has left for this process."""
    return shutil.disk_usage(folder).free


def check_space(request: FetchRequest, listing: Listing, *, present: int, free: int) -> None:
    """Raise NoSpaceError, with the arithmetic, where the files do not fit.

    *present*: bytes of them that are here already; *free*: bytes that the file system has left.
    """
    missing = listing.size - present
    needs = f"{request.source} has {size(listing.size)}"
    if present:
        needs += f", of which {size(present)} are here: {size(missing)} are to be copied"
    if missing > free:
        raise NoSpaceError(
            f"{needs}; {request.cache} has {size(free)} free: {size(missing - free)} too little. Use a larger cache"
            " (model.cache), remove models that are not used from it, or copy fewer files (model.files)"
        )
    if request.limit_bytes is None:
        return
    others = used_bytes(request.cache) - present
    if others + listing.size > request.limit_bytes:
        beside = f", beside {size(others)} of other files," if others else ""
        raise NoSpaceError(
            f"{needs}; the cache may hold {size(request.limit_bytes)}{beside} and would have"
            f" {size(others + listing.size - request.limit_bytes)} too much. Raise model.cache.size, or copy fewer files"
            " (model.files)"
        )


def disk_error(request: FetchRequest, error: OSError, file: RemoteFile | None = None) -> SourceError | None:
    """Return what *error* means for the cache, while *file* was copied. None: it is not about the disk."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        copied = f" while {file.path} ({size(file.size)}) was copied" if file else ""
        return NoSpaceError(
            f"{request.cache} is full{copied}: use a larger cache (model.cache), or remove models that are not used from it"
        )
    if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return CacheError(
            f"{request.cache} cannot be written by user {os.getuid()} ({error.strerror}): give it access, for instance by"
            " the pod's fsGroup"
        )
    return None


def used_bytes(folder: Path) -> int:
    """Return the bytes of all files below *folder*. Files that vanish meanwhile count as none."""
    return sum(file_bytes(Path(root) / name) for root, _, names in os.walk(folder) for name in names)


def file_bytes(path: Path) -> int:
    """Return the size of the file at *path*. 0: there is none."""
    try:
        return path.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def size(count: int) -> str:
    """Return *count* bytes as people read it, in decimal units."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
