"""Prompt text for a trace's prefix blocks: equal ids give equal bytes, different ids differ from their first words."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from turnout_simulator.traces import BLOCK_TOKENS

if TYPE_CHECKING:
    from turnout_simulator.traces import TraceRequest

BYTES_PER_TOKEN: Final = 4
"""The simulated engine counts one token per four bytes of a prompt."""

BLOCK_BYTES: Final = BLOCK_TOKENS * BYTES_PER_TOKEN

_POOL_BYTES: Final = 1 << 16
_STRIDE: Final = 40_503
"""Odd, near the golden ratio of the pool's size: neighboring ids get distant text."""

_WORDS: Final = (
    *("signal", "points", "platform", "train", "station", "freight", "yard", "junction", "siding", "driver"),
    *("guard", "carriage", "engine", "coupling", "buffer", "rail", "sleeper", "ballast", "gauge", "switch"),
    *("lever", "lamp", "whistle", "ticket", "window", "bridge", "tunnel", "cutting", "viaduct", "depot"),
)


def prompt_text(request: TraceRequest) -> str:
    """Return the prompt of *request*: ASCII, four bytes per token of its `input_tokens`."""
    return "".join(map(_block_text, request.block_ids))[: request.input_tokens * BYTES_PER_TOKEN]


@lru_cache(maxsize=4096)
def _block_text(block_id: int) -> str:
    """Return the 2,048 characters of one block. Cached: 4,096 blocks are 8 MB."""
    pool = _pool()
    start = block_id * _STRIDE % _POOL_BYTES
    return f"[{block_id}] {pool[start : start + BLOCK_BYTES]}"[:BLOCK_BYTES]


@lru_cache(maxsize=1)
def _pool() -> str:
    """Return words in a fixed order, one block longer than the offsets into it reach."""
    rng = random.Random(0)  # noqa: S311 - filler text
    text = " ".join(rng.choices(_WORDS, k=(_POOL_BYTES + BLOCK_BYTES) // 5))
    return text[: _POOL_BYTES + BLOCK_BYTES]
