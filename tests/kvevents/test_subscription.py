"""Following a publisher over real sockets: whatever is lost, broken or dies, what is known is right again afterwards."""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import zmq

from support.faults import Behind, errors
from support.kv_events_publisher import CLEARED, SIZE, Publisher, publisher, removed, stored
from support.router_running import eventually
from turnout.routing.events import EventStream, ExactCache
from turnout.routing.prefix import PrefixIndex
from turnout.routing.tokens import chain
from turnout_router.fleet.kvevents import replay, subscription
from turnout_router.fleet.kvevents.replay import Turns
from turnout_router.fleet.kvevents.subscription import Subscription
from turnout_runtime.supervision import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Following:
    """A subscription and what it knows."""

    def __init__(
        self,
        turns: Turns,
        context: zmq.Context[zmq.Socket[bytes]],
        source: Publisher,
        *,
        replays: bool,
        stream: Callable[[EventStream], Any] | None = None,
    ) -> None:
        self.index = PrefixIndex()
        self.stream = EventStream(ExactCache(self.index, 0, 1000))
        self.seen: list[float] = []
        ports = (source.port, source.replay_port if replays else 0)
        self.noted: list[str] = []
        self._subscription = Subscription(
            context,
            turns,
            ("127.0.0.1", *ports),
            self.stream if stream is None else stream(self.stream),
            self.seen.append,
            note=lambda name, _: self.noted.append(name),
        )

    def matched(self, *blocks: int) -> int:
        tokens = [block for block in blocks for _ in range(SIZE)]
        return self.index.match(chain(tokens, SIZE), 1)[0]


@contextmanager
def following(source: Publisher, *, replays: bool = True) -> Iterator[Following]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    follower = Following(Turns(asyncio.get_running_loop()), context, source, replays=replays)
    follower._subscription.start()
    try:
        yield follower
    finally:
        follower._subscription.stop()
        context.destroy(linger=0)


async def test_a_router_that_comes_late_receives_everything() -> None:
    """The replay gives what was published before; what is published from then on arrives by itself."""
    with publisher() as source:
        source.publish(stored(1, 2))
        source.publish(removed(2))
        with following(source) as follower:
            await eventually(lambda: follower.stream.complete)
            assert (follower.matched(1, 2), source.asked) == (1, [0])
            source.publish(stored(2, parent=1))
            await eventually(lambda: follower.matched(1, 2) == 2)
            source.publish(CLEARED)
            await eventually(lambda: follower.matched(1, 2) == 0)
            assert follower.seen == [1.0, 1.0]


@pytest.mark.parametrize("topic", [True, False], ids=["with a topic", "without one"])
async def test_a_gap_is_replayed(topic: bool) -> None:  # noqa: FBT001 - a parameter
    """A batch that was lost on the way is had from the replay as soon as the next one shows that it is missing."""
    with publisher() as source, following(source) as follower:
        source.topic_in_replay = topic
        await eventually(lambda: follower.stream.complete)
        source.publish(stored(1))
        await eventually(lambda: follower.matched(1) == 1)
        source.publish(stored(2, parent=1), removed(1), lost=True)
        source.publish(stored(3))
        await eventually(lambda: follower.matched(3) == 1)
        assert (follower.matched(1), len(follower.stream.cache)) == (0, 2)
        assert (follower.stream.gaps, follower.stream.lost, source.asked) == (1, 0, [0, 1])


async def test_what_slips_between_replay_and_subscription_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing further is published, and still it is known soon: the router asks once more."""
    monkeypatch.setattr(subscription, "CONFIRM_SECONDS", 0.2)
    with publisher() as source, following(source) as follower:
        await eventually(lambda: follower.stream.complete)
        source.publish(stored(1), lost=True)
        await eventually(lambda: follower.matched(1) == 1)
        assert source.asked == [0, 0]


async def test_a_replay_that_loses_batches_is_continued() -> None:
    """A replay's socket drops what its reader cannot take: what is missing is asked for again."""
    with publisher() as source:
        for block in range(1, 6):
            source.publish(stored(block))
        source.holes = [1, 3]
        with following(source) as follower:
            await eventually(lambda: follower.stream.complete and follower.stream.next == 5)
            assert (len(follower.stream.cache), source.asked[:2]) == (5, [0, 1])


async def test_a_long_replay_is_had_although_little_of_it_is_kept_waiting() -> None:
    """Many more batches than wait at a time, some of which the publisher's socket drops: all of them in the end."""
    with publisher() as source:
        for block in range(1, 3_000):
            source.publish(stored(block % 900 + 1))
        with following(source) as follower:
            await eventually(lambda: follower.stream.complete and follower.stream.next == 2_999, 30.0)
            assert len(follower.stream.cache) == 900


