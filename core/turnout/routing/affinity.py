"""Where a session is at home: the backend that every router would name for it without asking any other.

Rendezvous hashing (Thaler and Ravishankar, 1998) over the first block of the prompt that this router knows no holder
of: after the system prompt that all share, the block that tells conversations apart. Removing a backend moves only
the sessions that were at home there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_MASK: Final = (1 << 64) - 1


def seed_of(name: str) -> int:
    """Return a number that stands for *name*, the same in every process (FNV-1a, 64 bit)."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & _MASK
    return value


def home_of(block: int, seeds: Iterable[tuple[int, int]]) -> int:
    """Return the number of the backend with the highest hash of *block*; *seeds* are (number, seed). Raise ValueError for none."""
    return max(seeds, key=lambda each: _mix(block ^ each[1]))[0]


def _mix(value: int) -> int:
    """Spread *value* over 64 bits (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
