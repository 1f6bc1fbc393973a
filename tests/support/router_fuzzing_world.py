"""A router's whole data path without a network and without waiting: its loop's time passes as soon as no callback is ready.

Connections to workers are made in memory: a worker is a function from a request to the bytes that it answers and how
the connection ends. What the router itself does (pools, exchange, relay, the client's connection) is the real thing.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout.routing import Backend, DeploymentRoute, HealthPolicy, build_fleet
from turnout_router.fleet.backends import Backends
from turnout_router.gateway import Gateway
from turnout_router.http1.connection import Connection
from turnout_router.http1.listener import Listener
from turnout_router.metrics import Metrics
from turnout_router.settings import ClientLimits, Settings, UpstreamLimits
from turnout_router.upstream.pools import ConnectionPools

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEY: Final = "default/tiny"
MODEL: Final = "tiny-1b"
HOST: Final = "127.0.0.1"
PREFILL, DECODE, OTHER = 1, 2, 3
LIMITS: Final = UpstreamLimits(
    prefill_seconds=10.0,
    first_byte_seconds=10.0,
    answer_seconds=20.0,
    stream_idle_seconds=5.0,
    head_bytes=4096,
    event_bytes=16 * 1024,
    hold_bytes=8 * 1024,
    prefill_answer_bytes=32 * 1024,
    health=HealthPolicy(failures=1 << 30),
)
_MOST_SECONDS: Final = 400.0
"""Of the loop's time. Every wait of the router has a deadline, and all of them together are shorter than this."""
_STEP_SECONDS: Final = 0.25


def promise(name: str, kept: object, text: object = "") -> None:
    """Assert that the promise called *name* is *kept*."""
    if not kept:
        raise AssertionError(f"{name}: {text}")


class HungError(AssertionError):
    """Nothing that is waited for can come any more, or it takes longer than all deadlines together."""


class _Selector(selectors.DefaultSelector):
    """Lets time pass instead of waiting for it."""

    def __init__(self, passed: Callable[[float], None]) -> None:
        super().__init__()
        self._passed = passed

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise HungError("nothing is there that could wake what waits")
        if timeout > 0:
            self._passed(timeout)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time passes at once, and whose connections lead to `network`. `longest`: CPU seconds of one round."""

    def __init__(self) -> None:
        self._now = 1000.0
        self.longest = 0.0
        self.network: Callable[[asyncio.BaseProtocol, int], None] = _nowhere
        super().__init__(_Selector(self._pass))
        self.faults: list[str] = []
        self.set_exception_handler(lambda _, context: self.faults.append(repr(context)))

    def time(self) -> float:
        return self._now

    def _pass(self, seconds: float) -> None:
        self._now += seconds

    def _run_once(self) -> None:
        began = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.longest = max(self.longest, time.thread_time() - began)

    async def create_connection(
        self, protocol_factory: Any, _host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        protocol = protocol_factory()
        self.network(protocol, port)
        await asyncio.sleep(0)
        return None, protocol


def _nowhere(_: asyncio.BaseProtocol, port: int) -> None:
    raise ConnectionRefusedError(f"nothing listens on {port}")


@dataclass
class Answer:
    """What a worker says: `pieces` one after the other, then its connection is kept, closed or reset."""

    pieces: list[bytes]
    ending: str = "keep"


class WorkerWire(asyncio.Transport):
    """The router's end of a connection to a worker."""

    def __init__(self, loop: Loop, protocol: Any, worker: Callable[[bytes, bytes], Answer]) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._worker = worker
        self._request = b""
        self._coming: list[bytes] = []
        self._ending = "keep"
        self._paused = False
        self._closed = False
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        if self._closed:
            return
        self._request += bytes(data)
        head, end, body = self._request.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if end and len(body) >= int(fields[b"content-length"]):
            self._request = b""
            answer = self._worker(head, body)
            self._coming, self._ending = answer.pieces, answer.ending
            self._loop.call_soon(self._feed)

    def _feed(self) -> None:
        if self._closed or self._paused:
            return
        if self._coming:
            self._protocol.data_received(self._coming.pop(0))
            self._loop.call_soon(self._feed)
        elif self._ending == "close":
            self._lose(None)
        elif self._ending == "reset":
            self._lose(ConnectionResetError())

    def _lose(self, error: Exception | None) -> None:
        if not self._closed:
            self._closed = True
            self._protocol.connection_lost(error)

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            if not self._loop.is_closed():
                self._loop.call_soon(self._protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self._closed

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._feed)


