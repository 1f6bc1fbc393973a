"""What must hold whatever bytes come: every kind of input that is fuzzed, and the checks of bytes themselves.

Each check takes bytes and a seed, runs the router's own classes on them with a transport and a clock of the test's,
and asserts its invariants. Nothing waits, so that hundreds of thousands of inputs are tried in a minute.
"""

from __future__ import annotations

import asyncio
import logging
import random  # noqa: TC003 - named tuples look their types up
import re
from collections.abc import Callable, Sequence  # noqa: TC003 - likewise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import orjson

from support.router_fuzzing_admin import ADMIN_CORPUS, Admin, mutate_admin
from support.router_fuzzing_answers import ANSWERS_CORPUS, FORMS, check_answer, mutate_answer
from support.router_fuzzing_events import EVENTS_CORPUS, Read, check_events, is_of_no_engine, mutate_events
from support.router_fuzzing_pairs import PAIRS_CORPUS, check_pair, mutate_structure
from support.router_fuzzing_peers import PEERS_CORPUS, check_peer, mutate_frames
from support.router_fuzzing_world import World
from support.router_hostile_inputs import CASES, CHAT, GOOD, MODELS, chunked, get, piece, post
from turnout.routing import Backend, DeploymentRoute, Fleet, HealthPolicy, build_fleet
from turnout_router.api.endpoints import ENDPOINTS
from turnout_router.api.openai import ENGINE_FIELDS, decode_body, parse, prefill_body
from turnout_router.api.usage import StreamTap
from turnout_router.errors import ApiError, UpstreamError
from turnout_router.fleet.backends import Backends
from turnout_router.gateway import Gateway
from turnout_router.http1.connection import Connection
from turnout_router.http1.drive import Signal
from turnout_router.http1.listener import Listener
from turnout_router.metrics import Metrics
from turnout_router.request.relay import Relay
from turnout_router.settings import ClientLimits, Settings, UpstreamLimits
from turnout_router.upstream.connection import UpstreamConnection
from turnout_router.upstream.pools import ConnectionPool, ConnectionPools

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from turnout_router.http1.http import Request
    from turnout_router.http1.response import Response

STATUSES: Final = {200, 204, 400, 401, 404, 405, 408, 411, 413, 414, 415, 417, 431, 501, 503}
"""All answers that a client can get where there is no worker."""

_BACKEND: Final = Backend("w", "default/tiny", "127.0.0.1", 1, "decode", "a", ("tiny-1b",))
_STREAM: Final = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"tok"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)
_ERROR: Final = b'data: {"error":{"message":"x","code":500}}\n\n'
CLIENT_CORPUS: Final = (
    *(b"".join(case.parts)[:6000] for case in CASES),
    MODELS + post(GOOD) + chunked(piece(GOOD)) + get(b"/v1/models/tiny-1b"),
)
WORKER_CORPUS: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    + b"".join(piece(event + b"\n\n") for event in _STREAM.split(b"\n\n") if event)
    + b"0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + _STREAM,
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + _ERROR,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",
    b"HTTP/1.0 200 OK\r\n\r\nbody until the end",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\na: b\r\n\r\n",
    b"this is not HTTP at all\r\n\r\n",
)
STREAM_CORPUS: Final = (
    _STREAM,
    _ERROR,
    _STREAM[:-14] + _ERROR,
    b": ping\n\n" + _STREAM,
    _STREAM.replace(b"\n", b"\r\n"),
    b"event: a\n" + _STREAM,
)
JSON_CORPUS: Final = (
    GOOD,
    orjson.dumps(CHAT | {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}),
    orjson.dumps(CHAT | {"n": 2, "max_completion_tokens": 10**18, "kv_transfer_params": {"a": None}}),
    orjson.dumps({"model": "tiny-1b", "prompt": [[1, 2], [3]], "best_of": 3, "echo": True}),
    orjson.dumps({"model": "tiny-1b", "prompt": ["a", "b"], "priority": -1, "logprobs": 1}),
    orjson.dumps(
        {"model": "tiny-1b", "input": [{"role": "user", "content": [{"text": "x"}]}], "tools": [{}]}
    ),
    orjson.dumps(
        {"model": "tiny-1b", "query": {"text": "a"}, "documents": ["a"], "text_1": [], "tokens": [1]}
    ),
    b'{"model":"tiny-1b","messages":[{}],"kv\\u005ftransfer_params":{"a":1},"\\u0072equest_id":"x"}',
    b'{"model":"a","model":"tiny-1b","messages":[{"content":[{"type":"image_url"},{"text":"\xc3\xa9"}]}]}',
)
TOKENS: Final = (
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b";", b",", b"0", b"-1", b"\xff", b"\r\n\r\n", b"\n\n", b"{", b"[", b'"'),
    *(b"HTTP/1.1", b"HTTP/1.0", b"GET ", b"POST ", b"HEAD ", b"OPTIONS ", b"/v1/models", b"/v1/completions", b"http://a"),
    *(b"host: x\r\n", b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n"),
    *(b"connection: upgrade\r\nupgrade: h2c\r\n", b"expect: 100-continue\r\n", b"0\r\n\r\n", b"ffffffff\r\n"),
    *(b"data: ", b"[DONE]", b'"usage":{', b'"error"', b"null", b"true", b"1e999", b"{}", b'"model":', b'"stream":true,'),
    *(b'"\\ud800"', b'"kv_transfer_params":{"a":1},', b"18446744073709551616", b"event: error\n", b"\xf0\x9f\x98\x80"),
)  # fmt: skip


