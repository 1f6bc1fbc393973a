"""A prompt's tokens as chains of block hashes, for comparison with the blocks that an engine publishes as cached.

A block's number stands for its tokens and everything before them, whatever algorithm and seed the engine hashes with:
the numbers are this process's own, made alike from a prompt's tokens and from an engine's events, and mean nothing
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence  # noqa: TC003 - part of the public signatures
from dataclasses import dataclass

ROOT = 0
"""What stands before the first block."""


def link(parent: int, tokens: Sequence[int], extra: str = "") -> int:
    """Return the number of the block of *tokens* behind the block *parent*.

    *extra* is whatever else parts caches, in `extra_of`'s form: a salt, a LoRA adapter, an image's hash.
    """
    return hash((parent, tuple(tokens), extra))


def extra_of(keys: Sequence[object] | None) -> str:
    """Return an engine's extra keys of one block as text; "" for none."""
    return repr(list(keys)) if keys else ""


def chain(
    tokens: Sequence[int], block_size: int, salt: str | None = None, adapter: str | None = None
) -> tuple[int, ...]:
    """Return the numbers of the full blocks of *tokens*, of *block_size* tokens each. Raise ValueError for no size."""
    return tuple(links(tokens, block_size, salt, adapter))


def links(
    tokens: Sequence[int], block_size: int, salt: str | None = None, adapter: str | None = None
) -> Iterator[int]:
    """Yield the numbers of `chain` one by one, so that a caller can pause between blocks. Raise as `chain`.

    Engines mix the request's `cache_salt` into the first block and the LoRA adapter's name into every one (vLLM's
    order: the adapter, then the salt).
    """
    if block_size < 1:
        raise ValueError(f"a block has at least one token, not {block_size}")
    always = [adapter] if adapter else []
    extra, further = extra_of([*always, salt] if salt else always), extra_of(always)
    parent = ROOT
    for start in range(0, len(tokens) - block_size + 1, block_size):
        parent = link(parent, tokens[start : start + block_size], extra)
        extra = further
        yield parent


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A prompt as an engine of *revision* reads it: its length in tokens, and its chain for each size of blocks.

    `block_tokens` is how many of its tokens one of the prompt's blocks of text stands for (at least 1): what is only
    believed of a backend is in blocks of text.
    """

    revision: str
    tokens: int
    chains: Mapping[int, tuple[int, ...]]
    block_tokens: int