async def test_a_replay_whose_end_is_lost_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is what a full socket drops first: the rest is asked for, until there is no more."""
    monkeypatch.setattr(replay, "GAP_SECONDS", 0.05)
    with publisher() as source:
        for block in range(1, 6):
            source.publish(stored(block))
        source.without_end = True
        with following(source) as follower:
            await eventually(lambda: source.asked[:2] == [0, 5])
            source.without_end = False
            await eventually(lambda: follower.stream.complete and follower.stream.next == 5)
            assert len(follower.stream.cache) == 5


async def test_others_have_their_turn_while_a_worker_floods() -> None:
    """Batches without end, as large as they may be: the loop goes round all the time, and what came last is known."""
    with publisher() as source, following(source) as follower:
        await eventually(lambda: follower.stream.complete)
        rounds = 0
        blocks = list(range(1, 900))
        for _ in range(30):
            source.publish(*[stored(*blocks) for _ in range(15)])
        deadline = time.monotonic() + 60
        while follower.stream.next != 30:
            assert time.monotonic() < deadline, f"only {follower.stream.next} of 30 batches were taken"
            rounds += 1
            await asyncio.sleep(0)
        assert rounds > 30, "more than one for each batch"
        await eventually(lambda: follower.matched(*blocks) == len(blocks))


async def test_a_quiet_worker_is_heard_while_others_flood() -> None:
    """Workers have their turns one after the other: what one says waits for a slice of each of the others, not for all they say."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    turns = Turns(asyncio.get_running_loop())
    with publisher() as one, publisher() as two, publisher() as quiet:
        followers = [Following(turns, context, each, replays=True) for each in (one, two, quiet)]
        for each in followers:
            each._subscription.start()
        try:
            for each in followers:
                await eventually(lambda each=each: each.stream.complete)
            events = [stored(*range(1, 900)) for _ in range(15)]
            quiet_publishes = False
            deadline = time.monotonic() + 60
            while followers[2].matched(7) != 1:
                assert time.monotonic() < deadline, "the quiet worker was not heard"
                for source, follower in zip((one, two), followers, strict=False):
                    if source.number - (follower.stream.next or 0) < 10:
                        source.publish(*events)  # so that there is always more
                if not quiet_publishes and all(each.stream.next for each in followers[:2]):
                    quiet_publishes = True
                    quiet.publish(stored(7))
                await asyncio.sleep(0.001)
            assert all(each.stream.following for each in followers)
        finally:
            for each in followers:
                each._subscription.stop()
            context.destroy(linger=0)


def test_all_who_read_have_half_of_the_time_in_turn() -> None:
    """Three that never come to an end: each has as many slices, and between two of them passes as long as one took."""
    loop = asyncio.new_event_loop()
    readable, other_end = socket.socketpair()
    with readable, other_end:
        pace, order = replay.Pace(loop), []

        class Endless:
            fd = readable.fileno()

        def step(name: str) -> bool:
            order.append((name, time.perf_counter()))
            while time.perf_counter() < order[-1][1] + replay.SLICE_SECONDS:
                pass
            return True

        slices = []
        for name in "abc":
            reader = replay.Slices(loop, pace, Endless(), functools.partial(step, name))  # type: ignore[arg-type]
            slices.append(reader)
            loop.call_soon(reader.begin, reader.run)
        loop.call_later(0.2, loop.stop)
        loop.run_forever()
        for reader in slices:
            reader.close()
        loop.close()
    names = "".join(name for name, _ in order)
    assert names == ("abc" * len(names))[: len(names)]
    assert len(names) >= 6
    gaps = [later - earlier for (_, earlier), (_, later) in itertools.pairwise(order)]
    assert min(gaps) >= 2 * replay.SLICE_SECONDS * 0.9


async def test_a_message_of_endless_frames_ends_the_connection() -> None:
    """ZeroMQ bounds each frame, not their number: the worker counts as away, and is followed anew after a pause."""
    noted: list[BaseException] = []
    with publisher() as source, following(source) as follower:
        follower._subscription._note = lambda _, error: noted.append(error)
        await eventually(lambda: follower.stream.complete)
        source.publish(stored(1))
        await eventually(lambda: follower.matched(1) == 1)
        source.send(*[b"x"] * 10_000)
        await eventually(lambda: noted)
        assert isinstance(noted[0], replay.FramesError)
        assert (follower.stream.following, follower.matched(1)) == (False, 0)
        await eventually(lambda: follower.stream.complete and follower.matched(1) == 1)
        assert len(noted) == 1


async def test_a_batch_beyond_the_bounds_is_counted_as_unreadable() -> None:
    """An array of a million empty arrays: what was known is forgotten, the next clear makes it whole."""
    with publisher() as source, following(source) as follower:
        await eventually(lambda: follower.stream.complete)
        source.publish(stored(1))
        source.publish(raw=b"\x93\x00\xdd" + (1_000_000).to_bytes(4, "big") + b"\x90" * 1_000_000 + b"\x00")
        await eventually(lambda: follower.stream.unreadable == 1)
        assert (follower.stream.complete, follower.matched(1)) == (False, 0)
        source.publish(CLEARED, stored(2))
        await eventually(lambda: follower.stream.complete and follower.matched(2) == 1)


