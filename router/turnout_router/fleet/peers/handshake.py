"""The handshake of two routers: their identities, whether both hash prompts alike, and whether both know the secret.

With a secret, each side proves that it knows it by an HMAC over the other's nonce and both identities. That keeps other
processes out and does nothing else: the messages that follow are neither encrypted nor signed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from turnout_router.fleet.peers.messages import (
    BLOCKS,
    VERSION,
    Challenge,
    Hello,
    PeerError,
    Refused,
    Welcome,
    framed,
    read_handshake,
    write,
)

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Callable

_CLIENT: Final = b"turnout teller"
_SERVER: Final = b"turnout subscriber"
_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """This process's identity among the routers, and the secret that they share, if any."""

    secret: bytes | None = field(default=None, repr=False)
    number: bytes = field(default_factory=lambda: secrets.token_bytes(_NONCE_BYTES))

    def proof(self, side: bytes, challenge: Challenge, hello_identity: bytes, hello_nonce: bytes) -> bytes:
        """Return the proof of the secret for one connection and *side* of it; empty without a secret."""
        if self.secret is None:
            return b""
        parts = (side, challenge.identity, challenge.nonce, hello_identity, hello_nonce)
        return hmac.digest(
            self.secret, b"".join(len(p).to_bytes(1, "big") + p for p in parts), hashlib.sha256
        )


async def open_handshake(
    identity: PeerIdentity, reader: StreamReader, writer: StreamWriter, may_begin: Callable[[bytes], None]
) -> None:
    """Run the handshake as the client. *may_begin* gets the server's identity, and may raise PeerError."""
    challenge = await read_handshake(reader)
    if not isinstance(challenge, Challenge):
        raise PeerError("garbage", "the server does not send a challenge first, as a router does")
    may_begin(challenge.identity)
    if challenge.version != VERSION:
        raise PeerError("version", f"it speaks version {challenge.version}, this router {VERSION}")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    proof = identity.proof(_CLIENT, challenge, identity.number, nonce)
    write(writer, framed(Hello(VERSION, identity.number, nonce, BLOCKS, proof)))
    answer = await read_handshake(reader)
    if isinstance(answer, Refused):
        raise PeerError("refused", f"it refuses: {answer.reason!r}")
    if not isinstance(answer, Welcome):
        raise PeerError("garbage", "the message does not answer a hello")
    if identity.secret is not None:
        proof = identity.proof(_SERVER, challenge, identity.number, nonce)
        if not hmac.compare_digest(proof, answer.proof):
            raise PeerError("secret", "it does not know the secret of --peers-secret-file")


async def accept_handshake(identity: PeerIdentity, reader: StreamReader, writer: StreamWriter) -> bytes:
    """Run the handshake as the server, and return the client's identity. Raise PeerError if the client is refused."""
    challenge = Challenge(VERSION, identity.number, secrets.token_bytes(_NONCE_BYTES))
    write(writer, framed(challenge))
    hello = await read_handshake(reader)
    if not isinstance(hello, Hello):
        raise PeerError("garbage", "the message is not a hello")
    expected = identity.proof(_CLIENT, challenge, hello.identity, hello.nonce)
    if hello.version != VERSION:
        fault, reason = "version", f"this router speaks version {VERSION}, not {hello.version}"
    elif identity.secret is not None and not hmac.compare_digest(expected, hello.proof):
        fault, reason = "secret", "wrong secret: give all routers the same --peers-secret-file"
    elif hello.blocks != BLOCKS:
        fault, reason = "blocks", f"prompts are cut as {BLOCKS} here, not as {hello.blocks!r}"
    elif hello.identity == identity.number:
        fault, reason = "self", "the peer is this router itself"
    else:
        write(writer, framed(Welcome(identity.proof(_SERVER, challenge, hello.identity, hello.nonce))))
        return hello.identity
    write(writer, framed(Refused(reason[:300])))
    raise PeerError(fault, reason)
