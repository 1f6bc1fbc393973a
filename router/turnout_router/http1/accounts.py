"""Fair sharing of the router's memory and connections among its clients.

A client is identified by its key, else by its address. Bodies are shared out by a dynamic threshold
(Choudhury and Hahne, 1998): a client may hold a multiple of what is still free, so that none has all of it. Where one may
hold no more, bodies that are still arriving make way, the newest of the client that holds most: clients that send at the same
time get equal parts, and a new client gets one.
"""

from __future__ import annotations

import ipaddress
from itertools import islice
from typing import Any, Final, Generic, Protocol, TypeVar

_SHARE: Final = 3
"""A client may hold so many times what is free: alone three quarters of the room, one of ten a tenth."""
_SMALL_PART: Final = 8
"""One part in so many of the room is for small bodies alone."""
_IPV6_NETWORK_BITS: Final = 64
"""One host has as many IPv6 addresses of one such network as it likes."""


class Arriving(Protocol):
    """A large body that has not come to its end."""

    def make_way(self) -> None:
        """Be refused, and release at once what has come."""


class Account:
    """What one client holds: bytes of `small` and of `large` bodies. `users` counts the references to it.

    `arriving` are the large bodies that have not come to their end, oldest first.
    """

    __slots__ = ("arriving", "large", "name", "small", "users")

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.small = 0
        self.large = 0
        self.users = 0
        self.arriving: dict[Arriving, None] = {}


class Accounts:
    """Bodies of all requests that are arriving or under way: *bodies_bytes* at most, small and large ones together.

    Bodies up to *small_bytes* have a part of the room to themselves. To be used on the event loop only.
    """

    __slots__ = ("_accounts", "_arriving", "_large", "_large_most", "_small", "_small_most", "small_bytes")

    def __init__(self, bodies_bytes: int, small_bytes: int) -> None:
        self.small_bytes: Final = small_bytes
        self._small_most = bodies_bytes // _SMALL_PART if small_bytes else 0
        self._large_most = bodies_bytes - self._small_most
        self._small = 0
        self._large = 0
        self._accounts: dict[str, Account] = {}
        self._arriving: dict[Account, None] = {}

    @property
    def held_bytes(self) -> int:
        """What all bodies hold together."""
        return self._small + self._large

    def __len__(self) -> int:
        """Return how many clients are known."""
        return len(self._accounts)

    def join(self, name: str) -> Account:
        """Return the account of the client *name*, to be given back with `leave`."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name)
        account.users += 1
        return account

    def leave(self, account: Account) -> None:
        """Refer to *account* no longer."""
        account.users -= 1
        if not account.users:
            self._accounts.pop(account.name, None)

    def could_hold(self, account: Account, size: int) -> bool:
        """Return whether *account* could hold *size* more bytes in a large body now, if need be in place of others."""
        return self._has_room(account, size) or self._largest_above(account.large + size) is not None

    def begin(self, account: Account, body: Arriving) -> None:
        """Have the large *body* make way where others need room more, until `end`."""
        account.arriving[body] = None
        self._arriving[account] = None

    def end(self, account: Account, body: Arriving) -> None:
        """Let *body* be: it has come to its end, or is not wanted any more."""
        account.arriving.pop(body, None)
        if not account.arriving:
            self._arriving.pop(account, None)

    def take(self, account: Account, size: int, *, large: bool) -> bool:
        """Count *size* more bytes for *account* if it may hold them, and say so."""
        if large:
            while not self._has_room(account, size):
                other = self._largest_above(account.large + size)
                if other is None:
                    return False
                newest = next(reversed(other.arriving))
                self.end(other, newest)
                newest.make_way()
            account.large += size
            self._large += size
            return True
        if account.small + size > _SHARE * (self._small_most - self._small - size):
            return False
        account.small += size
        self._small += size
        return True

    def release(self, account: Account, size: int, *, large: bool) -> None:
        """Count *size* bytes of *account* no longer."""
        if large:
            account.large -= size
            self._large -= size
        else:
            account.small -= size
            self._small -= size

    def _has_room(self, account: Account, size: int) -> bool:
        return account.large + size <= _SHARE * (self._large_most - self._large - size)

    def _largest_above(self, size: int) -> Account | None:
        """Return the client that holds most of those whose bodies could make way, None if none holds more than *size*."""
        found = None
        for account in self._arriving:
            if account.large > size:
                found, size = account, account.large
        return found


_Member = TypeVar("_Member")


class Crowd(Generic[_Member]):
    """Members by the client that they belong to. Finds those of the client that has most, oldest first."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[_Member, None]] = {}
        self._by_size: dict[int, dict[str, None]] = {}
        self._largest = 0
        self._total = 0

    def __len__(self) -> int:
        """Return the number of members."""
        return self._total

    def add(self, name: str, member: _Member) -> None:
        """Take *member* in for the client *name*."""
        group = self._groups.setdefault(name, {})
        self._resize(name, len(group), len(group) + 1)
        group[member] = None
        self._total += 1

    def remove(self, name: str, member: _Member) -> None:
        """Let *member* go, if it is there."""
        group = self._groups.get(name)
        if group is None or member not in group:
            return
        del group[member]
        self._total -= 1
        self._resize(name, len(group) + 1, len(group))
        if not group:
            del self._groups[name]

    def size(self, name: str) -> int:
        """Return how many the client *name* has."""
        return len(self._groups.get(name, ()))

    def of_largest(self, most: int) -> tuple[str, list[_Member]]:
        """Return the client that has most members, and the oldest *most* of them."""
        names = self._by_size.get(self._largest)
        if not names:
            return "", []
        name = next(iter(names))
        return name, self.of(name, most)

    def of(self, name: str, most: int) -> list[_Member]:
        """Return the oldest *most* members of the client *name*."""
        return list(islice(self._groups.get(name, ()), most))

    def _resize(self, name: str, before: int, after: int) -> None:
        if before:
            same = self._by_size[before]
            del same[name]
            if not same:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, {})[name] = None
        if after > self._largest or (self._largest == before and before not in self._by_size):
            self._largest = after  # sizes change by one: below the largest that is gone is the next one


def client_at(peername: Any) -> str:
    """Return how the client at *peername*, as a transport names it, is called: its address, of IPv6 the network."""
    host = str(peername[0]) if isinstance(peername, tuple) and peername else ""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), _IPV6_NETWORK_BITS), strict=False))
