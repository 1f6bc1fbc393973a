"""The affinity target of a session: the backend that every router computes for it without coordination.

Rendezvous hashing (Thaler and Ravishankar, 1998) over the first block of the prompt that, as far as this router knows, no
backend holds: after the system prompt that all share, the block in which conversations differ. Removing a backend moves only
the sessions whose target it was.
"""

from __future__ import annotations

from typing import Final

_MASK: Final = (1 << 64) - 1


def seed_of(name: str) -> int:
    """Return a number that stands for *name*, the same in every process (FNV-1a, 64 bit)."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & _MASK
    return value


def affinity_rank(block: int, seed: int) -> int:
    """Return the rank of the backend with *seed* for *block*; the highest is its affinity target.

    One multiplication (Fibonacci hashing): it runs for every backend of every request.
    """
    return (block ^ seed) * 0x9E3779B97F4A7C15 & _MASK
