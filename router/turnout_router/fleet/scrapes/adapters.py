"""Which LoRA adapters a worker has loaded, as far as a router can know.

An engine keeps the adapters used last, as many as it has room for, and its metrics name only those of requests that
are under way. So what is seen there, and what is sent there, is remembered in the order of use.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest


def blocks_under(adapter: str, blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the hashes of a prompt's *blocks* under *adapter*: its KV cache is another one than the base model's."""
    other = xxh3_64_intdigest(adapter.encode())
    return tuple([block ^ other for block in blocks])


class LoadedAdapters:
    """One worker's, the one used last at the end; never more than it has room for."""

    __slots__ = ("_most", "_names")

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._most = 1

    def used(self, name: str) -> frozenset[str]:
        """Note that a request for *name* is sent there. Return what is loaded."""
        self._names.pop(name, None)
        self._names[name] = None
        return self._shrunk()

    def seen(self, names: frozenset[str], most: int) -> frozenset[str]:
        """Note that requests for *names* are under way where *most* adapters find room. Return what is loaded."""
        self._most = most
        for name in sorted(names):
            self._names.pop(name, None)
            self._names[name] = None
        return self._shrunk()

    def _shrunk(self) -> frozenset[str]:
        while len(self._names) > self._most:
            del self._names[next(iter(self._names))]
        return frozenset(self._names)
