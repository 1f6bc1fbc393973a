"""Replays of KV events: one worker's batches from a number on, and whose turn it is to be replayed.

A router that starts requests up to 10,000 batches from every worker. They are read two workers at a time and for 2 ms at a time,
so that requests in between wait for milliseconds. Between two such slices passes as much time as the last one took: all
workers together, however much they publish, take at most 50 % of the router's time.
"""

from __future__ import annotations

import contextlib
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final, Protocol

import zmq

from turnout_router.fleet.kvevents.wire import END, FRAMES, MAX_MESSAGE_BYTES, NUMBER_BYTES, batch_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from turnout.routing.events import Batch

SLICE_SECONDS: Final = 0.002
"""For reading before others have their turn: a large batch takes a few milliseconds."""
MAX_FRAMES: Final = 5
"""Of a message. ZeroMQ bounds the size of each, not their number."""
WORKERS_AT_ONCE: Final = 2
"""Workers that are replayed at a time."""
REPLAY_SECONDS: Final = 2.0
"""Until a replay begins; vLLM looks for requests every 0.1 s."""
GAP_SECONDS: Final = 0.5
"""Between two batches of a replay. After that its end is taken to be lost, and the rest is requested again."""
REPLAYED_BATCHES: Final = 1_000
"""Batches of a replay that wait to be read, of two workers at a time: vLLM's socket drops what its reader cannot take."""
WAITING_BATCHES: Final = 256
"""Batches that wait to be read, `MAX_MESSAGE_BYTES` each. Beyond that they wait at the worker."""


class FramesError(Exception):
    """A message of more frames than any worker sends."""


def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    """Return the next message of *socket*. Raise zmq.Again where there is none, FramesError where it goes on and on."""
    frames = [socket.recv(zmq.NOBLOCK)]
    while socket.get(zmq.RCVMORE):
        if len(frames) >= MAX_FRAMES:
            raise FramesError(f"a message of more than {MAX_FRAMES} frames")
        frames.append(socket.recv(zmq.NOBLOCK))
    return frames


def guarded(
    step: Callable[[], None], is_closed: Callable[[], bool], fail: Callable[[Exception], None]
) -> Callable[[], None]:
    """Return *step* as a callback of the event loop that does nothing once *is_closed*; *fail* gets what it raises."""

    def call() -> None:
        if is_closed():
            return
        try:
            step()
        except Exception as error:  # noqa: BLE001 - whatever it is, no other worker's events are harmed by it
            fail(error)

    return call


class Pace:
    """Shares out time among the readers: one slice after the other, in turn, with pauses of the same length in between.

    So all workers together, however much they publish, take at most 50 % of the router's time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._until = 0.0
        self._queue: dict[Slices, None] = {}
        self._timer: asyncio.Handle | None = None

    def may_begin(self) -> bool:
        """Return whether no reader waits for its turn."""
        return not self._queue and perf_counter() >= self._until

    def spent(self, seconds: float) -> None:
        """Let as much time pass as was *spent* just now."""
        self._until = perf_counter() + seconds

    def wait(self, slices: Slices) -> None:
        """Let *slices* have its turn when it comes."""
        self._queue[slices] = None
        self._schedule()

    def has(self, slices: Slices) -> bool:
        """Return whether *slices* waits for its turn."""
        return slices in self._queue

    def withdraw(self, slices: Slices) -> None:
        """Let *slices* wait no longer."""
        self._queue.pop(slices, None)

    def _schedule(self) -> None:
        if self._timer is None and self._queue:
            self._timer = self._loop.call_later(max(0.0, self._until - perf_counter()), self._next)

    def _next(self) -> None:
        self._timer = None
        if self._queue:
            slices = next(iter(self._queue))
            del self._queue[slices]
            try:
                slices.take_turn()
            finally:
                self._schedule()


class Slices:
    """Reads *socket* whenever there is something to read, for `SLICE_SECONDS` at a time, as *pace* lets it.

    *step* does one piece of work and returns whether there may be another one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pace: Pace,
        socket: zmq.Socket[bytes],
        step: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._pace = pace
        self._fd = int(socket.fd)
        self._step = step
        self._read = self.run
        self._closed = False
        self._watching = False
        self._on_turn = False

    def begin(self, read: Callable[[], None]) -> None:
        """Call *read*, which calls `run`, whenever there is something to do, and soon."""
        self._read = read
        self._watch()
        self._pace.wait(self)

    @property
    def waits(self) -> bool:
        """Whether it waits for its turn."""
        return self._pace.has(self)

    def again(self) -> None:
        """Have `run` called soon: there is something to do that the socket does not show."""
        if not self._closed:
            self._pace.wait(self)

    def run(self) -> None:
        """Do what there is to do, until it is done or the time is over."""
        if self._closed:
            return
        if self._on_turn or self._pace.may_begin():
            self._work()
        else:
            self._rest()

    def take_turn(self) -> None:
        """Call what was given to `begin`, which may begin now."""
        if not self._closed:
            self._watch()
            self._on_turn = True
            try:
                self._read()
            finally:
                self._on_turn = False

    def close(self) -> None:
        """Do nothing any more."""
        self._closed = True
        self._pace.withdraw(self)
        self._unwatch()

    def _work(self) -> None:
        began = perf_counter()
        while not self._closed and self._step():
            spent = perf_counter() - began
            if spent >= SLICE_SECONDS:
                self._pace.spent(spent)
                self._rest()
                return

    def _rest(self) -> None:
        # The descriptor stays readable meanwhile, and would wake the loop again and again.
        self._unwatch()
        self._pace.wait(self)

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._fd, self._read)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._fd)


