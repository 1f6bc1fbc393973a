"""Reports how far a download is: a line in the log every few seconds, and a value for a callback."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Self

from turnout_worker.sources.disk import file_bytes, size
from turnout_worker.sources.request import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from turnout_worker.sources.request import FetchRequest, Listing

_log = logging.getLogger(__name__)


def present_bytes(folder: Path, listing: Listing, partial: Callable[[], int]) -> int:
    """Return how many bytes of *listing* lie in *folder*; *partial* says those of files that are not whole yet."""
    whole = sum(min(file_bytes(folder / file.path), file.size) for file in listing.files)
    return min(whole + partial(), listing.size)


class Reporter:
    """Context in which progress is reported, from a thread of its own: what is on the disk counts, whatever puts it there."""

    def __init__(
        self,
        request: FetchRequest,
        listing: Listing,
        partial: Callable[[], int],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._request = request
        self._listing = listing
        self._partial = partial
        self._on_progress = on_progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fetch-progress", daemon=True)
        self._begun = time.monotonic()
        self._first = present_bytes(request.folder, listing, partial)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self._report()

    def _run(self) -> None:
        while not self._ended.wait(self._request.report_seconds):
            self._report()

    def _report(self) -> None:
        done = present_bytes(self._request.folder, self._listing, self._partial)
        total = self._listing.size
        rate = (done - self._first) / max(time.monotonic() - self._begun, 0.001)
        left = f", about {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        percent = 100 * done // total if total else 100
        _log.info(
            "%s: %s of %s here (%d %%), %s/s%s",
            self._request.source,
            size(done),
            size(total),
            percent,
            size(int(rate)),
            left,
        )
        if self._on_progress is not None:
            self._on_progress(Progress(done, total))
