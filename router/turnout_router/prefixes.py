"""A prompt as a chain of block hashes: equal ones stand for equal text from the beginning on.

Blocks are of bytes, not of tokens: no tokenizer is needed, and whether two prompts begin alike is the same question.
Each block's hash takes the one before it as its seed (xxh3, 64 bit), so that a hash stands for its whole prefix.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import orjson
from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK_TOKENS: Final = 256
BLOCK_BYTES: Final = 4 * BLOCK_TOKENS
"""Bytes of a block, at four bytes of text per token."""

MAX_BLOCKS: Final = 4096
"""Blocks that are hashed of one prompt (a million tokens): what follows makes no difference to where it goes."""

_BEFORE: Final = ("tools", "cache_salt")
"""What stands before the prompt, or parts caches: chat templates write the tools' definitions first."""


def prompt_blocks(body: Mapping[str, Any], fields: tuple[str, ...]) -> tuple[int, ...]:
    """Return the hashes of the full blocks of the prompt in *fields* of a request; () for a shorter one."""
    seed = 0
    for name in _BEFORE:
        value = body.get(name)
        if value:
            seed = xxh3_64_intdigest(orjson.dumps(value), seed)
    parts = [orjson.dumps(value) for name in fields if (value := body.get(name)) is not None]
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    ends = range(0, min(len(data), MAX_BLOCKS * BLOCK_BYTES) + 1, BLOCK_BYTES)
    hashes = []
    for begin, end in pairwise(ends):
        seed = xxh3_64_intdigest(data[begin:end], seed)
        hashes.append(seed)
    return tuple(hashes)
