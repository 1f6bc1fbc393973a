"""The loopback network and the ports that one cluster has to itself."""

from __future__ import annotations

import errno
import socket
import zlib
from typing import TYPE_CHECKING, Final

from turnout_devcluster.config import Addresses, Ports
from turnout_devcluster.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST: Final = 64
_LAST: Final = 255
_API_PORT: Final = 6443
_ETCD_PORT: Final = 2379
_ETCD_PEER_PORT: Final = 2380


def claim_network(name: str) -> tuple[Addresses, socket.socket]:
    """Claim a /16 of loopback that no other dev cluster of this machine has.

    The claim is the abstract Unix socket that is returned: its name is unique within a network namespace, as
    the addresses are, whatever state folder or user the other cluster has; and it is free again when the last
    process that holds the socket has ended, however it ended. The cluster's *name* decides where the search
    begins, so that a cluster usually gets its old addresses back.

    :raises StartError: when all networks are taken.
    """
    for network in _candidates(name):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0turnout-dev-network-{network}")
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return Addresses(network), claim
    raise StartError(
        f"All {_LAST - _FIRST + 1} loopback networks are taken by dev clusters. "
        "Take some down: 'turnout dev status' lists them, 'turnout dev down --all' ends all of them."
    )


def _candidates(name: str) -> Iterator[int]:
    count = _LAST - _FIRST + 1
    start = zlib.crc32(name.encode()) % count
    return (_FIRST + (start + step) % count for step in range(count))


def choose_ports(addresses: Addresses) -> Ports:
    """Choose the control plane's ports: the usual ones, or free ones where another program listens on all addresses."""
    host = addresses.control_plane
    api = _free_port(host, _API_PORT, frozenset())
    etcd = _free_port(host, _ETCD_PORT, frozenset({api}))
    peer = _free_port(host, _ETCD_PEER_PORT, frozenset({api, etcd}))
    return Ports(api=api, etcd=etcd, etcd_peer=peer)


def _free_port(host: str, preferred: int, taken: frozenset[int]) -> int:
    for port in (preferred, 0, 0, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            chosen: int = probe.getsockname()[1]
            if chosen not in taken:
                return chosen
    raise StartError(f"No free TCP port on {host}.")
