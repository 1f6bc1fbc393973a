"""KV events as vLLM publishes them: what the prefix cache stores and forgets, over ZeroMQ, with a replay.

PUB sends [topic, number (8 bytes, big-endian), batch]; a batch is MessagePack of [time, [events], data-parallel rank].
Who has missed some sends ["", number] to the ROUTER and is sent ["", topic, number, batch] from that number on, as far
as they are kept, and then ["", "", -1, ""]. (Older versions of vLLM leave the topic out there.)
Imported only where events are asked for: workers without them do without ZeroMQ.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec
import zmq

from turnout.simulation import BlocksCached, BlocksEvicted
from turnout_worker.errors import ConfigurationError
from turnout_worker.text import TOKEN_BYTES, token_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.simulation import EngineRequest, JournaledKvCache
    from turnout.simulation.journal import Entry
    from turnout_worker.settings import KvEventsSettings

_log = logging.getLogger(__name__)

MEDIUM: Final = "GPU"
END: Final = (-1).to_bytes(8, "big", signed=True)
MAX_QUESTION_BYTES: Final = 1024
"""Longest frame of a question for a replay: a longer one ends its connection."""
_AT_ONCE: Final = 4
_AGAIN_SECONDS: Final = 0.01
_UNSIGNED: Final = (1 << 64) - 1


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True):
    """Blocks are cached: vLLM's event of this name."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[list[str] | None] | None = None
    group_idx: int | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True):
    """Blocks are cached no more: vLLM's event of this name."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, omit_defaults=True):
    """No block is cached any more: vLLM's event of this name."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class KvEventBatch(msgspec.Struct, array_like=True, omit_defaults=True):
    """Events that go out together."""

    ts: float
    events: list[KvEvent]
    data_parallel_rank: int | None = None


class KvEventPublisher:
    """The sockets. Nothing here waits: what a subscriber cannot take is dropped, and it asks for it again."""

    def __init__(
        self, settings: KvEventsSettings, host: str, note: Callable[[str, BaseException], None]
    ) -> None:
        """*note* is given what answering replays raises, under the name `kv_replay`."""
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        self._topic = settings.topic.encode()
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=settings.buffer_steps)
        self._number = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._context = zmq.Context()
        self._publisher = self._context.socket(zmq.PUB)
        self._publisher.set(zmq.LINGER, 0)
        self._publisher.set(zmq.SNDHWM, settings.hwm)
        self._replay: zmq.Socket[bytes] | None = None
        try:
            _open(self._publisher, settings.endpoint, host)
            if settings.replay_endpoint is not None:
                self._replay = self._context.socket(zmq.ROUTER)
                self._replay.set(zmq.LINGER, 0)
                self._replay.set(zmq.MAXMSGSIZE, MAX_QUESTION_BYTES)
                self._replay.bind(_on(settings.replay_endpoint, host))
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigurationError(f"--kv-events-config: an endpoint cannot be used: {error}") from error
        if self._replay is not None:
            self._loop.add_reader(int(self._replay.fd), self._answer)

    def publish(self, events: list[KvEvent]) -> None:
        """Send *events* as one batch."""
        payload = self._encoder.encode(KvEventBatch(time.time(), events, 0))
        number = self._number.to_bytes(8, "big")
        self._publisher.send_multipart((self._topic, number, payload), zmq.NOBLOCK)
        self._number += 1
        self._kept.append((number, payload))

    def stop(self) -> None:
        """Close the sockets."""
        if self._again is not None:
            self._again.cancel()
        if self._replay is not None:
            self._loop.remove_reader(int(self._replay.fd))
            self._replay.close(linger=0)
            self._replay = None
        self._context.destroy(linger=0)

    def _answer(self) -> None:
        """Answer replays that are asked for, some at a time, so that a client which asks without end does not stop the worker.

        The socket says only once that there is something to read, so what is left over is come back for.
        """
        self._again = None
        left = True
        try:
            left = self._answer_some()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a callback: nothing else would go on
            self._note("kv_replay", error)
        if left and self._replay is not None and self._again is None:
            self._again = self._loop.call_later(_AGAIN_SECONDS, self._answer)

    def _answer_some(self) -> bool:
        """Answer up to a few. Return whether there may be more."""
        replay = self._replay
        if replay is None:
            return False
        for _ in range(_AT_ONCE):
            try:
                frames = replay.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            if len(frames) != 3 or len(frames[2]) != len(END):  # noqa: PLR2004 - the client, nothing, the number
                _log.warning("a replay was asked for in %d frames that make no sense", len(frames))
                continue
            client, _, first = frames
            for number, payload in self._kept:
                if number >= first:  # of the same length, so they compare as numbers do
                    replay.send_multipart((client, b"", self._topic, number, payload), zmq.NOBLOCK)
            replay.send_multipart((client, b"", b"", END, b""), zmq.NOBLOCK)
        return True


