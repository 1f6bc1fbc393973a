"""A lean reader of Prometheus' text format: only the samples that are asked for are parsed.

A worker's page has hundreds of lines of histograms, of which half a dozen matter, and a hundred workers are read
every few seconds. prometheus_client's parser reads all of them and takes some fifty times as long.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LABEL: Final = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPE: Final = re.compile(r"\\(.)")
MAX_LINE_BYTES: Final = 64 << 10
"""A line longer than this is no sample of anybody's."""


class Excerpt:
    """The lines of a page that matter, taken from it piece by piece.

    Neither memory nor time depends on what else the page holds: whoever writes it may write anything.
    """

    def __init__(self, wanted: Collection[str], *, max_bytes: int, max_lines: int) -> None:
        names = b"|".join(re.escape(name.encode()) for name in sorted(wanted))
        self._line = re.compile(rb"^(?:" + names + rb")[{ \t][^\n]*", re.MULTILINE)
        self._left = max_bytes
        self._max_lines = max_lines
        self._lines: list[bytes] = []
        self._rest = b""

    def add(self, piece: bytes) -> None:
        """Take in the next *piece* of the page. Raise ValueError where it has more bytes or lines than it may."""
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError("the page is too long")
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
        for found in self._line.finditer(text):
            if len(self._lines) >= self._max_lines:
                raise ValueError("the page has too many samples")
            self._lines.append(found[0])


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
        labels = (
            {key: _unescape(quoted) for key, quoted in _LABEL.findall(line[brace + 1 : end])}
            if brace >= 0
            else {}
        )
        yield Sample(name, labels, value)


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: {"n": "\n"}.get(match[1], match[1]), text)
