"""Makes the folder of a model or an adapter complete, once for all processes that share the cache."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from filelock import FileLock, Timeout

from turnout_worker.errors import CacheError, LockedError
from turnout_worker.sources.checksum import JOURNAL, Journal, verify
from turnout_worker.sources.disk import check_space, disk_error, file_bytes, free_bytes, size
from turnout_worker.sources.local import local_folder
from turnout_worker.sources.progress import Reporter, present_bytes
from turnout_worker.sources.request import Listing, Progress
from turnout_worker.sources.select import selected

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from turnout_worker.sources.request import FetchRequest, RemoteFile

MARKER: Final = ".turnout-complete.json"
"""Written when all files are there and verified: a folder without it is never used."""
_AT_A_TIME: Final = 4
"""Files that are copied at a time."""

_log = logging.getLogger(__name__)


class Remote(Protocol):
    """A source whose files are copied. Its methods raise SourceError."""

    def listing(self) -> Listing:
        """Return all files that the source has."""
        ...

    def prepare(self, listing: Listing) -> None:
        """Remove what earlier downloads have left that cannot be resumed."""
        ...

    def partial_bytes(self) -> int:
        """Return the bytes of files that are not whole yet."""
        ...

    def download(self, file: RemoteFile, version: str) -> None:
        """Put *file* of *version*, the listing's, into the request's folder."""
        ...


def plan(request: FetchRequest) -> Listing:
    """Return what `fetch` would copy. Raise SourceError where the source or its files cannot be had."""
    listing = _remote(request).listing()
    return Listing(selected(request, listing.files), listing.version)


def fetch(
    request: FetchRequest,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    free: Callable[[Path], int] = free_bytes,
) -> Path:
    """Return the folder with all files of *request*, each of them verified where the source says how.

    What is complete is used as it is, without asking the source. Only one process at a time copies into a folder; others wait
    for it. *on_progress* is called from another thread, every few seconds and at the end. *free* says how many bytes the file
    system of a folder has left. Raise SourceError, whose message says what to do.
    """
    if not request.source.downloaded:
        return local_folder(request)
    if _complete(request):
        _log.info("%s is complete in %s", request.source, request.folder)
        return request.folder
    with _lock(request):
        if not _complete(request):  # the process that held the lock may have made it so
            try:
                _copy(request, on_progress, free)
            except OSError as error:
                raise disk_error(request, error) or CacheError(
                    f"{request.folder} cannot be used: {error}"
                ) from error
    return request.folder


def _copy(
    request: FetchRequest,
    on_progress: Callable[[Progress], None] | None,
    free: Callable[[Path], int],
) -> None:
    remote = _remote(request)
    listing = remote.listing()
    listing = Listing(selected(request, listing.files), listing.version)
    folder = request.folder
    remote.prepare(listing)
    present = present_bytes(folder, listing, remote.partial_bytes)
    check_space(request, listing, present=present, free=free(folder))
    at = f" at {listing.version}" if listing.version else ""
    _log.info(
        "copying %s%s into %s: %d files, %s, %s of them here",
        request.source,
        at,
        folder,
        len(listing.files),
        size(listing.size),
        size(present),
    )
    with Reporter(request, listing, remote.partial_bytes, on_progress):
        _download(remote, listing, folder)
    _mark(request, listing)
    _log.info("%s is complete in %s", request.source, folder)


def _download(remote: Remote, listing: Listing, folder: Path) -> None:
    """Copy and verify every file that is not there yet. Raise the first SourceError, when those in progress have ended."""
    journal, turn = Journal(folder), threading.Lock()

    def one(file: RemoteFile) -> None:
        path = folder / file.path
        if journal.has(file) and file_bytes(path) == file.size:
            return
        remote.download(file, listing.version)
        verify(path, file)
        with turn:
            journal.add(file)

    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="fetch") as pool:
        running = [pool.submit(one, file) for file in listing.files]
        ended, waiting = wait(running, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        for future in ended:
            future.result()


def _remote(request: FetchRequest) -> Remote:
    # Imported here, for each of the two libraries takes tens of megabytes.
    if request.source.scheme == "hf":
        from turnout_worker.sources.hub import Hub  # noqa: PLC0415

        return Hub(request)
    from turnout_worker.sources.bucket import Bucket  # noqa: PLC0415

    return Bucket(request)


def _complete(request: FetchRequest) -> bool:
    try:
        marker = json.loads((request.folder / MARKER).read_text())
        files = dict(marker["files"])
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, ValueError):
        return False
    damaged = [path for path, length in files.items() if file_bytes(request.folder / path) != length]
    if damaged:
        _log.warning(
            "%s is not complete any more: %s has another size; it is copied again", request.folder, damaged[0]
        )
    return not damaged


def _mark(request: FetchRequest, listing: Listing) -> None:
    content = {
        "source": str(request.source),
        "revision": request.revision,
        "version": listing.version,
        "files": {file.path: file.size for file in listing.files},
    }
    fresh = request.folder / f"{MARKER}.new"
    with fresh.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(request.folder / MARKER)
    (request.folder / JOURNAL).unlink(missing_ok=True)


@contextmanager
def _lock(request: FetchRequest) -> Generator[None]:
    """Hold the lock of the request's folder. Raise LockedError after `lock_seconds`, CacheError where there is no writing."""
    try:
        request.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(request.folder.with_name(f"{request.folder.name}.lock"))
        deadline = time.monotonic() + request.lock_seconds
        while True:
            left = deadline - time.monotonic()
            try:
                lock.acquire(timeout=max(min(left, request.report_seconds), 0), poll_interval=0.1)
                break
            except Timeout:
                if left <= request.report_seconds:
                    raise LockedError(
                        f"{request.source}: another process has been copying it into {request.folder} for more than"
                        f" {request.lock_seconds:.0f} s: look at the pods that use this cache, and end the one that hangs"
                    ) from None
                _log.info("%s: waiting for another process that copies it", request.source)
    except OSError as error:
        raise disk_error(request, error) or CacheError(
            f"{request.cache} cannot be written: {error.strerror}"
        ) from error
    try:
        yield
    finally:
        lock.release()
