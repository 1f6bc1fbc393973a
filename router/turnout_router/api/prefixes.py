"""A prompt as a chain of block hashes: equal ones stand for equal text from the beginning on.

Blocks are of bytes, not of tokens: no tokenizer is needed, and whether two prompts begin alike is the same question.
Each block's hash takes the one before it as its seed (xxh3, 64 bit), so that a hash stands for its whole prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BLOCK_TOKENS: Final = 512
"""What is shared below this is computed in less time (9 ms by an 8B model on an H100) than a choice could win by it; and each
block of a long prompt costs the router some 1.5 us."""
BLOCK_BYTES: Final = 4 * BLOCK_TOKENS
"""Bytes of a block, at four bytes of text per token."""

MAX_BLOCKS: Final = 2048
"""Blocks that are hashed of one prompt (a million tokens): what follows makes no difference to where it goes."""

_BEFORE: Final = ("tools", "cache_salt")
"""What stands before the prompt, or parts caches: chat templates write the tools' definitions first."""


def prompt_blocks(body: Mapping[str, Any], prompt: Sequence[bytes]) -> tuple[int, ...]:
    """Return the hashes of the full blocks of *prompt*, the JSON of its fields; () for a shorter one.

    *body* is the request, of which more stands before the prompt.
    """
    seed = 0
    for name in _BEFORE:
        value = body.get(name)
        if value:
            seed = xxh3_64_intdigest(orjson.dumps(value), seed)
    data = prompt[0] if len(prompt) == 1 else b"".join(prompt)
    hashes = []
    end = min(len(data), MAX_BLOCKS * BLOCK_BYTES)
    at = BLOCK_BYTES
    while at <= end:
        seed = xxh3_64_intdigest(data[at - BLOCK_BYTES : at], seed)
        hashes.append(seed)
        at += BLOCK_BYTES
    return tuple(hashes)