class ReplayListener(Protocol):
    """Receives the batches of a replay that it started, and its end."""

    def replayed(self, number: int, batch: Batch) -> None:
        """Take one batch."""

    def is_behind(self) -> bool:
        """Go on with the batches taken. Return whether more of that is to be done before the next one."""

    def replay_ended(self, *, answered: bool, whole: bool) -> None:
        """Take the end; not *answered*: nothing came at all; not *whole*: it broke off."""

    def failed(self, error: Exception) -> None:
        """Begin anew: *error* was raised in a replay, which is closed."""


class Turns:
    """Lets few begin at a time; the others wait in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, at_once: int = WORKERS_AT_ONCE) -> None:
        self.loop = loop
        self.pace = Pace(loop)
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
        """Note that a reader has finished. The next one begins in the loop's next round: it may be through at once."""
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
    """One replay: when its turn has come, requests all batches from number *first* on at *where*, and passes them to *listener*."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        turns: Turns,
        where: str,
        first: int,
        listener: ReplayListener,
    ) -> None:
        self._context = context
        self._loop = turns.loop
        self._turns = turns
        self._where = where
        self._first = first
        self._listener = listener
        self._answered = False
        self._begun = False
        self._closed = False
        self._socket: zmq.Socket[bytes] | None = None
        self._slices: Slices | None = None
        self._patience: asyncio.Handle | None = None
        self._on_turn = self._guard(self._begin)
        self._on_readable = self._guard(self._read)
        self._on_silence = self._guard(self._expire)
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
            if self._slices is not None:
                ending.callback(self._slices.close)

    def _guard(self, step: Callable[[], None]) -> Callable[[], None]:
        return guarded(step, lambda: self._closed, self._fail)

    def _fail(self, error: Exception) -> None:
        """End the replay, and make its listener start over: *error* was raised."""
        try:
            self.close()
        finally:
            self._listener.failed(error)

    def _begin(self) -> None:
        self._begun = True
        self._socket = socket = self._context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVHWM, REPLAYED_BATCHES)
        socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.set(zmq.IPV6, 1)
        socket.connect(self._where)
        socket.send_multipart((b"", self._first.to_bytes(NUMBER_BYTES, "big")), zmq.NOBLOCK)
        self._wait()
        self._slices = Slices(self._loop, self._turns.pace, socket, self._take_next)
        self._slices.begin(self._on_readable)

    def _wait(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        seconds = GAP_SECONDS if self._answered else REPLAY_SECONDS
        self._patience = self._loop.call_later(seconds, self._on_silence)

    def _read(self) -> None:
        if self._slices is not None:
            self._slices.run()

    def _take_next(self) -> bool:
        if self._listener.is_behind():
            return True
        if self._closed or self._socket is None:
            return False
        try:
            frames = receive(self._socket)
        except zmq.Again:
            return False
        self._take(frames)
        return True

    def _take(self, frames: list[bytes]) -> None:
        """Take [nothing, topic, number, batch]; older versions of vLLM leave the topic out."""
        if len(frames) < FRAMES or len(frames[-2]) != NUMBER_BYTES:
            return
        self._answered = True
        if frames[-2] == END:
            self._end(whole=True)
            return
        batch = batch_of(frames[-1])
        self._listener.replayed(int.from_bytes(frames[-2], "big"), None if batch is None else batch.events)
        self._wait()

    def _expire(self) -> None:
        if self._slices is not None and self._slices.waits:
            self._wait()  # it is not the worker that is silent
        else:
            self._end(whole=False)

    def _end(self, *, whole: bool) -> None:
        self.close()
        self._listener.replay_ended(answered=self._answered, whole=whole)


def endpoint(host: str, port: int) -> str:
    """Return ZeroMQ's name of a TCP port."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
