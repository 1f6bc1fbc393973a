"""KV events as they come over the wire, into the core's. Whatever comes, nothing here raises.

A batch is MessagePack: an array [time, [events], data-parallel rank], or a map with `ts` and `events`. An event is a map
with its name under `type` (vLLM 0.32), or an array that begins with it (older vLLM, SGLang); field for field as in
vLLM's vllm/distributed/kv_events.py. Block hashes are 64-bit numbers or whole digests.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from turnout.routing.events import BlockHash, Cleared, KvEvent, Removed, Stored
from turnout.routing.tokens import extra_of

END: Final = (-1).to_bytes(8, "big", signed=True)
"""In the place of a number: the end of a replay."""
FRAMES: Final = 3
"""A published message: topic, number, batch."""
NUMBER_BYTES: Final = 8
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""A batch of a million tokens has about 5 MB."""

_STORED: Final = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
)
_REMOVED: Final = ("block_hashes", "medium", "group_idx")
_WHOLE_PREFIX: Final = frozenset({None, "full_attention", "mla_attention", "sink_full_attention"})
"""Kinds of layers that need all of a prefix. Others (sliding windows, recurrent states) forget most of it by design."""

_decode: Final = msgspec.msgpack.Decoder().decode


class Batch(NamedTuple):
    """What was published together. `at` is Unix time, 0 where it does not say."""

    at: float
    events: list[KvEvent]


def batch_of(payload: bytes) -> Batch | None:
    """Return what *payload* says, None where it cannot be read. Events of unknown kinds are left out."""
    try:
        raw = _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(raw, dict):
        at, events = raw.get("ts"), raw.get("events")
    elif isinstance(raw, list) and len(raw) > 1:
        at, events = raw[0], raw[1]
    else:
        return None
    if not isinstance(events, list):
        return None
    found: list[KvEvent] = []
    for one in events:
        event = _event(one)
        if event is None:
            return None
        found += event
    return Batch(float(at) if isinstance(at, int | float) else 0.0, found)


def _event(raw: object) -> tuple[KvEvent, ...] | None:
    """Return the event, nothing for one that does not matter here, None for one that cannot be read."""
    if isinstance(raw, dict):
        name, fields = raw.get("type"), raw
    elif isinstance(raw, list) and raw:
        name = raw[0]
        order = _STORED if name == "BlockStored" else _REMOVED
        fields = dict(zip(order, raw[1:], strict=False))
    else:
        return None
    if name == "AllBlocksCleared":
        return (Cleared(),)
    if name == "BlockStored":
        return _stored(fields)
    if name == "BlockRemoved":
        return _removed(fields)
    return () if isinstance(name, str) else None


def _stored(fields: dict[Any, Any]) -> tuple[KvEvent, ...] | None:
    blocks, tokens = _hashes(fields.get("block_hashes")), fields.get("token_ids")
    parent, size = fields.get("parent_block_hash"), fields.get("block_size")
    extra, group, medium = _extra(fields), fields.get("group_idx") or 0, fields.get("medium") or "GPU"
    if (
        blocks is None
        or not isinstance(tokens, list)
        or not all(type(token) is int for token in tokens)
        or not isinstance(parent, int | bytes | None)
        or type(size) is not int
        or extra is None
        or type(group) is not int
        or not isinstance(medium, str)
    ):
        return None
    kind = fields.get("kv_cache_spec_kind")
    if isinstance(kind, str | None) and kind not in _WHOLE_PREFIX:
        return ()
    return (Stored(blocks, parent, tuple(tokens), size, medium, extra, group),)


def _removed(fields: dict[Any, Any]) -> tuple[KvEvent, ...] | None:
    blocks, medium = _hashes(fields.get("block_hashes")), fields.get("medium") or "GPU"
    group = fields.get("group_idx") or 0
    if blocks is None or not isinstance(medium, str) or type(group) is not int:
        return None
    return (Removed(blocks, medium, group),)


def _hashes(raw: object) -> tuple[BlockHash, ...] | None:
    if not isinstance(raw, list) or not all(isinstance(one, int | bytes) for one in raw):
        return None
    return tuple(raw)


def _extra(fields: dict[Any, Any]) -> tuple[str, ...] | None:
    """Return what parts each block's cache beside its tokens. Engines that list no extra keys tell of adapters only."""
    keys = fields.get("extra_keys")
    if keys is None:
        adapter = fields.get("lora_name") or fields.get("lora_id")
        if adapter is None:
            return ()
        blocks = fields.get("block_hashes")
        return (extra_of([adapter]),) * len(blocks) if isinstance(blocks, list) else None
    if not isinstance(keys, list) or not all(isinstance(each, list | None) for each in keys):
        return None
    return tuple(map(extra_of, keys)) if any(keys) else ()
