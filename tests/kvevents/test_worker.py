"""The simulated worker publishes what its cache holds, in vLLM's form, over real sockets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
import zmq

from support.worker_process import NAME, WorkerProcess, free_port, running_worker
from turnout_worker.errors import ConfigurationError
from turnout_worker.kvevents import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEventBatch,
)
from turnout_worker.settings import KvEventsSettings, kv_events_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_MS = 10_000
END = b"\xff" * 8
PROMPT = "Which way to the station, please? " * 20


class Listener:
    """A subscriber, and a replay's asker."""

    def __init__(self, port: int, replay_port: int) -> None:
        self._context = zmq.Context()
        self._replay_port = replay_port
        self._sub = self._context.socket(zmq.SUB)
        self._sub.set(zmq.SUBSCRIBE, b"")
        self._sub.connect(f"tcp://127.0.0.1:{port}")

    def hear(self) -> tuple[bytes, int, list[Any]]:
        assert self._sub.poll(PATIENCE_MS), "nothing was published"
        topic, number, payload = self._sub.recv_multipart()
        return topic, int.from_bytes(number, "big"), msgspec.msgpack.decode(payload)

    def replay(self, first: int) -> list[tuple[int, list[Any]]]:
        asking = self._context.socket(zmq.DEALER)
        asking.connect(f"tcp://127.0.0.1:{self._replay_port}")
        asking.send_multipart([b"", first.to_bytes(8, "big")])
        found = []
        while True:
            assert asking.poll(PATIENCE_MS), "the replay has no end"
            _, _, number, payload = asking.recv_multipart()
            if number == END:
                asking.close(linger=0)
                return found
            found.append((int.from_bytes(number, "big"), msgspec.msgpack.decode(payload)))

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def published() -> Iterator[tuple[WorkerProcess, Listener]]:
    port, replay_port = free_port(), free_port()
    config = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{port}",
        "replay_endpoint": f"tcp://*:{replay_port}",
        "topic": f"kv@{NAME}",
    }
    flags = {"time_scale": 20, "kv_cache_tokens": 2048, "max_length": 2048, "lora_modules": "sql=none"}
    with running_worker(kv_events_config=json.dumps(config), **flags) as worker:
        listener = Listener(port, replay_port)
        yield worker, listener
        listener.close()


def ask(worker: WorkerProcess, prompt: str = PROMPT, model: str = NAME, **more: Any) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4, **more}
    httpx.post(f"{worker.url}/v1/chat/completions", json=body).raise_for_status()


def tokens_of(worker: WorkerProcess, prompt: str) -> list[int]:
    body = {"model": NAME, "messages": [{"role": "user", "content": prompt}]}
    found: list[int] = httpx.post(f"{worker.url}/tokenize", json=body).json()["tokens"]
    return found