def mutate(data: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
    """Return *data* after one to six changes: bytes flipped, dropped, doubled, tokens put in, others' ends put on."""
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(data) + 1)
        to = min(len(data), at + draw.choice((1, 1, 2, 4, 16, 64)))
        match draw.randrange(7):
            case 0:
                data = data[:at] + bytes(draw.getrandbits(8) for _ in range(to - at)) + data[to:]
            case 1:
                data = data[:at] + data[to:]
            case 2:
                data = data[:to] + data[at:]
            case 3 | 4:
                data = data[:at] + draw.choice(TOKENS) + data[at:]
            case 5:
                other = draw.choice(corpus)
                data = data[:at] + other[draw.randrange(len(other) + 1) :]
            case _:
                data = data[:at]
    return data[:20_000]


def pieces(data: bytes, draw: random.Random) -> list[bytes]:
    """Return *data* cut at a few random places."""
    cuts = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randint(0, 4)))
    return [part for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if (part := data[a:b])]


class Clock:
    """A loop's clock that only moves when it is set; everything else is the loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = 1000.0
        self.create_task = loop.create_task
        self.create_future = loop.create_future

    def time(self) -> float:
        return self.now


class Wire(asyncio.Transport):
    """A transport that remembers what was written, and does not read while it is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closed or data, "nothing is written after the end"
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def answers(written: bytes) -> list[int]:
    """Return the statuses of the answers in *written*, and assert that there is nothing else in it."""
    statuses = []
    while written:
        head, end, written = written.partition(b"\r\n\r\n")
        assert end, f"a head without its end: {head[:200]!r}"
        first, *lines = head.split(b"\r\n")
        version, status, _ = first.split(b" ", 2)
        assert version == b"HTTP/1.1"
        fields = dict(line.split(b": ", 1) for line in lines)
        if status == b"100":
            continue
        statuses.append(int(status))
        if written.startswith(b"HTTP/1.1 "):
            continue  # the answer to a HEAD, which has a length and no body
        length = int(fields.get(b"content-length", b"0" if status == b"204" else b""))
        body, written = written[:length], written[length:]
        if len(body) < length:
            assert not body, "an answer was cut"
            return statuses
        if body:
            assert isinstance(orjson.loads(body), dict)
    return statuses


class Kind(NamedTuple):
    """One kind of input: what is held against it, the inputs to begin from, and how they are changed."""

    check: Callable[[bytes, random.Random], None]
    corpus: tuple[bytes, ...]
    mutate: Callable[[bytes, Sequence[bytes], random.Random], bytes]


