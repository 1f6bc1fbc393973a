"""A lean reader of Prometheus' text format: only the requested samples are parsed.

A worker's page has hundreds of lines of histograms, of which six or so matter, and a hundred workers are read
every few seconds. prometheus_client's parser reads all of them and takes some fifty times as long.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LABEL: Final = re.compile(
    r'\s*+([A-Za-z_][A-Za-z0-9_]*+)\s*+=\s*+"((?:[^"\\]++|\\.)*+)"\s*+,?\s*+', re.DOTALL
)
"""One label, and what separates it from the next. It never goes back over what it has read, so that the time for a line
grows with its length and no faster, whatever it holds."""
_ESCAPE: Final = re.compile(r"\\(.)")
MAX_LINE_BYTES: Final = 8 << 10
"""A line longer than this is no sample."""
PIECE_BYTES: Final = 4 << 10
"""Pieces of a long page are at least as large, on the average."""
MAX_PIECES: Final = 1024
"""More pieces that a page may have beside these: reading many small ones costs more than their bytes."""


class Excerpt:
    """The lines of a page that matter, taken from it piece by piece.

    Neither memory nor time depends on what else the page holds: its writer may write anything.
    """

    def __init__(self, wanted: Collection[str], *, max_bytes: int, max_kept: int) -> None:
        names = b"|".join(re.escape(name.encode()) for name in sorted(wanted))
        self._line = re.compile(rb"^(?:" + names + rb")[{ \t][^\n]*", re.MULTILINE)
        self._left = max_bytes
        self._pieces = MAX_PIECES + max_bytes // PIECE_BYTES
        self._room = max_kept
        self._lines: list[bytes] = []
        self._rest = b""

    def add(self, piece: bytes) -> None:
        """Take in the next *piece* of the page. Raise ValueError where there is more of it, or of what matters, than may be."""
        self._left -= len(piece)
        self._pieces -= 1
        if self._left < 0 or self._pieces < 0:
            raise ValueError("the page is too long, or comes in too small pieces")
        text = self._rest + piece
        cut = text.rfind(b"\n") + 1
        self._rest = text[cut:]
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError("the page has a line without end")
        self._take(text[:cut])

    def text(self) -> str:
        """Return the lines, once the page has ended."""
        self._take(self._rest)
        self._rest = b""
        return b"\n".join(self._lines).decode(errors="replace")

    def _take(self, text: bytes) -> None:
        found = self._line.findall(text)
        self._room -= sum(map(len, found)) + len(found)
        if self._room < 0:
            raise ValueError("the page has too many samples")
        self._lines += found


class Sample(NamedTuple):
    """One line of a page."""

    name: str
    labels: dict[str, str]
    value: float


def samples(text: str, wanted: Collection[str]) -> Iterator[Sample]:
    """Yield the samples of *text* whose name is among *wanted*; lines that cannot be read are skipped."""
    for line in text.split("\n"):  # not splitlines: a label may hold any of the exotic separators
        if not line or line[0] == "#":
            continue
        brace = line.find("{")
        name = line[:brace] if brace >= 0 else line.split(None, 1)[0]
        if name not in wanted:
            continue
        end = line.rfind("}") if brace >= 0 else len(name) - 1
        values = line[end + 1 :].split()
        if end < brace or not values:
            continue
        try:
            value = float(values[0])
        except ValueError:
            continue
        yield Sample(name, _labels(line[brace + 1 : end]) if brace >= 0 else {}, value)


def _labels(text: str) -> dict[str, str]:
    """Read labels up to the first thing that is none."""
    labels: dict[str, str] = {}
    at = 0
    while (found := _LABEL.match(text, at)) is not None:
        labels[found[1]] = _unescape(found[2])
        at = found.end()
    return labels


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: {"n": "\n"}.get(match[1], match[1]), text)
