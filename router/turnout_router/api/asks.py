"""What a client asks of the router itself, in fields called `x-turnout-...`: they are for no worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from turnout_router.errors import malformed

if TYPE_CHECKING:
    from turnout_router.http1.http import Fields

PREFIX: Final = b"x-turnout-"
_LONGEST_SECONDS: Final = 86_400.0


class Asks(NamedTuple):
    """`priority` as it was written; `seconds` within which an answer has to begin; `explain`: why it went there."""

    priority: bytes | None = None
    seconds: float | None = None
    explain: bool = False


NOTHING: Final = Asks()


def read_asks(fields: Fields) -> Asks:
    """Return what *fields* ask for. Raise ApiError (400) for a time that is none."""
    said = dict(reversed(fields))  # of several the first one counts
    timeout = said.get(b"x-turnout-timeout")
    return Asks(
        priority=said.get(b"x-turnout-priority"),
        seconds=None if timeout is None else _seconds(timeout),
        explain=said.get(b"x-turnout-explain") == b"1",
    )


def _seconds(text: bytes) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise malformed("`x-turnout-timeout` must be a number of seconds, such as 30, up to a day.")
    return seconds