class ClientWire(asyncio.Transport):
    """The router's end of a client's connection: keeps what was written."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop
        self.protocol: Any = None
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written += bytes(data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@dataclass
class ClientAnswer:
    """One answer as a client reads it. `whole`: it has its end; else the connection broke."""

    status: int
    fields: dict[bytes, bytes]
    body: bytes
    whole: bool

    @property
    def is_stream(self) -> bool:
        return self.fields.get(b"content-type", b"").startswith(b"text/event-stream")


class IncompleteError(AssertionError):
    """What was written so far ends within a head or a chunk."""


def read_answers(written: bytes, *, closed: bool) -> list[ClientAnswer]:
    """Return the answers in *written*, strictly read: all but the last one are whole, and nothing else is there.

    Raise IncompleteError where more may come (or should have come), AssertionError where it is no HTTP.
    """
    answered = []
    while written:
        if answered and not written.startswith(b"HTTP/1.1 "[: len(written)]):
            promise("nothing stands behind an answer", kept=False, text=written[:200])
            return answered
        head, end, rest = written.partition(b"\r\n\r\n")
        if not end:
            raise IncompleteError(f"a head without its end: {head[:200]!r}")
        first, *lines = head.split(b"\r\n")
        version, status, _ = first.split(b" ", 2)
        assert (version, len(status), status.isdigit()) == (b"HTTP/1.1", 3, True), first
        fields: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b": ")
            assert colon, f"a line of a head is no field: {line!r}"
            promise("fields stand once", name not in fields, line)
            assert not set(value) & {0, 10, 13}, f"a field holds a line end: {line!r}"
            fields[name] = value
        assert not (b"content-length" in fields and b"transfer-encoding" in fields), head
        if b"content-length" in fields:
            length = int(fields[b"content-length"])
            body, written = rest[:length], rest[length:]
            whole = len(body) == length
        elif b"transfer-encoding" in fields:
            body, written, whole = _chunks(rest)
        else:
            body, written, whole = rest, b"", closed
        if not whole and not closed:
            raise IncompleteError("an answer is neither whole nor broken off")
        answered.append(ClientAnswer(int(status), fields, body, whole))
    return answered


def _chunks(data: bytes) -> tuple[bytes, bytes, bool]:
    """Return the body, what follows it, and whether it has its end."""
    body = b""
    while data:
        size, end, rest = data.partition(b"\r\n")
        assert not set(size) - set(b"0123456789abcdef\r"), f"no chunk: {data[:80]!r}"
        if not end or not size:
            raise IncompleteError("a chunk's size is cut")
        length = int(size, 16)
        if len(rest) < length + 2:
            raise IncompleteError("a chunk is cut")
        assert rest[length : length + 2] == b"\r\n", f"a chunk does not end: {rest[length:][:80]!r}"
        if length == 0:
            return body, rest[2:], True
        body, data = body + rest[:length], rest[length + 2 :]
    return body, b"", False


class Complaints(logging.Handler):
    """Whatever the router logs as an error of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class World:
    """One router in front of a prefill and a decode worker, and of two aggregated ones under another name."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.loop.network = self._connect
        self.workers: dict[int, Callable[[bytes, bytes], Answer]] = {}
        self.complaints = Complaints()
        self.metrics = Metrics()
        self._pools = ConnectionPools(LIMITS)
        self.backends = Backends(self._pools, self.metrics, LIMITS.health, self.loop.time)
        self._ports = {KEY: (PREFILL, DECODE), "default/plain": (OTHER, OTHER + 1)}
        self.gateway = Gateway(Settings(upstream=LIMITS), self.backends, self.metrics, self.loop.time)
        self.gateway.ready = True
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._pools.start()
        self.listener = Listener(self.gateway, ClientLimits())
        roles = {PREFILL: "prefill", DECODE: "decode"}
        self.backends.update(
            build_fleet(
                [
                    DeploymentRoute(KEY, (MODEL,), (MODEL,)),
                    DeploymentRoute("default/plain", ("plain",), ("plain",)),
                ],
                [],
                [],
                [
                    Backend(f"w{port}", key, HOST, port, roles.get(port, "aggregated"), "a", (MODEL, "plain"))  # type: ignore[arg-type]
                    for key, ports in self._ports.items()
                    for port in ports
                ],
            )
        )

    def close(self) -> None:
        """End it, and what an input may have left in it."""
        for connection in tuple(self.listener.connections):
            connection.abort()
        self._pools.stop()
        self.loop.run_until_complete(self._some_rounds())
        self.loop.close()

    async def _some_rounds(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)  # what was cancelled ends in the next rounds

    def _connect(self, protocol: asyncio.BaseProtocol, port: int) -> None:
        worker = self.workers.get(port)
        if worker is None:
            raise ConnectionRefusedError(f"nothing listens on {port}")
        # Looked up when a request comes: a kept connection outlives one input.
        WorkerWire(self.loop, protocol, self._worker_at(port))

    def _worker_at(self, port: int) -> Callable[[bytes, bytes], Answer]:
        def answer(head: bytes, body: bytes) -> Answer:
            return self.workers[port](head, body)

        return answer

    def ask(
        self,
        requests: list[bytes],
        workers: Mapping[int, Callable[[bytes, bytes], Answer]],
        *,
        leaves_after: int | None = None,
        stalls: bool = False,
    ) -> list[ClientAnswer]:
        """Have a client send *requests*, each when the last one is answered; return the answers.

        The client leaves *leaves_after* rounds after its first request, and *stalls* for a moment in the middle. Assert
        that nothing failed inside the router, and that nothing is left of it all.
        """
        self.workers = dict(workers)
        log = logging.getLogger("turnout_router")
        log.addHandler(self.complaints)
        propagates, log.propagate = log.propagate, False
        try:
            wire = self.loop.run_until_complete(self._ask(requests, leaves_after, stalls=stalls))
            self._assert_nothing_is_left()
        finally:
            log.removeHandler(self.complaints)
            log.propagate = propagates
            faults, self.loop.faults = self.loop.faults, []
            lines, self.complaints.lines = self.complaints.lines, []
        assert not faults, faults[0]
        assert not lines, lines[0]
        return [] if leaves_after is not None else read_answers(wire.written, closed=wire.closed)

    async def _ask(self, requests: list[bytes], leaves_after: int | None, *, stalls: bool) -> ClientWire:
        wire = ClientWire(self.loop)
        connection = Connection(self.listener, self.loop)
        wire.protocol = connection
        connection.connection_made(wire)
        until = self.loop.time() + _MOST_SECONDS
        for number, request in enumerate(requests):
            if wire.closed:
                break
            connection.data_received(request)
            if stalls and number == 0:
                connection.pause_writing()
                await asyncio.sleep(_STEP_SECONDS)
                connection.resume_writing()
            await self._wait(wire, number + 1, leaves_after, until)
        if not wire.closed:
            wire.abort()
        while (connection in self.listener.connections or self._busy()) and self.loop.time() < until:  # noqa: ASYNC110 - no event says when
            await asyncio.sleep(_STEP_SECONDS)
        await self._some_rounds()
        return wire

    async def _wait(self, wire: ClientWire, number: int, leaves_after: int | None, until: float) -> None:
        """Wait for the answer to request *number*, or leave."""
        rounds = 0
        while not self._is_answered(wire, number):
            if leaves_after is not None and rounds >= leaves_after:
                wire.abort()
                return
            rounds += 1
            await asyncio.sleep(0 if rounds < 40 else _STEP_SECONDS)
            if self.loop.time() > until:
                wire.abort()
                raise HungError("a client waits for longer than all deadlines together")

    def _is_answered(self, wire: ClientWire, number: int) -> bool:
        if wire.closed:
            return True
        try:
            answered = read_answers(wire.written, closed=False)
        except IncompleteError:
            return False
        return len(answered) >= number

    def _busy(self) -> bool:
        return any(self._pools.of((HOST, port)).in_use for ports in self._ports.values() for port in ports)

    def _assert_nothing_is_left(self) -> None:
        assert not self.listener.connections, "the client's connection is still known"
        held = self.listener.held_bytes
        promise("bodies are counted", held == 0, f"{held} bytes of no request are counted")
        assert not len(self.listener.accounts), "a client that has left is still known"
        assert not len(self.listener), "a connection that has ended is still counted"
        assert not self._busy(), "a worker's connection is still in use"
        for key, ports in self._ports.items():
            counts = self.metrics.of(key)
            assert (counts.in_flight, counts.waiting) == (0, 0)
            found = self.backends.load_tracker_of(key)
            assert found is not None
            for id_ in (f"w{port}" for port in ports):
                state = found[0].states[id_]
                assert (state.in_flight, state.queued_tokens, state.context_tokens) == (0, 0, 0), state
        for group in self.backends.describe()["deployments"].values():
            for worker in group:
                assert (worker["inFlightTokens"], worker["inFlightRequests"]) == (0, 0), worker


def request(path: bytes, body: Mapping[str, Any] | bytes, *fields: bytes) -> bytes:
    """Return a client's POST."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    head = [b"POST " + path + b" HTTP/1.1", b"host: x", b"content-length: %d" % len(data), *fields, b"", b""]
    return b"\r\n".join(head) + data


def whole_json(value: Any, status: int = 200) -> bytes:
    """Return a worker's whole answer."""
    data = orjson.dumps(value)
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
        status,
        len(data),
    )
    return head + data
