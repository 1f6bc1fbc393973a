"""Quantities of Kubernetes (``500m``, ``2Gi``) as exact numbers."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Final

_SUFFIXES: Final = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    **{s: Fraction(1000**i) for i, s in enumerate("kMGTPE", start=1)},
    **{f"{s}i": Fraction(1024**i) for i, s in enumerate("KMGTPE", start=1)},
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,2})|([numkMGTPE]|[KMGTPE]i)?)")


def quantity(text: str | float) -> Fraction:
    """Return the value of *text*. Raise ValueError where it is no quantity.

    Form: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is no quantity: write a number with a suffix, such as 500m or 2Gi")
    number, exponent, suffix = match.groups()
    scale = Fraction(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""]
    return Fraction(Decimal(number)) * scale


def in_units(amount: str | float, divisor: str | float) -> int:
    """Return *amount* in units of *divisor*, rounded up, as resourceFieldRef shows it.

    A divisor of 0, which is how an unset one is stored, counts as 1.
    """
    return ceil(quantity(amount) / (quantity(divisor) or Fraction(1)))
