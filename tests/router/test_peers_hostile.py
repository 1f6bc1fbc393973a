"""The peers' port and its connections with a peer that is unknown, broken, slow, silent or lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.router_mock_backend import mock_worker
from support.router_peers import connect, knowing, routers
from support.router_running import config, eventually, eventually_async
from support.worker_process import free_port
from turnout.routing.load_tracker import InFlightRequest, LoadTracker, Prompt
from turnout.routing.policy import PrefixAware
from turnout.routing.work import WorkModel
from turnout_router.api.prefixes import MAX_BLOCKS
from turnout_router.errors import ConfigError
from turnout_router.fleet.peers import client
from turnout_router.fleet.peers.client import ConnectedPeers
from turnout_router.fleet.peers.counts import PeerCounts
from turnout_router.fleet.peers.discovery import StaticPeers, addresses_in
from turnout_router.fleet.peers.handshake import PeerIdentity, accept_handshake, open_handshake
from turnout_router.fleet.peers.mesh import Mesh, read_secret
from turnout_router.fleet.peers.messages import (
    BLOCKS,
    HEARTBEAT,
    MAX_FRAME_BYTES,
    Challenge,
    Expected,
    Finished,
    FirstToken,
    PeerError,
    Refused,
    Sent,
    framed,
    frames,
    read_handshake,
    read_messages,
)
from turnout_router.fleet.peers.receiver import PeerReceiver
from turnout_router.fleet.peers.sender import RECENT_BLOCKS, RECENT_REQUESTS, PeerSender
from turnout_router.fleet.peers.server import MAX_CONNECTIONS, MAX_PER_ADDRESS
from turnout_router.options import parse_options, settings_of
from turnout_runtime.supervision import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from support.router_running import Running

KEY = "default/tiny"


class Trackers:
    """LoadTrackers of one deployment with one worker."""

    def __init__(self) -> None:
        self.tracker = LoadTracker(256)
        self.tracker.set_backends([("w", 10_000_000)])

    def load_tracker_of(self, deployment: str) -> tuple[LoadTracker, float] | None:
        return (self.tracker, 1.0) if deployment == KEY else None

    @property
    def in_flight(self) -> int:
        return self.tracker.states["w"].in_flight

    def request(self, blocks: int = 2) -> tuple[InFlightRequest, Prompt]:
        prompt = Prompt(256 * blocks, tuple(secrets.randbits(64) for _ in range(blocks)))
        policy = PrefixAware(self.tracker, WorkModel())
        pick = policy.choose(prompt, list(self.tracker.states.values()), 0.0)
        return policy.sent(pick, prompt, 0.0), prompt


def sent(number: int, blocks: int = 2) -> Sent:
    return Sent(number, KEY, "w", 256 * blocks, tuple(range(blocks)), 256, 0, 0.1)


@asynccontextmanager
async def mesh(
    trackers: Trackers, *peers: int, secret: bytes | None = None, port: int = 0
) -> AsyncIterator[tuple[Mesh, int]]:
    supervisor = Supervisor(lambda _: None, logging.getLogger("test"))
    sources = [StaticPeers([("127.0.0.1", peer) for peer in peers])] if peers else []
    one = Mesh(trackers, sources, secret, 0.005, supervisor)
    port = await one.start("127.0.0.1", port)
    task = asyncio.create_task(one.run())
    try:
        yield one, port
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await one.stop()
        await supervisor.stop()


@asynccontextmanager
async def connected_peer(
    port: int, identity: PeerIdentity | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Play a router that reports requests."""
    reader, writer = await connect(port)
    try:
        await open_handshake(identity or PeerIdentity(), reader, writer, lambda _: None)
        yield reader, writer
    finally:
        writer.transport.abort()


