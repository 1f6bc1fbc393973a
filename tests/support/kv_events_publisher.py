"""A publisher of KV events that misbehaves on request: to lose batches, to replay little, nothing, or in old forms."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

if TYPE_CHECKING:
    from collections.abc import Iterator

END = (-1).to_bytes(8, "big", signed=True)
SIZE = 4


def stored(*blocks: int, parent: int | None = None, **more: Any) -> dict[str, Any]:
    """Return vLLM's event: block 7 has the tokens 7, 7, 7, 7."""
    return {
        "type": "BlockStored",
        "block_hashes": list(blocks),
        "parent_block_hash": parent,
        "token_ids": [block for block in blocks for _ in range(SIZE)],
        "block_size": SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        **more,
    }


def removed(*blocks: int) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(blocks), "medium": "GPU"}


CLEARED = {"type": "AllBlocksCleared"}


class Publisher:
    """Sockets on free ports of the loopback, or on *ports*. Lives on the running loop."""

    def __init__(self, ports: tuple[int, int] = (0, 0)) -> None:
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        self.port = self._bind(self._pub, ports[0])
        self.replay_port = self._bind(self._router, ports[1])
        self.number = 0
        self.kept: list[tuple[int, bytes]] = []
        self.asked: list[int] = []
        self.silent = False
        """Whether replays are not answered."""
        self.topic_in_replay = True
        """Without it the form of older versions of vLLM."""
        self.holes: list[int] = []
        """Numbers that the next replay loses."""
        self.without_end = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(int(self._router.fd), self._answer)

    @staticmethod
    def _bind(socket: zmq.Socket[bytes], port: int) -> int:
        socket.set(zmq.LINGER, 0)
        socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        return int(socket.get(zmq.LAST_ENDPOINT).rpartition(b":")[2])

    def publish(self, *events: Any, lost: bool = False, raw: bytes | None = None) -> None:
        """Publish one batch; *lost*: keep it for replays only; *raw*: instead of a batch."""
        payload = msgspec.msgpack.encode([1.0, list(events), 0]) if raw is None else raw
        self.kept.append((self.number, payload))
        if not lost:
            self._pub.send_multipart((b"kv", self.number.to_bytes(8, "big"), payload))
        self.number += 1

    def send(self, *frames: bytes) -> None:
        """Send frames as they are."""
        self._pub.send_multipart(frames)

    def close(self) -> None:
        self._loop.remove_reader(int(self._router.fd))
        self._context.destroy(linger=0)

    def _answer(self) -> None:
        while True:
            try:
                who, nothing, first = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            assert nothing == b""
            self.asked.append(int.from_bytes(first, "big"))
            if self.silent:
                continue
            topic = (b"kv",) if self.topic_in_replay else ()
            holes, self.holes = self.holes, []
            for number, payload in self.kept:
                if number >= self.asked[-1] and number not in holes:
                    self._router.send_multipart((who, b"", *topic, number.to_bytes(8, "big"), payload))
            if not self.without_end:
                self._router.send_multipart((who, b"", *((b"",) if topic else ()), END, b""))


@contextmanager
def publisher(ports: tuple[int, int] = (0, 0)) -> Iterator[Publisher]:
    """Run a publisher."""
    running = Publisher(ports)
    try:
        yield running
    finally:
        running.close()
