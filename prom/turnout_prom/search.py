"""Looks for single series in a whole page, instead of reading all of it.

For pages of which a few gauges and counters matter, their labels hardly at all: a worker's page has 80 KB, mostly histograms.
Looking for nine names in it takes a quarter of a millisecond; `exposition` takes three times as long, Prometheus' own
parser a hundred times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SAMPLES: Final = 1_024
"""Samples of one name: one for each engine behind the page, and each value of a label."""
MAX_LINE_BYTES: Final = 16 * 1024
MAX_VALUE_BYTES: Final = 64


class PageError(ValueError):
    """A page that is none, or lacks what is looked for; the text says what."""


def search(page: bytes, name: bytes, most: int = MAX_SAMPLES) -> Iterator[tuple[bytes, float]]:
    """Yield labels, as the page has them, and value of every sample of *name*: lines one after the other.

    So the lines of gauges and counters are; of a histogram's buckets, only those of its first labels are found. A series
    without labels is not found. Raise PageError for a value that is no number, for a line that is too long, and for
    more than *most* samples.
    """
    start = name + b"{"
    begin = 0 if page.startswith(start) else page.find(b"\n" + start) + 1
    count = 0
    while page.startswith(start, begin):
        count += 1
        end = page.find(b"\n", begin)
        if count > most or (end if end >= 0 else len(page)) - begin > MAX_LINE_BYTES:
            raise PageError(f"it has too many or too long samples of {name.decode()}")
        line = page[begin + len(name) : end if end >= 0 else len(page)]
        labels, _, rest = line.rpartition(b"}")
        try:
            value = float(rest[:MAX_VALUE_BYTES].split(None, 1)[0])
        except (ValueError, IndexError) as error:
            raise PageError(f"{name.decode()} has no value") from error
        yield labels, value
        if end < 0:
            return
        begin = end + 1


def total(page: bytes, name: bytes) -> float | None:
    """Return the sum of all samples of *name*; None where there is none. Raise PageError as `search` does."""
    values = [value for _, value in search(page, name)]
    return sum(values) if values else None
