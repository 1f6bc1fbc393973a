"""Reading vLLM's KV events: each form in which they have been published, and whatever else comes over the wire."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.routing.events import Cleared, KvEvent, Removed, Stored
from turnout.routing.tokens import extra_of
from turnout_router.kvevents.wire import batch_of
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
    """One event that cannot be understood: nobody knows what the batch did to the cache."""
    assert read(events) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=500, deadline=None)
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


def test_deep_nesting_is_refused() -> None:
    """A message of nothing but brackets."""
    assert batch_of(b"\x91" * 200_000 + b"\x00") is None