class Faults(logging.Handler):
    """Keeps what is logged as a fault of the router: no bytes of a client's may lead to one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Checks:
    """The router's parts around a fleet of one deployment without workers, and a whole router with workers."""

    LIMITS: Final = ClientLimits(
        head_bytes=2048, target_bytes=512, header_fields=20, body_bytes=2048, pipelined_bytes=1024
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.clock = Clock(loop)
        self.faults = Faults()
        logging.getLogger("turnout_router").addHandler(self.faults)
        metrics = Metrics()
        self.upstream = UpstreamLimits(head_bytes=1024, event_bytes=1024, hold_bytes=512)
        backends = Backends(ConnectionPools(self.upstream), metrics, HealthPolicy(), self.clock.time)
        fleet = build_fleet([DeploymentRoute("default/tiny", ("tiny-1b",))], [], [], [])
        backends.update(fleet)
        assert fleet != Fleet()
        self.gateway = Gateway(Settings(), backends, metrics, self.clock.time)
        self.gateway.ready = True
        self.longest_seconds = 0.0
        """CPU seconds of the longest round of a loop: how long the router stood still for one input."""
        self._world: World | None = None
        self._admin: Admin | None = None

    def _serve(self, parts: Iterable[bytes]) -> list[int]:
        listener = Listener(self.gateway, self.LIMITS)
        connection = Connection(listener, cast("asyncio.AbstractEventLoop", self.clock))
        wire = Wire()
        connection.connection_made(wire)
        for part in parts:
            if wire.closed:
                break
            connection.data_received(part)
            self._turn(connection)
        self._turn(connection)
        self.clock.now += 100.0
        connection.check_deadlines(self.clock.now)
        self._turn(connection)
        self.clock.now += 100.0
        connection.check_deadlines(self.clock.now)
        assert wire.closed, "a connection outlived every deadline"
        connection.connection_lost(None)
        assert not listener.connections
        assert listener.held_bytes == 0
        return answers(bytes(wire.written))

    def _turn(self, connection: Connection) -> None:
        """Let what was asked for be answered; without workers that takes a turn of the loop per request."""
        while connection._drive is not None:
            self.loop.run_until_complete(asyncio.sleep(0))

    def client(self, data: bytes, draw: random.Random) -> None:
        """Hold a client's connection against *data*: every answer is whole, and cutting the bytes changes none."""
        self.faults.records.clear()
        whole = self._serve([data])
        assert set(whole) <= STATUSES
        cut = self._serve(pieces(data, draw))
        # Where the bytes are cut decides how much of an invalid message is read, never what is served.
        common = min(len(whole), len(cut))
        assert [s for s in whole[:common] if s < 300] == [s for s in cut[:common] if s < 300]
        assert abs(len(whole) - len(cut)) <= 1
        assert not self.faults.records, self.faults.records[0].getMessage()

    def worker(self, data: bytes, draw: random.Random) -> None:
        """Hold a connection to a worker against *data*: it ends with an answer or an UpstreamError, and is let go."""
        pool = ConnectionPool(("127.0.0.1", 1), self.upstream)
        connection = UpstreamConnection(pool, cast("asyncio.AbstractEventLoop", self.clock))
        wire = Wire()
        connection.connection_made(wire)
        pool._used.add(connection)
        stream = draw.random() < 0.7
        tap = StreamTap(drop_usage=True, max_event_bytes=1024) if stream else None
        clock = cast("asyncio.AbstractEventLoop", self.clock)
        client = Asking(clock, self.LIMITS)
        relay = Relay(
            client.connection.response,
            self.upstream,
            tap,
            (),
            self.clock.time,
            endpoint=ENDPOINTS[b"/v1/chat/completions"],
        )
        done = connection.begin(b"x", relay, seconds=50.0, idle_seconds=50.0 if stream else None, what="it")
        for part in pieces(data, draw):
            if wire.closed:
                break
            connection.data_received(part)
            if draw.random() < 0.1:
                connection.pause()
                connection.resume()
        if not wire.closed and draw.random() < 0.5:
            self.clock.now += 100.0
            connection.check_deadline(self.clock.now)
        if not done.is_set or wire.closed:
            connection.connection_lost(None)
        assert done.is_set
        error: UpstreamError | None = None
        try:
            done.result()
        except UpstreamError as failure:
            error = failure
        if error is None:
            try:
                relay.finish()
            except UpstreamError:
                assert not client.has_whole_answer
        else:
            assert not client.has_whole_answer
        client.leave()
        assert not wire.paused
        assert not connection.reusable or error is None

    def stream(self, data: bytes, draw: random.Random) -> None:
        """Hold the reading of streams against *data*: cutting the bytes changes neither what passes nor what is counted."""
        if draw.random() < 0.2:
            data = data.replace(b"\n", draw.choice((b"\r\n", b"\r")))
        read = Read(data, FORMS[0])
        if is_of_no_engine(data, read):
            return  # seen or not, as it happens to be cut
        ended = data[: read.ends_at]
        whole, cut = (self._tapped(parts) for parts in ([ended], pieces(ended, draw)))
        assert whole == cut

    def _tapped(self, parts: list[bytes]) -> tuple[Any, ...]:
        tap = StreamTap(drop_usage=True, max_event_bytes=1 << 20)
        out = b""
        for part in parts:
            out += tap.feed(part, 1.0)
            if tap.failure is not None or tap.aborted:
                break
        # Line ends and empty events are passed on or left out, depending on what had to be looked into.
        events = Read(out, FORMS[0]).events
        failed = None if tap.failure is None else tap.failure.status
        return events, failed, tap.aborted, tap.prompt_tokens, tap.output_tokens

    def json(self, data: bytes, draw: random.Random) -> None:
        """Hold the reading of requests against *data*: understood or refused, and what goes to workers is clean JSON."""
        endpoint = draw.choice(tuple(ENDPOINTS.values()))
        try:
            request = parse(endpoint, data)
        except ApiError as error:
            self._refused(error)
            return
        bodies = [decode_body(request, _BACKEND, None)]
        if request.endpoint.prefill is not None:
            bodies.append(prefill_body(request, _BACKEND))
            sent = orjson.loads(bodies[1])
            assert sent["kv_transfer_params"]["do_remote_decode"] is True
            assert sent["stream"] is False
        assert not set(orjson.loads(bodies[0])) & set(ENGINE_FIELDS)
        assert all(orjson.loads(body)["model"] == "tiny-1b" for body in bodies)
        assert request.prompt_tokens >= 0
        assert request.expected_output_tokens >= 0

    def _refused(self, error: ApiError) -> None:
        assert error.status == 400
        assert orjson.loads(error.body())["error"]["message"]

    def peers(self, data: bytes, draw: random.Random) -> None:
        """Hold the conversation with another router against *data*, see `support.router_fuzzing_peers`."""
        check_peer(self.loop, data, pieces, draw)

    def answers(self, data: bytes, draw: random.Random) -> None:
        """Hold the way from a worker to a client against *data*, see `support.router_fuzzing_answers`."""
        self._in_world(check_answer, data, draw)

    def pairs(self, data: bytes, draw: random.Random) -> None:
        """Hold the way from a prefill to a decode worker against *data*, see `support.router_fuzzing_pairs`."""
        self._in_world(check_pair, data, draw)

    def events(self, data: bytes, draw: random.Random) -> None:
        """Hold a stream's way to a client against *data*, see `support.router_fuzzing_events`."""
        self._in_world(check_events, data, draw)

    def admin(self, data: bytes, draw: random.Random) -> None:
        """Hold the admin port against *data*, see `support.router_fuzzing_admin`."""
        if self._admin is None:
            self._admin = Admin(self.loop, World())
        self._admin.check(data, pieces, draw)

    def _in_world(self, check: Callable[..., None], data: bytes, draw: random.Random) -> None:
        world = self._living_world()
        try:
            check(world, data, pieces, draw)
        except BaseException:
            self._world = None  # what it left behind must not be held against the next input
            world.close()
            raise
        finally:
            self.longest_seconds = max(self.longest_seconds, world.loop.longest)

    def _living_world(self) -> World:
        if self._world is None:
            self._world = World()
        return self._world

    def close(self) -> None:
        """End what was started for the inputs."""
        if self._admin is not None:
            self._admin.close()
        if self._world is not None:
            self._world.close()

    def all(self) -> dict[str, Kind]:
        """Return every kind by name."""
        return {
            "client": Kind(self.client, CLIENT_CORPUS, mutate),
            "worker": Kind(self.worker, WORKER_CORPUS, mutate),
            "stream": Kind(self.stream, STREAM_CORPUS, mutate),
            "json": Kind(self.json, JSON_CORPUS, mutate),
            "peers": Kind(self.peers, PEERS_CORPUS, _either(mutate, mutate_frames)),
            "answers": Kind(self.answers, ANSWERS_CORPUS, _either(mutate_bytes, mutate_answer)),
            "events": Kind(self.events, EVENTS_CORPUS, _either(mutate_bytes, mutate_events)),
            "pairs": Kind(self.pairs, PAIRS_CORPUS, _either(mutate, mutate_structure)),
            "admin": Kind(self.admin, ADMIN_CORPUS, _either(mutate, mutate_admin)),
        }


def mutate_bytes(data: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
    """Return *data* after changes of its bytes, all but the two that choose what is asked."""
    return data[:2].ljust(2, b"\0") + mutate(data[2:], corpus, draw)


def _either(
    one: Callable[[bytes, Sequence[bytes], random.Random], bytes],
    other: Callable[[bytes, Sequence[bytes], random.Random], bytes],
) -> Callable[[bytes, Sequence[bytes], random.Random], bytes]:
    """Return a mutator that changes bytes for a quarter of the inputs, and their structure for the others."""
    return lambda data, corpus, draw: (one if draw.random() < 0.25 else other)(data, corpus, draw)


class Asking:
    """A client that has asked for something and waits: it is answered from outside."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: ClientLimits) -> None:
        self._answered = Signal(loop)
        self.wire = Wire()
        self.connection = Connection(Listener(self, limits), loop)
        self.connection.connection_made(self.wire)
        self.connection.data_received(get())

    def handle(self, _request: Request, _response: Response) -> Coroutine[Any, Any, None]:
        return self._wait()

    def check_head(self, _request: Request, _response: Response) -> None:
        """Have nothing against it."""

    def refused(self, status: int) -> None:
        raise AssertionError(f"a good request was refused with {status}")

    async def _wait(self) -> None:
        await self._answered

    def leave(self) -> None:
        """End the connection, and what serves it."""
        self.connection.connection_lost(None)

    @property
    def has_whole_answer(self) -> bool:
        """Whether what was written is one answer from its head to its end."""
        head, end, body = bytes(self.wire.written).partition(b"\r\n\r\n")
        assert not head or end, "heads are written in one piece"
        if b"\r\ntransfer-encoding: chunked" in head:
            return body.endswith(b"0\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: ([0-9]+)", head)
        return length is not None and len(body) == int(length[1])
