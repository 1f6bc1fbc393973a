"""The port where other routers tell of their requests."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from turnout_router.fleet.peers.greeting import welcome
from turnout_router.fleet.peers.inbox import Inbox
from turnout_router.fleet.peers.link import GREETING_SECONDS, SILENCE_SECONDS
from turnout_router.fleet.peers.messages import MAX_FRAME_BYTES, SIGN_OF_LIFE, PeerError, read_messages, write
from turnout_router.http1.accounts import Crowd, client_at
from turnout_router.tasks import PEER_HEARING

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.fleet.peers.counts import PeerCounts
    from turnout_router.fleet.peers.greeting import Identity
    from turnout_router.fleet.peers.inbox import LoadTrackers
    from turnout_runtime.supervision import Supervisor

_LOG = logging.getLogger("turnout_router.fleet.peers")

MAX_CONNECTIONS: Final = 128
"""Connections at a time, those that have not proved anything included. Of these the oldest one of the address that has
most makes way for a new one."""
MAX_PER_ADDRESS: Final = 32
"""Likewise of one address: routers that share one are few."""
_CLOSING_TURNS: Final = 4
"""Turns of the event loop in which connections that were just accepted or closed come to their end."""
COMPLAIN_SECONDS: Final = 60.0
"""A fault of the same kind is logged no more often: whoever is refused tries again."""


class Hearing:
    """Listens, and keeps one `Inbox` for each router that tells."""

    def __init__(
        self,
        identity: Identity,
        trackers: LoadTrackers,
        counts: PeerCounts,
        clock: Callable[[], float],
        supervisor: Supervisor,
    ) -> None:
        self._identity = identity
        self._trackers = trackers
        self._counts = counts
        self._clock = clock
        self._supervisor = supervisor
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._all: Crowd[asyncio.StreamWriter] = Crowd()
        self._unproved: Crowd[asyncio.StreamWriter] = Crowd()
        self._heard: dict[bytes, _Heard] = {}
        self._stopped = False
        self._complain_at: dict[str, float] = {}

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port. Raise OSError where it is taken."""
        self._server = await asyncio.start_server(
            self._accept, host, port, limit=MAX_FRAME_BYTES, backlog=MAX_CONNECTIONS
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, and drop what others have open."""
        self._stopped = True
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(_CLOSING_TURNS):
            await asyncio.sleep(
                0
            )  # a transport closes in a later turn, and one that was just accepted is yet to be made

    def describe(self) -> list[dict[str, object]]:
        """Return who tells, for people."""
        return [
            {"identity": identity.hex(), "address": heard.address, "requests": len(heard.inbox)}
            for identity, heard in self._heard.items()
        ]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = client_at(writer.get_extra_info("peername"))
        if self._stopped or not self._make_room(address):
            self._counts.end("too_many")
            writer.transport.abort()
            return
        self._all.add(address, writer)
        self._unproved.add(address, writer)
        task = self._supervisor.once(PEER_HEARING, self._serve(reader, writer), detail=address)
        self._tasks.add(task)

        def forget(task: asyncio.Task[None]) -> None:  # also one that was cancelled before it began
            self._tasks.discard(task)
            self._all.remove(address, writer)
            self._unproved.remove(address, writer)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()  # who does not read would keep it open for ever
            else:
                writer.close()

        task.add_done_callback(forget)

    def _make_room(self, address: str) -> bool:
        """Drop who has proved nothing, if need be, and say whether there is room for one more from *address*."""
        if self._all.size(address) >= MAX_PER_ADDRESS:
            oldest = self._unproved.of(address, 1)
        elif len(self._all) >= MAX_CONNECTIONS:
            address, oldest = self._unproved.of_largest(1)
        else:
            return True
        for writer in oldest:
            self._counts.end("too_many")
            self._all.remove(address, writer)
            self._unproved.remove(address, writer)
            writer.transport.abort()
        return bool(oldest)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except PeerError as error:
            self._counts.end(error.fault)
            self._complain(error, writer)
        except TimeoutError:
            self._counts.end("silent")
        except (OSError, EOFError):
            self._counts.end("closed")

    def _complain(self, error: PeerError, writer: asyncio.StreamWriter) -> None:
        now = self._clock()
        if now >= self._complain_at.get(error.fault, now):
            self._complain_at[error.fault] = now + COMPLAIN_SECONDS
            _LOG.warning("%s is not heard: %s", _address(writer), error)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(GREETING_SECONDS):
            identity = await welcome(self._identity, reader, writer)
        self._unproved.remove(client_at(writer.get_extra_info("peername")), writer)
        before = self._heard.get(identity)
        if before is not None:
            before.replace()
        inbox = Inbox(self._trackers, self._counts, self._clock)
        heard = self._heard[identity] = _Heard(inbox, writer)
        self._counts.hearing += 1
        _LOG.info("%s tells of its requests", heard.address)
        try:
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    messages = await read_messages(reader)
                if heard.replaced:
                    return
                if messages:
                    inbox.take(messages)
                    await asyncio.sleep(0)  # what is there already is read without a pause: let others run
                else:
                    write(writer, SIGN_OF_LIFE)
                    async with asyncio.timeout(SILENCE_SECONDS):
                        await writer.drain()
        finally:
            self._counts.hearing -= 1
            if self._heard.get(identity) is heard:
                del self._heard[identity]
            dropped = inbox.close()
            _LOG.info("%s tells no more; dropped %d requests of it", heard.address, dropped)


class _Heard:
    """One conversation. A router that connects again before its old connection is known to be dead replaces it."""

    def __init__(self, inbox: Inbox, writer: asyncio.StreamWriter) -> None:
        self.inbox = inbox
        self.address = _address(writer)
        self.replaced = False
        self._writer = writer

    def replace(self) -> None:
        self.replaced = True
        self.inbox.close()
        self._writer.transport.abort()


def _address(writer: asyncio.StreamWriter) -> str:
    host, port, *_ = writer.get_extra_info("peername") or ("?", 0)
    return f"{host}:{port}"
