"""The engine's output: passed on line by line, its last lines kept.

A thread of its own copies it, so that a reader of the worker's log that does not keep up slows the engine down, as it would
without the worker, and never the worker's event loop.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from typing import Final

MAX_LINE_BYTES: Final = 16 * 1024
"""What a line has beyond that is dropped."""
CUT: Final = b" [cut]"
KEPT_LINES: Final = 1000
"""Eight ranks that each print a traceback of 60 lines, and that of the engine core and of the API server, fit in."""
KEPT_LINE_BYTES: Final = 1000
_LOOKED_AT: Final = 20
"""Lines among which the last one with text is looked for."""
_READ_BYTES: Final = 64 * 1024


class LineSplitter:
    """Makes lines of bytes that come in pieces. A carriage return ends a line too: progress bars write nothing else."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        self._dropping = False
        self._after_return = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that *data* completes, without their ends; one that grows too long as soon as it does."""
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
        self._after_return = data.endswith(b"\r")
        *lines, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if lines:
            first = lines.pop(0)
            found = [] if self._dropping else [self._bounded(self._rest + first)]
            found += [self._bounded(line) for line in lines]
            self._rest, self._dropping = b"", False
        else:
            found = []
        if not self._dropping:
            self._rest += rest
            if len(self._rest) > self._max_bytes:
                found.append(self._bounded(self._rest))
                self._rest, self._dropping = b"", True
        return found

    def flush(self) -> list[bytes]:
        """Return the line that has no end, at the end of the output."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []

    def _bounded(self, line: bytes) -> bytes:
        return line if len(line) <= self._max_bytes else line[: self._max_bytes] + CUT


class Tail:
    """The last lines, for any thread to write and to read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque(maxlen=KEPT_LINES)

    def extend(self, lines: list[bytes]) -> None:
        """Add *lines*; older ones leave."""
        kept = [line[:KEPT_LINE_BYTES] for line in lines[-KEPT_LINES:]]
        with self._lock:
            self._lines.extend(kept)

    def lines(self, most: int = KEPT_LINES) -> list[str]:
        """Return the last *most* that are kept, the oldest first."""
        with self._lock:
            kept = list(itertools.islice(reversed(self._lines), most))[::-1]
        return [line.decode(errors="replace") for line in kept]

    def last(self) -> str:
        """Return the last line with text; empty where there is none."""
        return next((line.strip() for line in reversed(self.lines(_LOOKED_AT)) if line.strip()), "")


class Pump:
    """Copies one pipe to the worker's stdout until its end."""

    def __init__(self, source: int, target: int, tail: Tail) -> None:
        """*source* is closed at its end."""
        self._source = source
        self._target = target
        self._tail = tail
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="engine-output", daemon=True)

    def start(self) -> None:
        """Begin to copy."""
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the end of the output, at most *seconds*. Return whether it has come."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        splitter = LineSplitter()
        try:
            while data := os.read(self._source, _READ_BYTES):
                self._pass_on(splitter.feed(data))
            self._pass_on(splitter.flush())
        finally:
            os.close(self._source)

    def _pass_on(self, lines: list[bytes]) -> None:
        if not lines:
            return
        self._tail.extend(lines)
        left = memoryview(b"\n".join([*lines, b""]))
        while left and not self._broken:
            try:
                left = left[os.write(self._target, left) :]
            except OSError:
                self._broken = True  # the log's reader is gone: the engine must not wait for it