def test_events_name_the_tokens_that_tokenize_gives(published: tuple[WorkerProcess, Listener]) -> None:
    """Stored blocks, their parents and tokens; removed ones when room is needed; a reset clears all; a replay repeats it."""
    worker, listener = published
    ask(worker)
    topic, number, batch = listener.hear()
    _, (stored,), rank = batch
    tokens = tokens_of(worker, PROMPT)
    assert (topic, number, rank) == (f"kv@{NAME}".encode(), 0, 0)
    assert (stored["type"], stored["parent_block_hash"], stored["block_size"]) == ("BlockStored", None, 16)
    assert (stored["medium"], stored["lora_name"]) == ("GPU", None)
    assert stored["token_ids"] == tokens[: len(tokens) // 16 * 16]
    assert len(stored["block_hashes"]) == len(tokens) // 16 > 5

    ask(worker, PROMPT + "Thank you so much, and good bye. " * 4)
    _, _, (_, (further,), _) = listener.hear()
    assert further["parent_block_hash"] in stored["block_hashes"]
    assert not set(further["block_hashes"]) & set(stored["block_hashes"])

    ask(worker, model="sql")
    _, _, (_, (adapted,), _) = listener.hear()
    assert adapted["lora_name"] == "sql"
    assert adapted["extra_keys"] == [["sql"]] * len(adapted["block_hashes"])
    assert not set(adapted["block_hashes"]) & set(stored["block_hashes"])

    ask(worker, cache_salt="pepper")
    _, _, (_, (salted,), _) = listener.hear()
    assert salted["extra_keys"] == [["pepper"], *[None] * (len(salted["block_hashes"]) - 1)]
    assert salted["token_ids"] == stored["token_ids"]
    assert not set(salted["block_hashes"]) & set(stored["block_hashes"])

    for other in range(3):
        ask(worker, f"{other} is another prompt altogether. " * 150)
    removed = {block for _, (_, events, _) in listener.replay(4) for e in events if e["type"] == "BlockRemoved" for block in e["block_hashes"]}  # fmt: skip
    assert removed & set(stored["block_hashes"]), "its room was needed"

    assert httpx.post(f"{worker.url}/reset_prefix_cache").json() == {"success": True}
    everything = listener.replay(0)
    assert [number for number, _ in everything] == list(range(len(everything)))
    assert everything[0][1] == batch
    assert everything[-1][1][1] == [{"type": "AllBlocksCleared"}]
    assert listener.replay(10_000) == []


def test_a_worker_publishes_nothing_unless_it_is_asked_to() -> None:
    """No ZeroMQ in the process: events cost those who want them."""
    with running_worker(time_scale=20) as worker:
        ask(worker)
        with open(f"/proc/{worker.process.pid}/maps", encoding="utf-8") as maps:  # noqa: PTH123 - no path of ours
            assert "zmq" not in maps.read()


def test_the_wire_is_vllms_byte_for_byte() -> None:
    """The structures of vllm/distributed/kv_events.py: tagged maps without their defaults, in a batch that is an array."""
    encode = msgspec.msgpack.Encoder().encode
    stored = BlockStored([1 << 63, 2], 7, [5, 6, 7, 8], 2, None, "GPU", None)
    assert encode(KvEventBatch(1.5, [stored, BlockRemoved([2], None), AllBlocksCleared()], 0)) == (
        b"\x93\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\x93"
        b"\x88\xa4type\xabBlockStored\xacblock_hashes\x92\xcf\x80\x00\x00\x00\x00\x00\x00\x00\x02"
        b"\xb1parent_block_hash\x07\xa9token_ids\x94\x05\x06\x07\x08\xaablock_size\x02\xa7lora_id\xc0"
        b"\xa6medium\xa3GPU\xa9lora_name\xc0"
        b"\x83\xa4type\xacBlockRemoved\xacblock_hashes\x91\x02\xa6medium\xc0"
        b"\x81\xa4type\xb0AllBlocksCleared"
        b"\x00"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "object"),
        ('{"enable_kv_cache_events": true, "endpoit": "tcp://*:1"}', "endpoit is none of"),
        ('{"enable_kv_cache_events": true, "buffer_steps": 0}', "buffer_steps cannot be 0"),
        ('{"enable_kv_cache_events": true, "endpoint": null}', "endpoint cannot be None"),
        ('{"enable_kv_cache_events": true, "publisher": "kafka"}', "neither"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(text: str, message: str) -> None:
    """With the field that is wrong."""
    with pytest.raises(ConfigurationError, match=message):
        kv_events_settings(text)


def test_vllms_configuration_is_taken_as_it_is() -> None:
    """Its defaults, its switches, and the fields that mean nothing here."""
    assert kv_events_settings(None) is None
    assert kv_events_settings('{"enable_kv_cache_events": false}') is None
    assert kv_events_settings('{"enable_kv_cache_events": true, "publisher": "null"}') is None
    config = '{"enable_kv_cache_events": true, "replay_endpoint": null, "max_queue_size": 7}'
    assert kv_events_settings(config) == KvEventsSettings()
