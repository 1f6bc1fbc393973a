"""The messages between routers, and their encoding: frames of a length and MessagePack.

A connection carries one router's messages to one other: from the client, which connected, to the server. It begins with
`Challenge` (from the server), `Hello` and `Welcome` or `Refused`; then frames follow, each a list of messages. An empty list
is a heartbeat, which the server returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import DecodeError, Meta, Struct
from msgspec.msgpack import Decoder, Encoder

from turnout_router.api.prefixes import BLOCK_BYTES, MAX_BLOCKS

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Iterable, Iterator

VERSION: Final = 1
"""Version of this module's protocol. During an upgrade, old routers exchange messages only with old ones, new with new."""
BLOCKS: Final = f"xxh3-64/{BLOCK_BYTES}"
"""How prompts are split and hashed: only equal kinds of blocks can be compared."""

MAX_HANDSHAKE_BYTES: Final = 512
MAX_FRAME_BYTES: Final = 256 * 1024
_FRAME_BLOCKS: Final = 2048
_FRAME_MESSAGES: Final = 256
"""Bounds after which a frame is closed: with one more prompt of `MAX_BLOCKS` it stays below `MAX_FRAME_BYTES`."""
_LENGTH_BYTES: Final = 4
_MAX_TOKENS: Final = 1 << 31
_MAX_SECONDS: Final = 1e6

_Number = Annotated[int, Meta(ge=0, le=1 << 62)]
_Tokens = Annotated[int, Meta(ge=0, le=_MAX_TOKENS)]
_Seconds = Annotated[float, Meta(ge=0, le=_MAX_SECONDS)]
_Name = Annotated[str, Meta(max_length=300)]
_Bytes = Annotated[bytes, Meta(max_length=32)]


class Sent(Struct, frozen=True, array_like=True, tag=1):
    """A request was sent to a worker. `seconds`: how long its prompt should take, in the deployment's own time."""

    number: _Number
    deployment: _Name
    backend: _Name
    prompt_tokens: _Tokens
    blocks: Annotated[tuple[int, ...], Meta(max_length=MAX_BLOCKS)]
    expected_output_tokens: _Tokens
    matched: _Number
    seconds: _Seconds
    adapter: _Name | None = None


class FirstToken(Struct, frozen=True, array_like=True, tag=2):
    """Its prompt has been computed."""

    number: _Number


class Expected(Struct, frozen=True, array_like=True, tag=3):
    """Its first token cannot be observed, and is expected after `wait` of the deployment's own seconds."""

    number: _Number
    wait: _Seconds


class Finished(Struct, frozen=True, array_like=True, tag=4):
    """It has ended. `cached_tokens` is what usage says of the worker's cache, None if it says nothing."""

    number: _Number
    cached_tokens: _Tokens | None
    prompt_tokens: _Tokens


Message = Sent | FirstToken | Expected | Finished


class Challenge(Struct, frozen=True, array_like=True, tag=1):
    """The server's identity, and the nonce that a proof is made for."""

    version: int
    identity: _Bytes
    nonce: _Bytes


class Hello(Struct, frozen=True, array_like=True, tag=2):
    """The client's identity, how it splits prompts, and the proof that it knows the secret: empty if it has none."""

    version: int
    identity: _Bytes
    nonce: _Bytes
    blocks: _Name
    proof: _Bytes


class Welcome(Struct, frozen=True, array_like=True, tag=3):
    """The client is accepted; the server's own proof."""

    proof: _Bytes


class Refused(Struct, frozen=True, array_like=True, tag=4):
    """The client is refused, and why."""

    reason: _Name


HandshakeMessage = Challenge | Hello | Welcome | Refused


class PeerError(Exception):
    """A connection to another router cannot begin or go on; `fault` is one word for the metrics."""

    def __init__(self, fault: str, text: str) -> None:
        super().__init__(text)
        self.fault = fault


_UNREADABLE: Final = (DecodeError, UnicodeDecodeError, RecursionError)
"""What the decoder raises: its own error, text that is not UTF-8, and unbounded nesting in what it skips."""
_ENCODER: Final = Encoder()
_MESSAGES: Final = Decoder(list[Message])
_HANDSHAKE: Final[Decoder[HandshakeMessage]] = Decoder(HandshakeMessage)


def framed(value: object) -> bytes:
    """Return *value*, a handshake or a list of messages, as a frame."""
    body = _ENCODER.encode(value)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


HEARTBEAT: Final = framed([])


def frames(messages: Iterable[Message]) -> Iterator[bytes]:
    """Yield *messages* in frames that a peer accepts."""
    batch: list[Message] = []
    blocks = 0
    for message in messages:
        batch.append(message)
        if isinstance(message, Sent):
            blocks += len(message.blocks)
        if blocks >= _FRAME_BLOCKS or len(batch) >= _FRAME_MESSAGES:
            yield framed(batch)
            batch, blocks = [], 0
    if batch:
        yield framed(batch)


def write(writer: StreamWriter, *written: bytes) -> None:
    """Write *written*. Raise ConnectionError where the connection has ended: its transport would raise RuntimeError."""
    if writer.transport.is_closing():
        raise ConnectionResetError("the connection has ended")
    writer.writelines(written)


async def read_handshake(reader: StreamReader) -> HandshakeMessage:
    """Return the next message of the handshake. Raise PeerError for anything else, EOFError or OSError if the connection ends."""
    body = await _read(reader, MAX_HANDSHAKE_BYTES)
    try:
        handshake: HandshakeMessage = _HANDSHAKE.decode(body)
    except _UNREADABLE as error:
        raise PeerError("garbage", f"the bytes are not a handshake: {error}") from error
    return handshake


async def read_messages(reader: StreamReader) -> list[Message]:
    """Return the messages of the next frame. Raise as `read_handshake`."""
    body = await _read(reader, MAX_FRAME_BYTES)
    try:
        return _MESSAGES.decode(body)
    except _UNREADABLE as error:
        raise PeerError("garbage", f"the bytes are not a router's messages: {error}") from error


async def _read(reader: StreamReader, most: int) -> bytes:
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if length > most:
        raise PeerError("garbage", f"a frame of {length} bytes is larger than {most} bytes")
    return await reader.readexactly(length)
