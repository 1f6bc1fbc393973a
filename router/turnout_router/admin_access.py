"""Access to the admin port's pages on requests and workers. Health and metrics are open to every peer."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from turnout_router.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LOG = logging.getLogger("turnout_router.admin")

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""The paths that probes and Prometheus read. Every other path is guarded, also those that do not exist."""
MIN_TOKEN_BYTES: Final = 16
MAX_TOKEN_BYTES: Final = 4096

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Denied:
    """The refusal of a request: *status* 401 or 403, and a text that says what to do."""

    status: int
    text: str


class AdminAccess:
    """Decides by a token where there is one, else by where the question comes from: the router's own machine or pod."""

    def __init__(self, token_file: Path | None) -> None:
        """Read the token. Raise ConfigError where the file holds none."""
        self._file = token_file
        self._seen = None if token_file is None else _stamp(token_file)
        self._digest = None if token_file is None else _digest_of(token_file)

    def denied(
        self, path: str, peer: str | None, authorization: Sequence[str], host: str | None
    ) -> Denied | None:
        """Return why *path* is refused, None where it may be read.

        *peer* is the client's address, *authorization* the values of that field, *host* the value of the field
        ``host``. A name there that is not this machine's own is refused without a token: it is how a web page in
        a browser on this machine would send the request (DNS rebinding).
        """
        if path in OPEN_PATHS:
            return None
        if self._file is not None:
            self._take_over(self._file)
            if len(authorization) == 1 and self._is_token(authorization[0]):
                return None
            wrong = "is wrong" if authorization else "is missing"
            return Denied(
                401,
                f"the admin token {wrong}: send `Authorization: Bearer TOKEN` with the token of the router's "
                "--admin-token-file; `turnout explain` does so by itself\n",
            )
        if peer is not None and _is_own(peer) and _is_own_name(host):
            return None
        return Denied(
            403,
            "only for the router's own machine: use `kubectl port-forward`, as `turnout explain` does, or "
            "give the router --admin-token-file and send its token\n",
        )

    def _is_token(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._digest or b"")

    def _take_over(self, file: Path) -> None:
        """Read the token again where the file has changed, as a Secret's does; what is no token is left out."""
        stamp = _stamp(file)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._digest = _digest_of(file)
        except ConfigError as error:
            _LOG.warning("going on with the last admin token: %s", error)
        else:
            _LOG.info("took over the admin token in %s", file)


def _is_own(address: str) -> bool:
    """Return whether *address* is a loopback address, an IPv4 one within IPv6 included."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _is_own_name(host: str | None) -> bool:
    """Return whether *host*, of a request, is an address or ``localhost``."""
    if host is None:
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name != "localhost":
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(f"the admin token {path} cannot be read: {error.strerror}") from error
    if not MIN_TOKEN_BYTES <= len(token) <= MAX_TOKEN_BYTES:
        raise ConfigError(f"the admin token {path} must have {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} bytes")
    return hashlib.sha256(token).digest()


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
