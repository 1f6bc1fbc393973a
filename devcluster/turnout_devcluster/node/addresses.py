"""Addresses of pods: each its own, none used again until all others have been."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from turnout_devcluster.node.attempts import write_atomically
from turnout_devcluster.node.errors import NodeError
from turnout_devcluster.node.nodes import FIRST_POD_BLOCK

if TYPE_CHECKING:
    from pathlib import Path


class AddressPool:
    """The pods' part of a cluster's subnet: its lower half without the first 256, which are the nodes'."""

    def __init__(self, network: ipaddress.IPv4Network, cursor_file: Path) -> None:
        lower = next(iter(network.subnets()))
        self._first = int(lower.network_address) + FIRST_POD_BLOCK
        self._count = lower.num_addresses - FIRST_POD_BLOCK
        self._cursor_file = cursor_file
        self._used: set[int] = set()
        try:
            self._cursor = int(cursor_file.read_text(encoding="ascii")) % self._count
        except (OSError, ValueError):
            self._cursor = 0

    def keep(self, address: str) -> None:
        """Mark *address* as in use: a pod of an earlier agent has it."""
        self._used.add(int(ipaddress.IPv4Address(address)) - self._first)

    def take(self) -> str:
        """Return an address that nothing uses. Raise NodeError where there is none left."""
        for step in range(self._count):
            offset = (self._cursor + step) % self._count
            if offset not in self._used and offset % 256 not in {0, 255}:
                self._used.add(offset)
                self._cursor = (offset + 1) % self._count
                write_atomically(self._cursor_file, str(self._cursor).encode())
                return str(ipaddress.IPv4Address(self._first + offset))
        raise NodeError("all addresses of this cluster are in use: delete pods")

    def free(self, address: str) -> None:
        """Give *address* back."""
        self._used.discard(int(ipaddress.IPv4Address(address)) - self._first)
