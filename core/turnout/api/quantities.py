"""Durations, ratios and sizes as fields of the resources."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from turnout.api.rules import Rule
from turnout.quantities import (
    DURATION_PATTERN,
    RATIO_PATTERN,
    SIZE_PATTERN,
    is_duration,
    is_ratio,
    is_size,
)

Duration = Annotated[
    str,
    Field(
        max_length=32,
        description="A duration: hours, minutes, seconds and milliseconds in this order, such as 1h30m, 90s or 500ms.",
    ),
    Rule(
        f"self != '' && self.matches('{DURATION_PATTERN}')",
        "not a duration: write hours, minutes, seconds and milliseconds in this order, such as 1h30m, 90s or 500ms",
        is_duration,
    ),
]
Ratio = Annotated[
    str,
    Field(max_length=16, description="Prefill replicas to decode replicas, such as 1:4. Both at least 1."),
    Rule(
        f"self.matches('{RATIO_PATTERN}')",
        "not a ratio: write prefill replicas to decode replicas, each from 1 to 999, such as 1:4",
        is_ratio,
    ),
]
Size = Annotated[
    str,
    Field(max_length=16, description="A size in bytes, such as 200Gi."),
    Rule(
        f"self.matches('{SIZE_PATTERN}')",
        "not a size: write a whole number and Mi, Gi, Ti, M, G or T, such as 200Gi",
        is_size,
    ),
]
