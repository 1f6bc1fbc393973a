"""What must hold whatever bytes come from another router: understood or refused, and trackers at zero when it is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

import msgspec

from turnout.routing.load_tracker import LoadTracker
from turnout_router.fleet.peers.counts import PeerCounts
from turnout_router.fleet.peers.handshake import PeerIdentity, accept_handshake, open_handshake
from turnout_router.fleet.peers.messages import (
    BLOCKS,
    HEARTBEAT,
    VERSION,
    Challenge,
    Expected,
    Finished,
    FirstToken,
    Hello,
    PeerError,
    Refused,
    Sent,
    Welcome,
    framed,
    frames,
    read_handshake,
    read_messages,
)
from turnout_router.fleet.peers.receiver import PeerReceiver

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator, Sequence

_LENGTH_BYTES: Final = 4
_DEEPEST: Final = 6
_KEY: Final = "default/tiny"
_IDENTITY: Final = PeerIdentity(b"secret", b"i" * 16)
_TALK: Final = (
    Sent(1, _KEY, "w", 700, (1, 2), 256, 1, 0.1),
    Sent(2, _KEY, "w", 300, (1,), 16, 0, 0.2),
    FirstToken(1),
    Expected(2, 0.5),
    Finished(1, 256, 700),
    Sent(3, "default/none", "w", 1, (), 1, 0, 0.0),
    Finished(2, None, 0),
)
PEERS_CORPUS: Final = (
    b"".join(frames(_TALK)),
    b"".join(framed([message]) for message in _TALK),
    HEARTBEAT * 3 + framed(_TALK[:2]),
    framed(Hello(VERSION, b"i" * 16, b"n" * 16, BLOCKS, b"")),
    framed(Challenge(VERSION, b"i" * 16, b"n" * 16)) + framed(Welcome(b"p" * 32)),
    framed(Refused("no")),
)


_EDGES: Final = (
    *(None, True, -1, 0, 1, 1 << 31, (1 << 31) + 1, 1 << 62, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1),
    *(0.5, -0.5, 1e6, 1e7, float("inf"), float("nan"), "", "x" * 301, "default/tiny", "w", b"", b"x" * 33),
    *([], [[]], {}, {"a": 1}, list(range(3000)), msgspec.msgpack.Ext(1, b"x")),
)


def mutate_frames(data: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
    """Return *data* with one to four values of its frames changed, frames moved or lengths that lie."""
    parts = list(_frames_of(data))
    for _ in range(draw.randint(1, 4)):
        if not parts:
            break
        at = draw.randrange(len(parts))
        match draw.randrange(7):
            case 0:
                parts.insert(at, draw.choice(list(_frames_of(draw.choice(corpus))) or [b""]))
            case 1:
                parts.insert(draw.randrange(len(parts)), parts.pop(at))
            case 2:
                parts[at] = parts[at] * draw.choice((0, 2, 3))
            case _:
                try:
                    value = msgspec.msgpack.decode(parts[at])
                    parts[at] = msgspec.msgpack.encode(_changed(value, draw, 0))
                except (ValueError, OverflowError, RecursionError):  # DecodeError is a ValueError
                    parts[at] = parts[at][: draw.randrange(len(parts[at]) + 1)]
    lie = draw.random() < 0.1
    return b"".join(
        (max(0, len(part) + (draw.randint(-3, 3) if lie else 0))).to_bytes(4, "big") + part for part in parts
    )[:200_000]


def _frames_of(data: bytes) -> Iterator[bytes]:
    while len(data) >= _LENGTH_BYTES:
        length = int.from_bytes(data[:_LENGTH_BYTES], "big")
        yield data[_LENGTH_BYTES : _LENGTH_BYTES + length]
        data = data[_LENGTH_BYTES + length :]


def _changed(value: object, draw: random.Random, depth: int) -> object:
    if isinstance(value, list) and value and depth < _DEEPEST and draw.random() < 0.8:
        at = draw.randrange(len(value))
        kind = draw.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return [*value[:at], draw.choice(_EDGES), *value[at:]]
        return [*value[:at], _changed(value[at], draw, depth + 1), *value[at + 1 :]]
    if draw.random() < 0.1:
        deep: object = value
        for _ in range(draw.choice((1, 10, 200, 900))):
            deep = [deep]
        return deep
    return draw.choice(_EDGES)


class _Trackers:
    def __init__(self) -> None:
        self.tracker = LoadTracker(256)
        self.tracker.set_backends([("w", 4096)])

    def load_tracker_of(self, deployment: str) -> tuple[LoadTracker, float] | None:
        return (self.tracker, 2.0) if deployment == _KEY else None


def check_peer(
    loop: asyncio.AbstractEventLoop,
    data: bytes,
    cut: Callable[[bytes, random.Random], list[bytes]],
    draw: random.Random,
) -> None:
    """Hold both sides of a conversation against *data*: nothing but PeerError, and nothing is left in flight."""
    trackers, counts = _Trackers(), PeerCounts()
    receiver = PeerReceiver(trackers, counts, lambda: 1.0)
    loop.run_until_complete(_greet(cut(data, draw)))
    for identity in (_IDENTITY, PeerIdentity(None, b"j" * 16)):
        loop.run_until_complete(_begin(identity, cut(data, draw)))
    loop.run_until_complete(_talk(cut(data, draw), receiver))
    receiver.close()
    (state,) = trackers.tracker.states.values()
    assert (counts.requests, len(receiver)) == (0, 0)
    assert (state.in_flight, state.queued_tokens, state.context_tokens, state.cache.held) == (0, 0, 0, 0)
    assert state.queued_seconds == 0.0


def _fed(parts: list[bytes]) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    for part in parts:
        reader.feed_data(part)
    reader.feed_eof()
    return reader


async def _greet(parts: list[bytes]) -> None:
    reader = _fed(parts)
    try:
        while True:
            handshake = await read_handshake(reader)
            if isinstance(handshake, Challenge):
                assert len(_IDENTITY.proof(b"side", handshake, b"", b"")) == 32
    except (PeerError, EOFError):
        return


class _Written:
    """Where a side of a handshake writes to: a writer, and its own transport, which never closes."""

    def __init__(self) -> None:
        self.data = b""
        self.transport = self

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.data += data

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.data += b"".join(pieces)


async def _begin(identity: PeerIdentity, parts: list[bytes]) -> None:
    """Begin as either side. Who cannot know the secret, or the nonce of this moment, is never let in."""
    for side in (_welcomed, _greeted):
        try:
            await side(identity, _fed(parts), cast("asyncio.StreamWriter", _Written()))
        except (PeerError, EOFError):
            continue
        assert identity.secret is None, "a peer was accepted without the secret"


async def _welcomed(
    identity: PeerIdentity, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    assert len(await accept_handshake(identity, reader, writer)) <= 32


async def _greeted(
    identity: PeerIdentity, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await open_handshake(identity, reader, writer, lambda _: None)


async def _talk(parts: list[bytes], receiver: PeerReceiver) -> None:
    reader = _fed(parts)
    try:
        while True:
            receiver.take(await read_messages(reader))
    except (PeerError, EOFError):
        return
