"""How often a worker is scraped, so that all routers together take little of its time. Pure."""

from __future__ import annotations

from typing import Final

MOST_A_SECOND: Final = 100
"""Pages over all workers: one costs the router 0.5 ms of CPU. Beyond that each worker is scraped less often."""
SHARE: Final = 0.03
"""The most of its API server's time that a worker is to spend on the pages for all routers together."""
SECONDS_PER_BYTE: Final = 1e-7
"""vLLM 0.32 writes a page of 60 to 74 kB in 6.7 ms."""
SLOWEST: Final = 4.0
"""A worker that takes longer for a page than this many times what its size says is not slower, but busy with requests."""


class Looks:
    """The last looks at one worker: how large its pages are, and how fast it answers when it is not busy."""

    __slots__ = ("_before", "_began", "_fastest", "page_bytes")

    WINDOW_SECONDS: Final = 60.0

    def __init__(self) -> None:
        self.page_bytes = 0
        self._began = 0.0
        self._fastest: float | None = None
        self._before: float | None = None

    @property
    def fastest(self) -> float:
        """Return the least seconds that a page took in the last minute or two; 0 before the first."""
        return min((each for each in (self._fastest, self._before) if each is not None), default=0.0)

    def answered(self, page_bytes: int, seconds: float, now: float) -> None:
        """Take note of a page of *page_bytes* that came within *seconds*."""
        self.page_bytes = page_bytes
        if self._fastest is None or now - self._began >= self.WINDOW_SECONDS:
            self._before, self._fastest, self._began = self._fastest, seconds, now
        else:
            self._fastest = min(self._fastest, seconds)


def period(seconds: float, *, workers: int, routers: int, page_bytes: int = 0, fastest: float = 0.0) -> float:
    """Return the seconds from one look at a worker to the next one by this router.

    *seconds* is the configured interval, with one router; *workers* are those that this router scrapes, *routers* all
    that scrape this worker. A page of *page_bytes*, at best there within *fastest* seconds, is taken to cost the worker as
    long as that, within what its size makes likely.
    """
    likely = page_bytes * SECONDS_PER_BYTE
    cost = min(max(likely, fastest), SLOWEST * likely)
    return max(routers * seconds, workers / MOST_A_SECOND, routers * cost / SHARE)
