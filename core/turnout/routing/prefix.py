"""Index of the prefixes that backends hold: one map from a block to a bit set of backends, so that one walk ranks them all.

A block stands for itself and everything before it in its prompt (a chain hash). A backend's match is the number of
a prompt's leading blocks that it holds without a gap.

A block is an opaque key of dictionaries, and typed as such, so that compiled code does not unbox it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


class PrefixIndex:
    """Block -> backends, these numbered from 0. It holds exactly what is added: its users bound it."""

    __slots__ = ("_owners",)

    def __init__(self) -> None:
        self._owners: dict[Hashable, int] = {}

    def __len__(self) -> int:
        """Return the number of blocks with a holder."""
        return len(self._owners)

    def add(self, block: Hashable, backend: int) -> None:
        """Note that *backend* holds *block*."""
        owners = self._owners
        owners[block] = owners.get(block, 0) | 1 << backend

    def remove(self, block: Hashable, backend: int) -> None:
        """Note that *backend* holds *block* no longer."""
        owners = self._owners
        left = owners.get(block, 0) & ~(1 << backend)
        if left:
            owners[block] = left
        else:
            owners.pop(block, None)

    def match(self, blocks: Sequence[Hashable], backends: int) -> list[int]:
        """Return how many leading *blocks* each of the first *backends* backends holds."""
        depths = [0] * backends
        owners = self._owners
        alive = (1 << backends) - 1
        depth = 0
        for block in blocks:
            holders = owners.get(block, 0) & alive
            if holders != alive:
                _note(depths, alive ^ holders, depth)
                alive = holders
                if not alive:
                    return depths
            depth += 1
        _note(depths, alive, depth)
        return depths


def _note(depths: list[int], lost: int, depth: int) -> None:
    if not depth:
        return
    while lost:
        lowest = lost & -lost
        depths[lowest.bit_length() - 1] = depth
        lost ^= lowest