async def test_a_worker_that_dies_is_forgotten_and_its_successor_followed() -> None:
    """With its connection goes what it had cached; on the same ports another one starts from number 0."""
    with publisher() as source:
        ports = (source.port, source.replay_port)
        follow = following(source)
        follower = follow.__enter__()
        source.publish(stored(1))
        await eventually(lambda: follower.matched(1) == 1)
    try:
        await eventually(lambda: not follower.stream.following)
        assert follower.matched(1) == 0
        with publisher(ports) as successor:
            successor.publish(stored(2))
            await eventually(lambda: follower.stream.complete and follower.matched(2) == 1)
            assert (follower.matched(1), follower.stream.next) == (0, 1)
    finally:
        follow.__exit__(None, None, None)


async def test_without_a_replay_only_what_is_heard_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that is not answered is given up in time, and asked for again later; it then makes all complete."""
    monkeypatch.setattr(replay, "REPLAY_SECONDS", 0.05)
    monkeypatch.setattr(subscription, "RETRY_SECONDS", 0.05)
    with publisher() as source:
        source.silent = True
        source.publish(stored(1))
        with following(source) as follower:
            await eventually(lambda: len(source.asked) > 1)
            source.publish(stored(2))
            await eventually(lambda: follower.matched(2) == 1)
            assert not follower.stream.complete
            source.silent = False
            await eventually(lambda: follower.stream.complete)
            source.publish(stored(3))  # what a late answer left out shows with the next batch
            await eventually(lambda: [follower.matched(n) for n in (1, 2, 3)] == [1, 1, 1])


async def test_a_worker_without_a_replay_port_is_followed_all_the_same() -> None:
    """From its start on everything is known, later only what comes."""
    with publisher() as source, following(source, replays=False) as follower:
        await eventually(lambda: follower.stream.following)
        deadline = time.monotonic() + 10
        while not follower.stream.complete:  # a subscription takes a moment to reach the publisher
            assert time.monotonic() < deadline
            if not follower.stream.next:
                source.number = 0
            source.publish(stored(1))
            await asyncio.sleep(0.02)
        assert follower.matched(1) == 1
        source.publish(stored(9), lost=True)
        source.publish(stored(2))
        await eventually(lambda: follower.matched(2) == 1)
        assert (follower.matched(1), follower.stream.complete, follower.stream.lost) == (0, False, 1)


async def test_what_no_one_can_read_is_counted_and_survived() -> None:
    """Garbage, wrong types, too few frames: what was known counts no more until the engine clears its cache."""
    with publisher() as source, following(source) as follower:
        await eventually(lambda: follower.stream.complete)
        source.publish(stored(1))
        await eventually(lambda: follower.matched(1) == 1)
        source.publish(raw=b"\xc1 is no MessagePack")
        await eventually(lambda: follower.stream.unreadable == 1)
        assert (follower.matched(1), follower.stream.complete) == (0, False)
        source.publish({"type": "BlockStored", "block_hashes": "all of them"})
        source.send(b"kv", b"no number", msgspec.msgpack.encode([1.0, [], 0]))
        source.publish(CLEARED)
        source.publish(stored(2))
        await eventually(lambda: follower.matched(2) == 1)
        assert follower.stream.complete
        assert follower.stream.unreadable > 1


async def test_a_port_that_speaks_something_else_is_tried_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong port in the configuration, or a worker that hangs up: neither busy nor loud."""
    monkeypatch.setattr(subscription, "MOST_REOPEN_SECONDS", 0.4)
    calls = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stream = EventStream(ExactCache(PrefixIndex(), 0, 10))
    wrong = Subscription(context, Turns(asyncio.get_running_loop()), ("127.0.0.1", port, port), stream, print)
    wrong.start()
    await eventually(lambda: calls > 1)
    await asyncio.sleep(1.0)
    wrong.stop()
    context.destroy(linger=0)
    server.close()
    await server.wait_closed()
    assert not stream.following
    assert calls < 15


async def test_following_costs_nothing_while_nothing_is_published() -> None:
    """The process uses no CPU to speak of for 50 idle publishers, and no callback runs."""
    with publisher() as source:
        source.publish(stored(1))
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 4096)
        turns = Turns(asyncio.get_running_loop())
        followers = [Following(turns, context, source, replays=True) for _ in range(50)]
        for follower in followers:
            follower._subscription.start()
        await eventually(lambda: all(f.stream.complete for f in followers))
        reads = 0
        original = Subscription._read

        def counted(self: Subscription) -> None:
            nonlocal reads
            reads += 1
            original(self)

        Subscription._read = counted  # type: ignore[method-assign]
        try:
            await asyncio.sleep(0.3)
        finally:
            Subscription._read = original  # type: ignore[method-assign]
        for follower in followers:
            follower._subscription.stop()
        context.destroy(linger=0)
        assert reads == 0


