"""What a person sees while something takes long: one line at a time on stderr."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Writes lines with the seconds since it was made; on a terminal a passing line replaces the one before."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._started = time.monotonic()
        self._open = False

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._started

    def line(self, text: str) -> None:
        """Write a line that stays."""
        stream = self._stream or sys.stderr
        prefix = "\r\033[K" if self._open else ""
        self._open = False
        stream.write(f"{prefix}[{self.elapsed_seconds:5.1f} s] {text}\n")
        stream.flush()

    def passing(self, text: str) -> None:
        """Write a line that the next one replaces, where the stream is a terminal; elsewhere it stays."""
        stream = self._stream or sys.stderr
        if not stream.isatty():
            self.line(text)
            return
        stream.write(f"\r\033[K[{self.elapsed_seconds:5.1f} s] {text}")
        stream.flush()
        self._open = True
