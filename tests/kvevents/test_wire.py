"""Reading vLLM's KV events: each form in which they have been published, and whatever else comes over the wire."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.routing.events import WORK_AT_ONCE, Cleared, ExactCache, KvEvent, Removed, Stored, work_of
from turnout.routing.prefix import PrefixIndex
from turnout.routing.tokens import chain, extra_of
from turnout_router.collector import LARGE_BYTES, collector_off
from turnout_router.fleet.kvevents.wire import (
    MAX_BLOCKS,
    MAX_EVENTS,
    MAX_MESSAGE_BYTES,
    MAX_TOKENS,
    PIECE_BLOCKS,
    batch_of,
)
from turnout_worker.kvevents import AllBlocksCleared, BlockRemoved, BlockStored, KvEventBatch


def read(events: Any, *, whole: Any = None) -> list[KvEvent] | None:
    """Return the events of a batch as the router understands them."""
    batch = batch_of(msgspec.msgpack.encode([2.5, events, 0] if whole is None else whole))
    return None if batch is None else batch.events


def test_todays_form_is_read() -> None:
    """The structures of vLLM 0.32, encoded by the library that it uses: tagged maps within an array."""
    stored = BlockStored([1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None, [["pepper"], None], 0)
    events: list[BlockStored | BlockRemoved | AllBlocksCleared] = [
        stored,
        BlockRemoved([1], "CPU"),
        AllBlocksCleared(),
    ]
    batch = batch_of(msgspec.msgpack.encode(KvEventBatch(2.5, events, 0)))
    assert batch is not None
    assert batch.at == 2.5
    assert batch.events == [
        Stored((1, 2), None, (5, 6, 7, 8), 2, "GPU", (extra_of(["pepper"]), "")),
        Removed((1,), "CPU"),
        Cleared(),
    ]


def test_the_older_form_is_read() -> None:
    """Byte for byte: events as arrays that begin with their names, digests for hashes, no medium."""
    payload = (
        b"\x92\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\x93"
        b"\x96\xabBlockStored\x91\xc4\x02\x01\x02\xc0\x92\x05\x06\x02\xc0"
        b"\x92\xacBlockRemoved\x91\xc4\x02\x01\x02"
        b"\x91\xb0AllBlocksCleared"
    )
    batch = batch_of(payload)
    assert batch is not None
    assert batch.events == [Stored((b"\x01\x02",), None, (5, 6), 2), Removed((b"\x01\x02",)), Cleared()]


def test_a_batch_may_be_a_map() -> None:
    """Some versions of vLLM write the batch itself as a map."""
    whole = {"ts": 1.0, "events": [{"type": "AllBlocksCleared"}], "data_parallel_rank": 0}
    assert read(None, whole=whole) == [Cleared()]


def test_adapters_and_layers_are_told_apart() -> None:
    """LoRA by name or, in old events, by number; sliding windows and states are none of our business."""
    event = {
        "type": "BlockStored",
        "block_hashes": [1],
        "parent_block_hash": None,
        "token_ids": [5],
        "block_size": 1,
    }
    assert read([event | {"lora_name": "sql"}]) == [Stored((1,), None, (5,), 1, extra=(extra_of(["sql"]),))]
    assert read([event | {"lora_id": 3}]) == [Stored((1,), None, (5,), 1, extra=(extra_of([3]),))]
    assert read([event | {"extra_keys": [["sql"]], "lora_name": "sql"}]) == read(
        [event | {"lora_name": "sql"}]
    )
    assert read([event | {"kv_cache_spec_kind": "sliding_window"}]) == []
    assert read([event | {"kv_cache_spec_kind": "full_attention", "group_idx": 1}]) == [
        Stored((1,), None, (5,), 1, group=1)
    ]


def test_what_is_new_is_passed_over() -> None:
    """Unknown events and unknown fields of known ones: engines go on, and so does the router."""
    assert read([{"type": "BlockMoved", "to": "moon"}, {"type": "AllBlocksCleared", "why": "spring"}]) == [
        Cleared()
    ]
    assert read([["BlockMoved", 1]]) == []


@pytest.mark.parametrize(
    "events",
    [
        7,
        [7],
        [[]],
        [{"no": "type"}],
        [{"type": "BlockStored"}],
        [{"type": "BlockRemoved", "block_hashes": ["a"], "medium": None}],
        [{"type": "BlockRemoved", "block_hashes": [1], "medium": 7}],
        [["BlockStored", [1], None, [1.5], 1]],
        [["BlockStored", [1], "parent", [1], 1]],
        [["BlockStored", [1], None, [1], "16"]],
        [["BlockStored", [1], None, [1], 1, None, "GPU", None, "extra"]],
    ],
)
def test_what_makes_no_sense_is_said_to_be_unreadable(events: Any) -> None:
    """One event that cannot be understood: the batch's effect on the cache is unknown."""
    assert read(events) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=500)