class Deaf:
    """Hears, and does nothing about it."""

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Forget it."""

    def cut(self) -> None:
        """Forget that, too."""


class ForgetfulPeer:
    """A router that reads nothing of its first conversation, and all of those that follow."""

    def __init__(self) -> None:
        self.received: list[int] = []
        """Reported requests, by connection."""
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await accept_handshake(PeerIdentity(), reader, writer)
            self.received.append(0)
            if len(self.received) == 1:
                await asyncio.Event().wait()
            while True:
                messages = await read_messages(reader)
                self.received[-1] += sum(isinstance(message, Sent) for message in messages)
                if not messages:
                    writer.write(HEARTBEAT)
        finally:
            writer.transport.abort()


async def closed(reader: asyncio.StreamReader, seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass


GARBAGE = {
    "HTTP": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a length without end": b"\xff\xff\xff\xff",
    "MessagePack of something else": framed({"version": 1}),
    "a handshake of the wrong side": framed([3, b""]),
    "an unknown handshake": framed([9, 1, 2, 3]),
    "zeros": bytes(64),
    "random": bytes(range(7, 255)) * 3,
}


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE.keys())
async def test_an_unknown_peer_is_cut_off_and_the_routers_go_on(payload: bytes) -> None:
    """Whatever comes instead of a hello ends that connection, tracks no request, and harms no other."""
    trackers = Trackers()
    async with mesh(trackers) as (one, port), connected_peer(port) as (_, peer):
        peer.write(framed([sent(1)]))
        await eventually(lambda: trackers.in_flight == 1)
        reader, writer = await connect(port)
        writer.write(payload)
        await closed(reader)
        writer.close()
        assert one.counts.ended == {"garbage": 1}
        peer.write(framed([sent(2)]))
        await eventually(lambda: trackers.in_flight == 2)


NONSENSE = {
    "no list": framed({"a": 1}),
    "unknown messages": framed([[77, 1]]),
    "a negative number": framed([[2, -1]]),
    "a time that is none": framed([[3, 1, float("nan")]]),
    "too many blocks": framed([Sent(1, KEY, "w", 1, (0,) * (MAX_BLOCKS + 1), 1, 0, 0.0)]),
    "a frame beyond all bounds": (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    "text that is none": framed([sent(1)]).replace(b"default", b"def\xff\xfflt"),
    "nesting without end": (200_004).to_bytes(4, "big") + b"\x91\x93\x02\x01" + b"\x91" * 200_000,
    "no MessagePack": b"\x00\x00\x00\x02\xc1\xc1",
}


@pytest.mark.parametrize("payload", NONSENSE.values(), ids=NONSENSE.keys())
async def test_a_peer_that_talks_nonsense_is_dropped_with_all_that_it_reported(payload: bytes) -> None:
    """Its requests in flight count no longer."""
    trackers = Trackers()
    async with mesh(trackers) as (one, port), connected_peer(port) as (reader, writer):
        writer.write(framed([sent(1)]))
        await eventually(lambda: trackers.in_flight == 1)
        writer.write(payload)
        await closed(reader)
        await eventually(lambda: trackers.in_flight == 0)
        assert one.counts.ended == {"garbage": 1}
        assert (one.counts.incoming, one.counts.requests) == (0, 0)


async def test_a_wrong_secret_is_refused_on_either_side(tmp_path: Path) -> None:
    """Neither router reports to the other, both log that, and both serve."""
    files = []
    for number, secret in enumerate(("right", "wrong")):
        files.append(tmp_path / f"secret-{number}")
        files[-1].write_text(f"{secret}\n")
    async with (
        mock_worker() as one,
        mock_worker() as two,
        routers(
            tmp_path, config([("aggregated", w.url) for w in (one, two)]), (files[0], files[1], None)
        ) as running,
    ):

        async def refused() -> bool:
            return all([await _ended(r, "secret") and await _ended(r, "refused") for r in running[:2]])

        await eventually_async(refused)
        for r in running:
            assert await r.metric("turnout_router_peers", direction="outgoing") == 0
            assert (await r.chat("hello " * 1000)).status_code == 200
            assert await r.metric("turnout_router_peer_messages_total", direction="received") == 0


async def test_routers_with_the_same_secret_talk(tmp_path: Path) -> None:
    """White space around it does not count."""
    files = [tmp_path / "a.key", tmp_path / "b.key"]
    files[0].write_bytes(b"the secret")
    files[1].write_bytes(b"the secret\n")
    async with (
        mock_worker() as one,
        mock_worker() as two,
        routers(tmp_path, config([("aggregated", w.url) for w in (one, two)]), (files[0], files[1])) as both,
    ):
        await knowing(both, 1)


async def test_a_proof_holds_for_one_conversation_only() -> None:
    """A recorded hello does not open a second one: the nonce is another."""
    identity = PeerIdentity(b"secret")
    async with mesh(Trackers(), secret=b"secret") as (one, port):
        reader, writer = await connect(port)
        challenge = await read_handshake(reader)
        proof = identity.proof(b"turnout teller", challenge, identity.number, b"n" * 16)
        hello = framed([2, 1, identity.number, b"n" * 16, BLOCKS, proof])
        writer.write(hello)
        assert type(await read_handshake(reader)).__name__ == "Welcome"
        again, writer_again = await connect(port)
        await read_handshake(again)
        writer_again.write(hello)
        refused = await read_handshake(again)
        assert "wrong secret" in refused.reason
        await closed(again)
        assert one.counts.ended == {"secret": 1}
        for each in (writer, writer_again):
            each.transport.abort()


async def test_prompts_that_are_cut_otherwise_and_other_versions_are_refused() -> None:
    """Blocks of another size mean nothing here; the peer gets the reason."""
    async with mesh(Trackers()) as (one, port):
        for version, blocks, reason in (
            (1, "xxh3-64/333", "prompts are cut"),
            (2, BLOCKS, "version"),
        ):
            reader, writer = await connect(port)
            await read_handshake(reader)
            writer.write(framed([2, version, b"i" * 16, b"n" * 16, blocks, b""]))
            assert reason in (await read_handshake(reader)).reason
            await closed(reader)
            writer.close()
        assert one.counts.ended == {"blocks": 1, "version": 1}


async def test_no_peer_writes_lines_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Text of an unknown peer is quoted in the log."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(framed(Challenge(1, b"x" * 16, b"n" * 16)))
        await read_handshake(reader)
        writer.write(framed(Refused("no\nERROR all is lost")))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with mesh(Trackers(), server.sockets[0].getsockname()[1]) as (one, port):
        await eventually(lambda: one.counts.ended.get("refused"))
        reader, writer = await connect(port)
        await read_handshake(reader)
        writer.write(framed([2, 1, b"i" * 16, b"n" * 16, "a\nb", b""]))
        await closed(reader)
        writer.close()
    server.close()
    assert len(caplog.records) >= 2
    assert not [record for record in caplog.records if "\n" in record.getMessage()]


async def test_who_says_nothing_is_cut_off() -> None:
    """Neither a handshake that does not come nor a peer without heartbeats is waited for."""
    trackers = Trackers()
    async with mesh(trackers) as (one, port), connected_peer(port) as (reader, writer):
        writer.write(framed([sent(1)]))
        await eventually(lambda: trackers.in_flight == 1)
        unknown, unknown_writer = await connect(port)
        await closed(unknown)
        unknown_writer.close()
        await closed(reader)
        await eventually(lambda: trackers.in_flight == 0)
        assert one.counts.ended == {"silent": 2}


async def test_signs_of_life_are_returned_and_keep_a_quiet_peer() -> None:
    """A router without requests stays connected."""
    async with mesh(Trackers()) as (one, port), connected_peer(port) as (reader, writer):
        for _ in range(3):
            writer.write(HEARTBEAT)
            async with asyncio.timeout(2):
                assert await read_messages(reader) == []
        assert one.counts.incoming == 1


async def test_a_peer_that_does_not_read_is_bounded_cut_off_and_sent_the_state_anew() -> None:
    """What it leaves unread stays below a bound; after it reconnects, it gets the open requests, and no more."""
    peer = ForgetfulPeer()
    server = await asyncio.start_server(peer.accept, "127.0.0.1", 0, limit=4096)
    try:
        trackers = Trackers()
        async with mesh(trackers, server.sockets[0].getsockname()[1]) as (one, _):
            await eventually(lambda: peer.received)
            numbers = []
            most = 0
            longest = trackers.request(MAX_BLOCKS)
            async with asyncio.timeout(60):
                while "slow" not in one.counts.ended:
                    numbers += [one.sender.sent(KEY, *longest) for _ in range(10)]
                    (peer_client,) = [each for each, _ in one._clients.values()]
                    if peer_client._writer is not None:
                        most = max(most, peer_client._writer.transport.get_write_buffer_size())
                    await asyncio.sleep(0.001)
            assert most < client.UNREAD_BYTES + 64 * 40_000
            for number in numbers[3:]:
                one.sender.finished(number, None, 0)
            await eventually(lambda: peer.received[1:] == [3 + RECENT_BLOCKS // MAX_BLOCKS])
            assert one.counts.ended["slow"] == 1
            one.sender.sent(KEY, *trackers.request())
            await eventually(lambda: peer.received[1:] == [4 + RECENT_BLOCKS // MAX_BLOCKS])
    finally:
        server.close()
        await peer.stop()


async def test_a_router_that_connects_again_replaces_its_old_connection() -> None:
    """Its machine forgot the connection without closing it: its requests there are dropped, those of the new one count."""
    trackers, identity = Trackers(), PeerIdentity()
    async with mesh(trackers) as (one, port), connected_peer(port, identity) as (old, writer):
        writer.write(framed([sent(1), sent(2)]))
        await eventually(lambda: trackers.in_flight == 2)
        async with connected_peer(port, identity) as (_, new):
            await closed(old)
            new.write(framed([sent(1)]))
            await eventually(lambda: trackers.in_flight == 1)
            assert one.counts.incoming == 1
        await eventually(lambda: trackers.in_flight == 0)


@pytest.mark.parametrize("addresses", [1, 8])
async def test_unknown_clients_do_not_keep_routers_out(addresses: int) -> None:
    """Incomplete connections are closed, the oldest first; connected routers are not touched."""
    trackers = Trackers()
    async with mesh(trackers) as (one, port), connected_peer(port) as (_, first):
        first.write(framed([sent(1)]))
        await eventually(lambda: trackers.in_flight == 1)
        unknown = [
            await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.0.{2 + n % addresses}", 0))
            for n in range(MAX_CONNECTIONS + 40)
        ]
        await eventually(lambda: "too_many" in one.counts.ended)
        most = MAX_PER_ADDRESS + 1 if addresses == 1 else MAX_CONNECTIONS
        assert len(one._server._all) <= most
        async with connected_peer(port) as (_, second):
            second.write(framed([sent(1)]))
            await eventually(lambda: trackers.in_flight == 2)
            assert one.counts.incoming == 2
        for _, writer in unknown:
            writer.transport.abort()


async def test_routers_at_one_address_are_bounded() -> None:
    """Without a secret every process is accepted: one address takes no more than its part."""
    async with mesh(Trackers()) as (one, port), contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_PER_ADDRESS):
            await stack.enter_async_context(connected_peer(port))
        reader, writer = await connect(port)
        await closed(reader)
        writer.close()
        assert one.counts.ended == {"too_many": 1}
        assert one.counts.incoming == MAX_PER_ADDRESS
        other = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        assert isinstance(await read_handshake(other[0]), Challenge)
        other[1].transport.abort()


async def test_the_adapters_of_others_requests_are_in_use() -> None:
    """So that no other adapter is thought to find their room."""
    here, there = Trackers(), Trackers()
    async with mesh(there) as (_, port), mesh(here, port) as (one, _):
        prompt = Prompt(512, (1, 2), adapter="sql")
        number = one.sender.sent(
            KEY, here.tracker.sent(here.tracker.states["w"], prompt, 0, 0.1, 0.0), prompt
        )
        await eventually(lambda: there.tracker.states["w"].adapter_uses == {"sql": 1})
        one.sender.finished(number, None, 0)
        await eventually(lambda: not there.tracker.states["w"].adapter_uses)


async def test_a_peer_that_is_away_receives_all_as_soon_as_it_listens() -> None:
    """Tried again and again, for it may be starting."""
    port = free_port()
    here, there = Trackers(), Trackers()
    async with mesh(here, port) as (one, _):
        request, prompt = here.request()
        number = one.sender.sent(KEY, request, prompt)
        one.sender.first_token(number)
        await eventually(lambda: one.counts.ended.get("closed"))
        async with mesh(there, port=port):
            await eventually(lambda: there.tracker.states["w"].running == 1)
            one.sender.finished(number, 256, 512)
            await eventually(lambda: there.in_flight == 0)


async def test_what_is_kept_for_late_joiners_is_bounded() -> None:
    """By requests and by blocks; the latest are kept, and reported as ended."""
    trackers, counts = Trackers(), PeerCounts()
    sender = PeerSender(asyncio.get_running_loop(), counts, 0.0)
    for blocks, kept in ((2, RECENT_REQUESTS), (MAX_BLOCKS, RECENT_BLOCKS // MAX_BLOCKS)):
        request = trackers.request(blocks)
        for _ in range(RECENT_REQUESTS + 10):
            number = sender.sent(KEY, *request)
            sender.finished(number, None, 0)
        before = sender.begin(Deaf())
        assert len(before) == 2 * kept
        assert before[-1] == Finished(number, None, 0)
    sender.stop()


def test_one_router_under_two_addresses_is_reported_once() -> None:
    """Neither itself nor a router that is connected already."""
    connected = ConnectedPeers(b"me")
    connected.take(b"you")
    for identity, fault in ((b"me", "self"), (b"you", "twice")):
        with pytest.raises(PeerError) as raised:
            connected.take(identity)
        assert raised.value.fault == fault
    connected.free(b"you")
    connected.take(b"you")


@given(st.binary(max_size=600))
async def test_whatever_bytes_come_only_known_errors_follow(data: bytes) -> None:
    """Greetings and messages alike: understood, refused, or an end too early."""
    for read in (read_handshake, read_messages):
        reader = asyncio.StreamReader()
        reader.feed_data(len(data).to_bytes(4, "big") + data)
        reader.feed_eof()
        with contextlib.suppress(PeerError):
            await read(reader)
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        with contextlib.suppress(PeerError, EOFError):
            await read(reader)


_NUMBERS = st.integers(0, 5)
_MESSAGES = st.one_of(
    st.builds(
        Sent,
        _NUMBERS,
        st.sampled_from([KEY, "default/none"]),
        st.sampled_from(["w", "x"]),
        st.integers(0, 1 << 31),
        st.lists(st.integers(0, (1 << 64) - 1), max_size=4).map(tuple),
        st.integers(0, 1 << 31),
        st.integers(0, 1 << 62),
        st.floats(0, 1e6),
        st.sampled_from([None, "sql"]),
    ),
    st.builds(FirstToken, _NUMBERS),
    st.builds(Expected, _NUMBERS, st.floats(0, 1e6)),
    st.builds(Finished, _NUMBERS, st.one_of(st.none(), st.integers(0, 1 << 31)), st.integers(0, 1 << 31)),
)


@given(st.lists(_MESSAGES, max_size=30))
async def test_whatever_a_peer_reports_is_written_read_and_forgotten(payload: list[Sent]) -> None:
    """Frames carry what was written; after it is tracked and closed, nothing stays in flight."""
    reader = asyncio.StreamReader()
    reader.feed_data(b"".join(frames(payload)))
    reader.feed_eof()
    trackers, counts = Trackers(), PeerCounts()
    receiver = PeerReceiver(trackers, counts, lambda: 1.0)
    read: list[object] = []
    with contextlib.suppress(EOFError):
        while True:
            messages = await read_messages(reader)
            read += messages
            receiver.take(messages)
    assert read == payload
    assert counts.requests == len(receiver)
    receiver.close()
    state = trackers.tracker.states["w"]
    assert (counts.requests, trackers.in_flight, state.cache.held, state.adapter_uses) == (0, 0, 0, {})


def test_frames_of_the_longest_prompts_stay_within_their_bound() -> None:
    """So that no peer refuses what another one sends."""
    longest = Sent(
        1 << 62, "d" * 300, "b" * 300, 1 << 31, ((1 << 64) - 1,) * MAX_BLOCKS, 1 << 31, 1 << 62, 1.0
    )
    short = Sent(1 << 62, "d" * 300, "b" * 300, 1, (), 1, 0, 1.0)
    for messages in ([longest] * 5, [short] * 2000, [*[short] * 255, longest] * 3):
        assert all(len(frame) <= MAX_FRAME_BYTES for frame in frames(messages))


def test_a_routers_pod_is_reported_from_its_address_to_its_end() -> None:
    """Ready or not: a router that drains has requests in flight, too."""
    ports = [{"name": "http", "containerPort": 8080}, {"name": "peers", "containerPort": 9092}]
    pod = {
        "metadata": {"name": "r", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "router", "ports": ports}]},
        "status": {"podIP": "10.0.0.1", "phase": "Running", "conditions": []},
    }
    assert addresses_in(pod) == {("10.0.0.1", 9092)}
    assert addresses_in(pod | {"status": {"podIP": "10.0.0.1", "phase": "Failed"}}) == frozenset()
    assert addresses_in(pod | {"status": {}}) == frozenset()
    assert addresses_in(pod | {"spec": {"containers": [{"ports": ports[:1]}]}}) == frozenset()


async def test_options_that_make_no_sense_are_refused_with_a_word(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Ports, Services, and a secret without peers; what makes sense becomes settings."""
    for flags, word in (
        (["--peer", "nowhere"], "write HOST:PORT"),
        (["--peer", "host:0"], "write HOST:PORT"),
        (["--peers-pods", "name"], "write NAMESPACE/LABEL=VALUE"),
        (["--peers-secret-file", "x"], "needs one of"),
    ):
        with pytest.raises(SystemExit):
            parse_options(flags)
        assert word in capsys.readouterr().err
    assert settings_of(parse_options([])).peers is None
    peers = settings_of(parse_options(["--peer", "[::1]:9", "--peer", "r:7"])).peers
    assert peers is not None
    assert (peers.port, peers.hosts) == (9092, (("::1", 9), ("r", 7)))
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for path, word in ((empty, "must have 1 to"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ConfigError, match=word):
            read_secret(path)


async def _ended(r: Running, reason: str) -> bool:
    return await r.metric("turnout_router_peer_conversations_ended_total", reason=reason) > 0