async def test_few_are_replayed_at_a_time() -> None:
    """A router that starts in front of many workers reads their histories in turn; one that leaves the queue blocks no other."""
    with publisher() as source:
        source.silent = True
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        turns = Turns(asyncio.get_running_loop(), at_once=2)
        followers = [Following(turns, context, source, replays=True) for _ in range(6)]
        for follower in followers:
            follower._subscription.start()
        await eventually(lambda: all(f.stream.following for f in followers) and len(source.asked) == 2)
        for follower in followers[:3]:  # two that are being replayed, and one that waits or is
            follower._subscription.stop()
        source.silent = False
        await eventually(lambda: all(f.stream.complete for f in followers[3:]))
        for follower in followers[3:]:
            follower._subscription.stop()
        assert turns._free == 2
        context.destroy(linger=0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a worker followed anew at once, whatever was raised."""
    monkeypatch.setattr(subscription, "_AFTER_FAILURE", Backoff(first_seconds=0.001, most_seconds=0.005))
    monkeypatch.setattr(subscription, "CONFIRM_SECONDS", 0.01)
    monkeypatch.setattr(subscription, "RETRY_SECONDS", 0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "method", ["connected", "confirm", "live", "replayed", "replay_ended", "replay_failed", "disconnected"]
)
async def test_whatever_is_raised_the_worker_is_followed_anew(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Each kind of exception, in each step: noted, and what is known is right again afterwards."""
    kinds: list[Exception] = errors()
    count = len(kinds)
    monkeypatch.setattr(replay, "REPLAY_SECONDS", 0.02)

    def raising(stream: EventStream) -> Any:
        real = getattr(stream, method)

        def step(*args: Any, **more: Any) -> Any:
            if kinds:
                raise kinds.pop(0)
            return real(*args, **more)

        return Behind(stream, **{method: step})

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    turns = Turns(asyncio.get_running_loop())
    with publisher() as source:
        source.silent = method == "replay_failed"
        source.publish(stored(1), stored(2, parent=1))
        follower = Following(turns, context, source, replays=True, stream=raising)
        follower._subscription.start()

        def all_raised() -> bool:
            source.publish(stored(9))
            if method == "disconnected" and not source.number % 10:
                follower._subscription.failed(OSError("to be followed anew"))
            return not kinds

        await eventually(all_raised, 30)
        source.silent = False
        source.publish(stored(3, parent=2))
        await eventually(lambda: follower.stream.complete and follower.matched(1, 2, 3) == 3)
        follower._subscription.stop()
        await asyncio.sleep(0)
        assert (turns._free, len(turns._waiting)) == (2, 0)
    context.destroy(linger=0)
    assert follower.noted.count("kv_events") >= count
    assert set(follower.noted) == {"kv_events"}


@pytest.mark.usefixtures("quick")
async def test_sockets_that_cannot_be_had_are_asked_for_again() -> None:
    """Too many open files, while hundreds of workers are to be replayed: none is lost, and no turn either."""
    failing = True
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4096)

    def socket(kind: int) -> zmq.Socket[bytes]:
        if failing and kind == zmq.DEALER:
            raise zmq.ZMQError(24, "Too many open files")
        return context.socket(kind)

    turns = Turns(asyncio.get_running_loop())
    with publisher() as source:
        source.publish(stored(1))
        few: Any = Behind(context, socket=socket)
        followers = [Following(turns, few, source, replays=True) for _ in range(300)]
        for follower in followers:
            follower._subscription.start()
        await eventually(lambda: all(f.noted for f in followers), 60)
        failing = False
        await eventually(lambda: all(f.stream.complete and f.matched(1) == 1 for f in followers), 60)
        for follower in followers:
            follower._subscription.stop()
        await asyncio.sleep(0)
        assert (turns._free, len(turns._waiting)) == (2, 0)
    context.destroy(linger=0)


@pytest.mark.usefixtures("quick")
async def test_a_worker_with_an_address_that_is_none_harms_no_one() -> None:
    """Following it raises nothing, is noted, and can be ended."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    noted: list[str] = []
    stream = EventStream(ExactCache(PrefixIndex(), 0, 10))
    turns = Turns(asyncio.get_running_loop())
    odd = Subscription(
        context, turns, ("no such host", 99_999, 1), stream, print, note=lambda name, _: noted.append(name)
    )
    odd.start()
    await eventually(lambda: len(noted) > 3)
    odd.stop()
    assert not stream.following
    context.destroy(linger=0)
