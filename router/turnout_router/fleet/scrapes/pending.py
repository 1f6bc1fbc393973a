"""Prompt tokens that wait for their first token, from counters that never forget. Pure.

`Page.unfinished_tokens` also holds what was aborted before its first token, forever. So it is measured from a base:
what it shows while the engine is idle, for then nothing is pending; and in an engine that is never idle, the least of
the last minute or two, for between two prompts hardly anything is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from turnout_router.fleet.scrapes.page import Page

WINDOW_SECONDS: Final = 60.0


class PendingTokens:
    """One engine's, over time."""

    __slots__ = ("_before", "_began", "_lowest")

    def __init__(self) -> None:
        self._began: float | None = None
        self._lowest = 0
        self._before = 0

    def of(self, page: Page, now: float) -> int:
        """Return the tokens that are pending by *page*, which was read at *now* (seconds); 0 if it lacks them."""
        unfinished = page.unfinished_tokens
        if unfinished is None:
            return 0
        idle = page.running == page.waiting == 0
        if self._began is None or idle or unfinished < min(self._lowest, self._before):
            self._began, self._lowest, self._before = now, unfinished, unfinished
        elif now - self._began >= WINDOW_SECONDS:
            self._began, self._before, self._lowest = now, self._lowest, unfinished
        else:
            self._lowest = min(self._lowest, unfinished)
        return unfinished - min(self._lowest, self._before)
