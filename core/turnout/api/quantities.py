"""Durations and ratios as people write them in manifests, and the values behind them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Final

from pydantic import Field

from turnout.api.rules import Rule

DURATION_PATTERN: Final = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$"
RATIO_PATTERN: Final = r"^[1-9][0-9]{0,2}:[1-9][0-9]{0,2}$"

_DURATION = re.compile(DURATION_PATTERN)
_RATIO = re.compile(RATIO_PATTERN)
_UNIT_SECONDS: Final = (3600.0, 60.0, 1.0, 0.001)

Duration = Annotated[
    str,
    Field(
        max_length=32,
        description="A duration: hours, minutes, seconds and milliseconds in this order, such as 1h30m, 90s or 500ms.",
    ),
    Rule(
        f"self != '' && self.matches('{DURATION_PATTERN}')",
        "not a duration: write hours, minutes, seconds and milliseconds in this order, such as 1h30m, 90s or 500ms",
        lambda text: text != "" and _DURATION.fullmatch(text) is not None,
    ),
]
Ratio = Annotated[
    str,
    Field(max_length=16, description="Prefill replicas to decode replicas, such as 1:4. Both at least 1."),
    Rule(
        f"self.matches('{RATIO_PATTERN}')",
        "not a ratio: write prefill replicas to decode replicas, each from 1 to 999, such as 1:4",
        lambda text: _RATIO.fullmatch(text) is not None,
    ),
]


def seconds(duration: str) -> float:
    """Return *duration* in seconds. Raise ValueError, naming the accepted form, where it has another."""
    match = _DURATION.fullmatch(duration)
    if not duration or match is None:
        raise ValueError(
            f"{duration!r} is no duration: write hours, minutes, seconds and milliseconds as in 1h30m, 90s or 500ms"
        )
    return sum(
        int(part.rstrip("hms")) * unit
        for part, unit in zip(match.groups(), _UNIT_SECONDS, strict=True)
        if part is not None
    )


def fraction(ratio: str) -> Fraction:
    """Return *ratio* (``"1:4"``) as prefill divided by decode replicas. Raise ValueError for another form."""
    if _RATIO.fullmatch(ratio) is None:
        raise ValueError(f"{ratio!r} is no ratio: write prefill replicas to decode replicas as in 1:4")
    prefill, decode = ratio.split(":")
    return Fraction(int(prefill), int(decode))
