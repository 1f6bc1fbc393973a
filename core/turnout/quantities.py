"""Durations, ratios and sizes as text, and the values behind them. The standard library only."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

DURATION_PATTERN: Final = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$"
RATIO_PATTERN: Final = r"^[1-9][0-9]{0,2}:[1-9][0-9]{0,2}$"
SIZE_PATTERN: Final = "^[1-9][0-9]{0,6}(Mi|Gi|Ti|M|G|T)$"

_DURATION = re.compile(DURATION_PATTERN)
_RATIO = re.compile(RATIO_PATTERN)
_SIZE = re.compile(SIZE_PATTERN)
_UNIT_BYTES: Final = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_UNIT_SECONDS: Final = (3600.0, 60.0, 1.0, 0.001)


def is_duration(text: str) -> bool:
    """Whether `seconds` reads *text*."""
    return text != "" and _DURATION.fullmatch(text) is not None


def is_ratio(text: str) -> bool:
    """Whether `fraction` reads *text*."""
    return _RATIO.fullmatch(text) is not None


def is_size(text: str) -> bool:
    """Whether `size_bytes` reads *text*."""
    return _SIZE.fullmatch(text) is not None


def size_bytes(size: str) -> int:
    """Return *size* (``"200Gi"``, as Kubernetes writes it) in bytes. Raise ValueError for another form."""
    if not is_size(size):
        raise ValueError(f"{size!r} is no size: write a whole number and Mi, Gi, Ti, M, G or T as in 200Gi")
    number = size.rstrip("MGTi")
    return int(number) * _UNIT_BYTES[size.removeprefix(number)]


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
    if not is_ratio(ratio):
        raise ValueError(f"{ratio!r} is no ratio: write prefill replicas to decode replicas as in 1:4")
    prefill, decode = ratio.split(":")
    return Fraction(int(prefill), int(decode))
