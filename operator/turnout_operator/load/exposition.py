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
