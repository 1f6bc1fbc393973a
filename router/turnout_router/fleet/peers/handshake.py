"""How two routers begin to talk: who they are, that they cut prompts alike, and that both know the secret.

Where a secret is given, each side proves it with an HMAC over the other's nonce and both identities. That keeps strangers out
and is all that it does: what follows is neither encrypted nor signed.
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
    read_greeting,
    write,
)

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Callable

_TELLER: Final = b"turnout teller"
_HEARER: Final = b"turnout hearer"
_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is among the routers, and the secret that they share, if any."""

    secret: bytes | None = field(default=None, repr=False)
    number: bytes = field(default_factory=lambda: secrets.token_bytes(_NONCE_BYTES))

    def proof(self, side: bytes, challenge: Challenge, hello_identity: bytes, hello_nonce: bytes) -> bytes:
        """Return what proves the secret for one conversation and *side* of it; nothing without a secret."""
        if self.secret is None:
            return b""
        said = (side, challenge.identity, challenge.nonce, hello_identity, hello_nonce)
        return hmac.digest(self.secret, b"".join(len(s).to_bytes(1, "big") + s for s in said), hashlib.sha256)


async def greet(
    identity: Identity, reader: StreamReader, writer: StreamWriter, may_begin: Callable[[bytes], None]
) -> None:
    """Begin as the one who connected and will tell. *may_begin* is asked about the listener, and may raise PeerError."""
    challenge = await read_greeting(reader)
    if not isinstance(challenge, Challenge):
        raise PeerError("garbage", "who listens there does not speak first, as a router would")
    may_begin(challenge.identity)
    if challenge.version != VERSION:
        raise PeerError("version", f"it speaks version {challenge.version}, this router {VERSION}")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    proof = identity.proof(_TELLER, challenge, identity.number, nonce)
    write(writer, framed(Hello(VERSION, identity.number, nonce, BLOCKS, proof)))
    answer = await read_greeting(reader)
    if isinstance(answer, Refused):
        raise PeerError("refused", f"it refuses: {answer.reason!r}")
    if not isinstance(answer, Welcome):
        raise PeerError("garbage", "that is no answer to a hello")
    if identity.secret is not None:
        proof = identity.proof(_HEARER, challenge, identity.number, nonce)
        if not hmac.compare_digest(proof, answer.proof):
            raise PeerError("secret", "it does not know the secret of --peers-secret-file")


async def welcome(identity: Identity, reader: StreamReader, writer: StreamWriter) -> bytes:
    """Begin as the one who listens, and return the other's identity. Raise PeerError where it may not tell."""
    challenge = Challenge(VERSION, identity.number, secrets.token_bytes(_NONCE_BYTES))
    write(writer, framed(challenge))
    hello = await read_greeting(reader)
    if not isinstance(hello, Hello):
        raise PeerError("garbage", "that is no hello")
    expected = identity.proof(_TELLER, challenge, hello.identity, hello.nonce)
    if hello.version != VERSION:
        fault, reason = "version", f"this router speaks version {VERSION}, not {hello.version}"
    elif identity.secret is not None and not hmac.compare_digest(expected, hello.proof):
        fault, reason = "secret", "wrong secret: give all routers the same --peers-secret-file"
    elif hello.blocks != BLOCKS:
        fault, reason = "blocks", f"prompts are cut as {BLOCKS} here, not as {hello.blocks!r}"
    elif hello.identity == identity.number:
        fault, reason = "self", "that is this router itself"
    else:
        write(writer, framed(Welcome(identity.proof(_HEARER, challenge, hello.identity, hello.nonce))))
        return hello.identity
    write(writer, framed(Refused(reason[:300])))
    raise PeerError(fault, reason)
