"""One worker's KV events over ZeroMQ: subscribed to, replayed where some are missing, begun anew after every loss.

A socket lives as long as its connection: events of an engine that died never mix with those of its successor.
Where anything is raised on the way, the worker counts as one whose events do not arrive, and is followed anew after a pause.
On the event loop's own thread, and idle when nothing is published: ZeroMQ's sockets have a file descriptor that becomes
readable, once, when there is something to do, and then everything has to be read.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from turnout_router.fleet.kvevents.replay import (
    WAITING_BATCHES,
    Replay,
    Slices,
    Turns,
    endpoint,
    guarded,
    receive,
)
from turnout_router.fleet.kvevents.wire import FRAMES, MAX_MESSAGE_BYTES, NUMBER_BYTES, batch_of
from turnout_router.tasks import KV_EVENTS, only_logged
from turnout_runtime.supervision import Backoff

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from turnout.routing.events import Batch, EventStream
    from turnout_router.tasks import Note

_LOG = logging.getLogger("turnout_router")

RETRY_SECONDS: Final = 5.0
"""Until a replay that was not answered at all is requested again."""
CONFIRM_SECONDS: Final = 1.0
"""From a connection to the check for missed events: a publisher may answer the replay before it takes note of the
subscription, and what it publishes in between is lost."""
REOPEN_SECONDS: Final = 0.1
MOST_REOPEN_SECONDS: Final = 2.0
"""Until a lost worker is connected to again; from then on ZeroMQ tries, every 0.1 to 2 s. What hangs up without ever having
greeted as ZeroMQ does is tried ever less often."""
_AFTER_FAILURE: Final = Backoff(first_seconds=0.5, most_seconds=30.0, reset_seconds=60.0)
"""Before a worker is followed anew of which something was raised: it may send the same again."""
_EVENTS: Final = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED


class Subscription:
    """Feeds *stream* with what is published at *address*: host, port, and port of replays, 0 where there are none.

    *seen* gets the time (Unix, by the worker's clock) of every live batch. *note* is called with unexpected
    exceptions.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        turns: Turns,
        address: tuple[str, int, int],
        stream: EventStream,
        seen: Callable[[float], None],
        *,
        note: Note = only_logged,
    ) -> None:
        self._context = context
        self._loop = turns.loop
        self._turns = turns
        self._host, self._port, self._replay_port = address
        self._stream = stream
        self._seen = seen
        self._note = note
        self._sockets: list[zmq.Socket[bytes]] = []
        self._slices: Slices | None = None
        self._replay: Replay | None = None
        self._anew = False
        self._reopen_seconds = REOPEN_SECONDS
        self._logged: set[str] = set()
        self._timer: asyncio.Handle | None = None
        self._confirming: asyncio.Handle | None = None
        self._stopped = False
        self._failures = 0
        self._began = self._loop.time()
        self._on_start = self._guard(self._connect)
        self._on_monitored = self._guard(self._watch)
        self._on_readable = self._guard(self._read)
        self._on_confirm = self._guard(self._confirm)
        self._on_retry = self._guard(self._retry)

    def start(self) -> None:
        """Connect, now and whenever the connection is lost. Raises nothing."""
        self._on_start()

    def stop(self) -> None:
        """Let go of the worker, for good. Raises nothing."""
        self._stopped = True
        self._let_go()

    def failed(self, error: Exception) -> None:
        """Let go of the worker, and follow it anew after a pause: *error* was raised."""
        self._note(KV_EVENTS, error)
        self._let_go()
        if self._stopped:
            return
        lasted = self._loop.time() - self._began
        self._failures = 1 if lasted >= _AFTER_FAILURE.reset_seconds else self._failures + 1
        self._timer = self._loop.call_later(_AFTER_FAILURE.pause(self._failures), self._on_start)

    def _guard(self, step: Callable[[], None]) -> Callable[[], None]:
        return guarded(step, lambda: self._stopped, self.failed)

    def _let_go(self) -> None:
        try:
            self._close()
        except Exception as error:  # noqa: BLE001 - what could be closed is closed
            self._note(KV_EVENTS, error)

    def _connect(self) -> None:
        self._began = self._loop.time()
        publisher = self._context.socket(zmq.SUB)
        self._sockets = [publisher]
        publisher.set(zmq.LINGER, 0)
        publisher.set(zmq.RCVHWM, WAITING_BATCHES)
        publisher.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        publisher.set(zmq.RECONNECT_IVL, 100)
        publisher.set(zmq.RECONNECT_IVL_MAX, 2000)
        publisher.set(zmq.HEARTBEAT_IVL, 5000)
        publisher.set(zmq.HEARTBEAT_TIMEOUT, 15_000)
        publisher.set(zmq.IPV6, 1)
        publisher.set(zmq.SUBSCRIBE, b"")
        monitor = publisher.get_monitor_socket(_EVENTS)
        self._sockets.append(monitor)
        publisher.connect(endpoint(self._host, self._port))
        self._loop.add_reader(int(monitor.fd), self._on_monitored)
        self._slices = Slices(self._loop, self._turns.pace, publisher, self._take_next)
        self._slices.begin(self._on_readable)
        self._watch()

    def _close(self) -> None:
        sockets, self._sockets = self._sockets, []
        replay, self._replay = self._replay, None
        slices, self._slices = self._slices, None
        with (
            contextlib.ExitStack() as ending
        ):  # each of these is done, in turn from the last, whatever another one raises
            for socket in sockets:
                ending.callback(socket.close, linger=0)
            if sockets:
                ending.callback(sockets[0].disable_monitor)
            if slices is not None:
                ending.callback(slices.close)
            for socket in sockets[1:]:
                ending.callback(self._unwatch, socket)
            if replay is not None:
                ending.callback(replay.close)
            for timer in (self._timer, self._confirming):
                if timer is not None:
                    ending.callback(timer.cancel)
            ending.callback(self._stream.disconnected)

    def _unwatch(self, socket: zmq.Socket[bytes]) -> None:
        self._loop.remove_reader(int(socket.fd))

    def _watch(self) -> None:
        """Read the connection's events."""
        while self._sockets:
            try:
                frames = self._sockets[1].recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if parse_monitor_message(frames)["event"] == zmq.Event.HANDSHAKE_SUCCEEDED:
                self._reopen_seconds = REOPEN_SECONDS
                self._ask(self._stream.connected())
                if self._replay_port:
                    self._confirming = self._loop.call_later(CONFIRM_SECONDS, self._on_confirm)
                self._read()
            else:
                self._close()
                self._timer = self._loop.call_later(self._reopen_seconds, self._on_start)
                self._reopen_seconds = min(2 * self._reopen_seconds, MOST_REOPEN_SECONDS)

    def _read(self) -> None:
        """Read what has been published."""
        if self._slices is not None:
            self._slices.run()

    def _take_next(self) -> bool:
        if self.is_behind():
            return True
        if not self._sockets:
            return False
        try:
            frames = receive(self._sockets[0])
        except zmq.Again:
            return False
        number, batch = self._understand(frames)
        self._ask(self._stream.live(number, batch))
        return True

    def is_behind(self) -> bool:
        """Go on with the batches taken. Return whether more of that is to be done before the next one."""
        return self._stream.work()

    def _understand(self, frames: list[bytes]) -> tuple[int, Batch]:
        if len(frames) != FRAMES or len(frames[1]) != NUMBER_BYTES:
            return self._stream.next or 0, None
        batch = batch_of(frames[2])
        if batch is None:
            self._log_once("some KV events cannot be read")
            return int.from_bytes(frames[1], "big"), None
        self._seen(batch.at)
        return int.from_bytes(frames[1], "big"), batch.events

    def _log_once(self, what: str) -> None:
        """Log *what*, once."""
        if what not in self._logged:
            self._logged.add(what)
            _LOG.warning("%s:%d: %s; its cache is estimated", self._host, self._port, what)

    # Replays

    def _confirm(self) -> None:
        self._ask(self._stream.confirm())

    def _ask(self, first: int | None, *, anew: bool = False) -> None:
        """Request everything from number *first* on, if that is not None. *anew*: the stream begins with the answer."""
        if first is None:
            return
        self._anew = anew
        if self._replay is not None:
            self._replay.close()
            self._replay = None
        if self._replay_port:
            self._replay = Replay(
                self._context, self._turns, endpoint(self._host, self._replay_port), first, self
            )
        else:
            self._stream.replay_failed()

    def replayed(self, number: int, batch: Batch) -> None:
        """Take a batch of the requested replay."""
        if self._anew:
            self._anew = False
            self._stream.connected()
        self._stream.replayed(number, batch)

    def replay_ended(self, *, answered: bool, whole: bool) -> None:
        """Take the end of a replay: a whole one, one that broke off, or, without an answer, none."""
        self._replay = None
        if self._slices is not None:
            self._slices.again()
        if answered:
            if self._anew:  # nothing but the end has come
                self._stream.connected()
            self._ask(self._stream.replay_ended(whole=whole))
            return
        self._log_once(f"nothing replays KV events at port {self._replay_port}")
        self._stream.replay_failed()
        self._timer = self._loop.call_later(RETRY_SECONDS, self._on_retry)

    def _retry(self) -> None:
        """Request everything once more; what is known stays until there is an answer."""
        if self._replay is None and not self._stream.complete:
            self._ask(0, anew=True)
