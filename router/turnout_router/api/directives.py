"""Directives of a client to the router itself: fields called `x-turnout-...`, which are not passed on to workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from turnout_router.errors import malformed

if TYPE_CHECKING:
    from turnout_router.http1.http import Fields

PREFIX: Final = b"x-turnout-"
_LONGEST_SECONDS: Final = 86_400.0


class Directives(NamedTuple):
    """`priority` as sent; `seconds` within which the answer must begin; `explain`: the answer says why its worker was chosen."""

    priority: bytes | None = None
    seconds: float | None = None
    explain: bool = False


NOTHING: Final = Directives()


def read_directives(fields: Fields) -> Directives:
    """Return the directives in *fields*. Raise ApiError (400) for an invalid time."""
    values = dict(reversed(fields))  # of several the first one counts
    timeout = values.get(b"x-turnout-timeout")
    return Directives(
        priority=values.get(b"x-turnout-priority"),
        seconds=None if timeout is None else _seconds(timeout),
        explain=values.get(b"x-turnout-explain") == b"1",
    )


def _seconds(text: bytes) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise malformed("`x-turnout-timeout` must be a number of seconds, such as 30, up to a day.")
    return seconds
