"""TLS on the public port: a certificate from files, read again when they change, as renewals do."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Final

from turnout_router.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_LOG = logging.getLogger(__name__)
_POLL_SECONDS: Final = 2.0


class Certificate:
    """A certificate chain and its key. New connections get what was last read well."""

    def __init__(self, chain: Path, key: Path) -> None:
        """Read both. Raise ConfigError where they cannot be used."""
        self._chain = chain
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._seen = self._stamp()
        self._load(self.context)

    async def follow(self) -> None:
        """Read both again whenever they change, until cancelled. Unusable files are left out, which is logged."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            stamp = await asyncio.to_thread(self._stamp)
            if stamp == self._seen:
                continue
            try:
                await asyncio.to_thread(self._reload)
            except ConfigError as error:
                _LOG.warning("going on with the last certificate: %s", error)
            else:
                _LOG.info("took over the certificate in %s", self._chain)
            self._seen = stamp  # only now: where anything else was raised, this is run again

    def _reload(self) -> None:
        # First into a context that is not in use: a chain without its key must not get into the one in use.
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._chain, self._key, password=_no_password)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the certificate {self._chain} with the key {self._key} cannot be used: {error}"
            ) from error

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in (self._chain, self._key))


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one that is not")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