class CacheEvents:
    """Makes events of a cache's journal. Knows the tokens of the blocks that requests under way may cache."""

    def __init__(self, cache: JournaledKvCache, block_size: int, publisher: KvEventPublisher) -> None:
        self._cache = cache
        self._block_size = block_size
        self._publisher = publisher
        self._requests: dict[str, tuple[int, ...]] = {}
        self._contents: dict[int, _Content] = {}
        self._lost = False

    def expect(
        self, request: EngineRequest, content: bytes, adapter: str | None = None, salt: str | None = None
    ) -> None:
        """Know the blocks of *request*, which has just been taken: *content* are the bytes of its tokens.

        A LoRA adapter is part of every block's event, a salt of the first one's.
        """
        width = self._block_size * TOKEN_BYTES
        self._requests[request.id] = request.block_hashes
        for index, block in enumerate(request.block_hashes):
            known = self._contents.get(block)
            if known is None:
                data = content[index * width : (index + 1) * width]
                extra = [part for part in (adapter, None if index else salt) if part]
                known = self._contents[block] = _Content(data, adapter, extra or None)
            known.requests += 1

    def forget(self, request_id: str) -> None:
        """Let go of a request that has ended: it caches nothing any more."""
        for block in self._requests.pop(request_id, ()):
            known = self._contents[block]
            known.requests -= 1
            if not known.requests:
                del self._contents[block]

    def publish(self) -> None:
        """Publish what has happened to the cache since the last call, if anything has.

        Behind a batch that could not be published, the next one says first that no block is cached: the reader knows
        less than there is then, and never more.
        """
        entries = self._cache.read()
        if not entries:
            return
        behind, self._lost = self._lost, True
        events: list[KvEvent] = [self._event(entry) for entry in entries]
        self._publisher.publish([AllBlocksCleared(), *events] if behind else events)
        self._lost = False

    def _event(self, entry: Entry) -> KvEvent:
        if isinstance(entry, BlocksCached):
            return self._stored(entry)
        if isinstance(entry, BlocksEvicted):
            return BlockRemoved([block & _UNSIGNED for block in entry.blocks], MEDIUM)
        return AllBlocksCleared()

    def _stored(self, entry: BlocksCached) -> BlockStored:
        contents = [self._contents[block] for block in entry.blocks]
        adapter = contents[0].adapter
        tokens = token_ids(b"".join(content.data for content in contents))
        return BlockStored(
            block_hashes=[block & _UNSIGNED for block in entry.blocks],
            parent_block_hash=None if entry.parent is None else entry.parent & _UNSIGNED,
            token_ids=tokens,
            block_size=self._block_size,
            lora_id=None if adapter is None else 1,
            medium=MEDIUM,
            lora_name=adapter,
            extra_keys=[content.extra for content in contents],
            group_idx=0,
        )


class _Content:
    """A block's tokens, the adapter that reads them, what parts its cache, and how many requests under way have it."""

    __slots__ = ("adapter", "data", "extra", "requests")

    def __init__(self, data: bytes, adapter: str | None, extra: list[str] | None) -> None:
        self.data = data
        self.adapter = adapter
        self.extra = extra
        self.requests = 0


def _open(socket: zmq.Socket[bytes], endpoint: str, host: str) -> None:
    """Bind wildcards and paths, connect to everything else, as vLLM does."""
    if "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://")):
        socket.bind(_on(endpoint, host))
    else:
        socket.connect(endpoint)


def _on(endpoint: str, host: str) -> str:
    """Return *endpoint* with a wildcard narrowed to the address that this worker listens on."""
    return endpoint if host == "0.0.0.0" else endpoint.replace("*", host)  # noqa: S104 - compared, not bound
