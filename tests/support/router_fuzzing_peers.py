"""What must hold whatever bytes come from another router: understood or refused, and books at zero when it is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from turnout.routing.ledger import Ledger
from turnout_router.peers.counts import PeerCounts
from turnout_router.peers.greeting import Identity
from turnout_router.peers.inbox import Inbox
from turnout_router.peers.messages import (
    BLOCKS,
    SIGN_OF_LIFE,
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
    read_greeting,
    read_messages,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_KEY: Final = "default/tiny"
_IDENTITY: Final = Identity(b"secret", b"i" * 16)
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
    SIGN_OF_LIFE * 3 + framed(_TALK[:2]),
    framed(Hello(VERSION, b"i" * 16, b"n" * 16, BLOCKS, b"")),
    framed(Challenge(VERSION, b"i" * 16, b"n" * 16)) + framed(Welcome(b"p" * 32)),
    framed(Refused("no")),
)


class _Books:
    def __init__(self) -> None:
        self.ledger = Ledger(256)
        self.ledger.set_backends([("w", 4096)])

    def book_of(self, deployment: str) -> tuple[Ledger, float] | None:
        return (self.ledger, 2.0) if deployment == _KEY else None


def check_peer(
    loop: asyncio.AbstractEventLoop,
    data: bytes,
    cut: Callable[[bytes, random.Random], list[bytes]],
    draw: random.Random,
) -> None:
    """Hold both sides of a conversation against *data*: nothing but PeerError, and nothing is left in flight."""
    books, counts = _Books(), PeerCounts()
    inbox = Inbox(books, counts, lambda: 1.0)
    loop.run_until_complete(_greet(cut(data, draw)))
    loop.run_until_complete(_talk(cut(data, draw), inbox))
    inbox.close()
    (state,) = books.ledger.states.values()
    assert (counts.requests, len(inbox)) == (0, 0)
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
            greeting = await read_greeting(reader)
            if isinstance(greeting, Challenge):
                assert len(_IDENTITY.proof(b"side", greeting, b"", b"")) == 32
    except (PeerError, EOFError):
        return


async def _talk(parts: list[bytes], inbox: Inbox) -> None:
    reader = _fed(parts)
    try:
        while True:
            inbox.take(await read_messages(reader))
    except (PeerError, EOFError):
        return
