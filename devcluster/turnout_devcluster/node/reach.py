"""What is said of a collection of the API server that cannot be followed."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class Reach:
    """Logs once when a collection can no longer be followed."""

    def __init__(self) -> None:
        self._reason = ""

    def note(self, reason: str) -> None:
        """Take *reason*, empty where the collection is followed."""
        if reason and not self._reason:
            _log.warning("%s; trying again", reason)
        self._reason = reason