@given(
    st.binary()
    | st.builds(
        lambda names, values: msgspec.msgpack.encode([1.0, [dict(zip(names, values, strict=False))]]),
        st.permutations(
            ["type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "extra_keys"]
        ),
        st.lists(_JSON | st.sampled_from(["BlockStored", "BlockRemoved"]), min_size=6, max_size=6),
    )
    | st.builds(
        lambda name, fields: msgspec.msgpack.encode([1.0, [[name, *fields]]]),
        st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared"]),
        st.lists(_JSON, max_size=10),
    )
    | _JSON.map(msgspec.msgpack.encode)
)
def test_nothing_that_comes_raises(payload: bytes) -> None:
    """Any bytes and any structure are read or refused."""
    batch = batch_of(payload)
    assert batch is None or all(isinstance(event, Stored | Removed | Cleared) for event in batch.events)


def array(length: int) -> bytes:
    return b"\xdd" + length.to_bytes(4, "big")


def numbers(length: int) -> bytes:
    """Return the shortest array of as many numbers."""
    return array(length) + b"\x05" * length


def stored_bytes(hashes: bytes, tokens: bytes, size: int = 1, extra: bytes = b"\xc0") -> bytes:
    """Return vLLM's event of these parts, each in MessagePack."""
    fields = {
        "type": b"\xabBlockStored",
        "block_hashes": hashes,
        "parent_block_hash": b"\xc0",
        "token_ids": tokens,
        "block_size": msgspec.msgpack.encode(size),
        "extra_keys": extra,
    }
    parts = [msgspec.msgpack.encode(name) + value for name, value in fields.items()]
    return bytes([0x80 + len(parts)]) + b"".join(parts)


def batch_bytes(*events: bytes, count: int | None = None) -> bytes:
    return b"\x93\x00" + array(len(events) if count is None else count) + b"".join(events) + b"\x00"


MANY = 1_000_000


@pytest.mark.parametrize(
    "payload",
    [
        batch_bytes(b"\x90" * MANY, count=MANY),
        batch_bytes(b"\x80" * MANY, count=MANY),
        batch_bytes(b"\x91\xb0AllBlocksCleared" * (MAX_EVENTS + 1), count=MAX_EVENTS + 1),
        batch_bytes(b"\x92\xa1X\x90" * (MAX_EVENTS + 1), count=MAX_EVENTS + 1),
        batch_bytes(b"\x92\xacBlockRemoved" + numbers(MAX_BLOCKS + 1)),
        batch_bytes(*[b"\x92\xacBlockRemoved" + numbers(MAX_BLOCKS // 2 + 1)] * 2),
        batch_bytes(stored_bytes(numbers(MAX_BLOCKS + 1), numbers(MAX_BLOCKS + 1))),
        batch_bytes(*[stored_bytes(numbers(MAX_BLOCKS // 2 + 1), numbers(0))] * 2),
        batch_bytes(stored_bytes(numbers(1), numbers(MAX_TOKENS + 1))),
        batch_bytes(*[stored_bytes(numbers(1), numbers(MAX_TOKENS // 2 + 1))] * 2),
        batch_bytes(stored_bytes(array(1) + b"\xc5\x01\x00" + b"x" * 256, numbers(1))),
        batch_bytes(stored_bytes(numbers(1), array(MANY) + b"\x90" * MANY)),
        batch_bytes(stored_bytes(numbers(1), numbers(1), extra=array(MANY) + b"\x90" * MANY)),
        batch_bytes(stored_bytes(numbers(1), numbers(1), extra=b"\x91" * MANY + b"\xc0")),
        batch_bytes(stored_bytes(numbers(1), numbers(1), extra=b"\x91\x05")),
        batch_bytes(b"\x91" * MANY + b"\xc0"),
        batch_bytes(b"\x81\xa4type" + b"\x91" * MANY + b"\xc0"),
        b"\x92" + b"\x91" * MANY + b"\xc0\x90",
        b"\x82\xa2ts\x00\xa6events" + b"\x91" * MANY + b"\xc0",
        b"\x93\x00\xdd\xff\xff\xff\xff",
        batch_bytes(stored_bytes(b"\xdd\xff\xff\xff\xff", numbers(1))),
        batch_bytes(b"\xdb" + (MANY).to_bytes(4, "big") + b"x" * MANY),
        b"\x93\x00\x90\xc6" + (MAX_MESSAGE_BYTES).to_bytes(4, "big") + b"x" * MAX_MESSAGE_BYTES,
    ],
    ids=[
        "empty arrays",
        "empty maps",
        "clears",
        "unknown events",
        "removed",
        "removed in two events",
        "stored",
        "stored in two events",
        "tokens",
        "tokens in two events",
        "a long hash",
        "tokens that are arrays",
        "extra keys",
        "nested extra keys",
        "extra keys that are a number",
        "nested events",
        "a nested name",
        "a nested time",
        "nested instead of events",
        "a length beyond the message",
        "hashes beyond the message",
        "a text for an event",
        "too large",
    ],
)
def test_what_no_step_of_an_engine_publishes_is_refused(payload: bytes) -> None:
    """Before objects are made of it: it takes no more memory than a few times its own bytes."""
    tracemalloc.start()
    try:
        assert batch_of(payload) is None
        assert tracemalloc.get_traced_memory()[1] < 16 * len(payload) + 100_000
    finally:
        tracemalloc.stop()


def test_a_large_step_is_read_in_pieces() -> None:
    """As many blocks as there may be: they end up as if they had come one by one, whatever parts they are read in."""
    count, size = MAX_BLOCKS, 16
    hashes, tokens = list(range(1, count + 1)), [number % 500 for number in range(count * size)]
    event = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": None,
        "token_ids": tokens,
        "block_size": size,
        "extra_keys": [["pepper"], *[None] * (count - 1)],
    }
    pieces = read([event])
    assert pieces is not None
    assert len(pieces) == count // PIECE_BLOCKS
    cache = ExactCache(index := PrefixIndex(), 0, count)
    for piece in pieces:
        assert work_of(piece) <= WORK_AT_ONCE
        cache.apply(piece)
    assert index.match(chain(tokens, size, "pepper"), 1) == [count]
    event |= {"token_ids": tokens[1:]}  # their place is unknown, in all of the pieces
    pieces = read([event])
    assert pieces is not None
    cache = ExactCache(PrefixIndex(), 0, count)
    for piece in pieces:
        cache.apply(piece)
    assert (len(cache), cache.unplaced) == (0, count)


def test_an_images_keys_are_told_apart() -> None:
    """Numbers, hashes and pairs of them mean nothing to a router: other keys are another cache, equal ones the same."""
    event = {
        "type": "BlockStored",
        "block_hashes": [1],
        "parent_block_hash": None,
        "token_ids": [5],
        "block_size": 1,
    }
    keys = [[["a", 1]], [["a", 2]], [b"a"], [1], ["a"], ["b" * 500, 1], ["b" * 500, 2]]
    found = [read([event | {"extra_keys": [each]}]) for each in keys]
    extras = [each[0].extra[0] for each in found if each and isinstance(each[0], Stored)]
    assert len(set(extras)) == len(keys)
    assert max(map(len, extras)) < 512
    assert read([event | {"extra_keys": [keys[0]]}]) == found[0]


def test_the_collector_rests_while_much_is_read() -> None:
    """And only then, and only where it was at work before."""
    assert gc.isenabled()
    with collector_off(LARGE_BYTES):
        assert not gc.isenabled()
        with collector_off(LARGE_BYTES):
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with collector_off(LARGE_BYTES - 1):
        assert gc.isenabled()
    assert batch_of(batch_bytes(b"\x91" * MANY + b"\xc0")) is None
    assert gc.isenabled(), "also where it is refused"


def test_deep_nesting_is_refused() -> None:
    """A message of nothing but brackets."""
    assert batch_of(b"\x91" * 200_000 + b"\x00") is None
