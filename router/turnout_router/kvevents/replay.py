"""Replays of KV events: one worker's batches from a number on, and whose turn it is to be replayed.

A router that starts asks every worker for up to 10,000 batches. They are read two workers at a time and a few batches
at a time, so that requests in between wait for milliseconds.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import zmq

from turnout_router.kvevents.wire import END, FRAMES, MAX_MESSAGE_BYTES, NUMBER_BYTES, batch_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from turnout.routing.events import Batch

AT_ONCE: Final = 8
"""Batches read before others have their turn: a large one takes a millisecond."""
WORKERS_AT_ONCE: Final = 2
"""Workers that are replayed at a time."""
REPLAY_SECONDS: Final = 2.0
"""Between two batches of a replay; vLLM looks for requests every 0.1 s."""
WAITING_BATCHES: Final = 4_000
"""Batches that wait to be read. Beyond that they are lost, and replayed."""


class Asker(Protocol):
    """Is told of the replay that it asked for."""

    def replayed(self, number: int, batch: Batch) -> None:
        """Take one batch."""

    def replay_ended(self, *, answered: bool) -> None:
        """Take the end; not *answered*: nothing came at all."""

    def failed(self, error: Exception) -> None:
        """Begin anew: *error* was raised in a replay, which is closed."""


class Turns:
    """Lets few begin at a time; the others wait in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, at_once: int = WORKERS_AT_ONCE) -> None:
        self.loop = loop
        self._free = at_once
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, begin: Callable[[], None]) -> None:
        """Call *begin*, now or when its turn comes."""
        if self._free and not self._waiting:
            self._free -= 1
            begin()
        else:
            self._waiting.append(begin)

    def give(self) -> None:
        """Say that one who has begun is through. The next one begins in the loop's next round: it may be through at once."""
        self._free += 1
        if self._waiting:
            self.loop.call_soon(self._next)

    def _next(self) -> None:
        if self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft()()

    def withdraw(self, begin: Callable[[], None]) -> None:
        """Wait no longer, where *begin* still waits."""
        if begin in self._waiting:
            self._waiting.remove(begin)


class Replay:
    """One replay: asks *where* for everything from number *first* on when its turn has come, and tells *asker* of it."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        turns: Turns,
        where: str,
        first: int,
        asker: Asker,
    ) -> None:
        self._context = context
        self._loop = turns.loop
        self._turns = turns
        self._where = where
        self._first = first
        self._asker = asker
        self._answered = False
        self._begun = False
        self._closed = False
        self._socket: zmq.Socket[bytes] | None = None
        self._patience: asyncio.Handle | None = None
        self._on_turn = self._guarded(self._begin)
        self._on_readable = self._guarded(self._read)
        self._on_silence = self._guarded(self._end)
        turns.take(self._on_turn)

    def close(self) -> None:
        """Listen no longer."""
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as ending:  # each of these is done, whatever another one raises
            if self._begun:
                ending.callback(self._turns.give)
            else:
                ending.callback(self._turns.withdraw, self._on_turn)
            if self._patience is not None:
                ending.callback(self._patience.cancel)
            if self._socket is not None:
                ending.callback(self._socket.close, linger=0)
                ending.callback(self._unwatch, self._socket)

    def _unwatch(self, socket: zmq.Socket[bytes]) -> None:
        self._loop.remove_reader(int(socket.fd))

    def _guarded(self, step: Callable[[], None]) -> Callable[[], None]:
        """Return *step* as a callback of the event loop: where it raises, the replay is over and its asker begins anew."""

        def call() -> None:
            if self._closed:
                return
            try:
                step()
            except Exception as error:  # noqa: BLE001 - whatever it is, no other worker's events are harmed by it
                try:
                    self.close()
                finally:
                    self._asker.failed(error)

        return call

    def _begin(self) -> None:
        self._begun = True
        self._socket = socket = self._context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVHWM, WAITING_BATCHES)
        socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.set(zmq.IPV6, 1)
        socket.connect(self._where)
        socket.send_multipart((b"", self._first.to_bytes(NUMBER_BYTES, "big")), zmq.NOBLOCK)
        self._wait()
        self._loop.add_reader(int(socket.fd), self._on_readable)
        self._loop.call_soon(self._on_readable)

    def _wait(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._loop.call_later(REPLAY_SECONDS, self._on_silence)

    def _read(self) -> None:
        for _ in range(AT_ONCE):
            if self._closed or self._socket is None:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(frames)
        self._loop.call_soon(self._on_readable)

    def _take(self, frames: list[bytes]) -> None:
        """Take [nothing, topic, number, batch]; older versions of vLLM leave the topic out."""
        if len(frames) < FRAMES or len(frames[-2]) != NUMBER_BYTES:
            return
        self._answered = True
        if frames[-2] == END:
            self._end()
            return
        batch = batch_of(frames[-1])
        self._asker.replayed(int.from_bytes(frames[-2], "big"), None if batch is None else batch.events)
        self._wait()

    def _end(self) -> None:
        self.close()
        self._asker.replay_ended(answered=self._answered)


def endpoint(host: str, port: int) -> str:
    """Return ZeroMQ's name of a TCP port."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
