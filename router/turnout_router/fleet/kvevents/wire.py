"""KV events as they come over the wire, into the core's. Whatever comes, nothing here raises, and nothing takes long.

A batch is MessagePack: an array [time, [events], data-parallel rank], or a map with `ts` and `events`. An event is a map
with its name under `type` (vLLM 0.32), or an array that begins with it (older vLLM, SGLang); field for field as in
vLLM's vllm/distributed/kv_events.py. Block hashes are 64-bit numbers or whole digests.

What has other types than these is refused by the decoder before objects are made of it, and a list that is too long before it
is read.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from turnout.routing.events import BlockHash, Cleared, KvEvent, Removed, Stored
from turnout.routing.tokens import extra_of
from turnout_router.collector import collector_off

END: Final = (-1).to_bytes(8, "big", signed=True)
"""In the place of a number: the end of a replay."""
FRAMES: Final = 3
"""A published message: topic, number, batch."""
NUMBER_BYTES: Final = 8
MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""A batch describes one step of an engine. One of 16,384 tokens, with as many evicted, has 210 kB; so this is a step of
some 80,000."""
MAX_EVENTS: Final = 8_192
"""Events of a batch. vLLM writes one for each prompt in a step, and one for each block that is evicted."""
MAX_BLOCKS: Final = 16_384
"""Hashes in all events of a batch: 262,144 tokens in blocks of 16."""
MAX_TOKENS: Final = 262_144
"""Tokens in all events of a batch."""
PIECE_BLOCKS: Final = 512
"""Blocks that are stored at a time, so that others have their turn in between."""

_WHOLE_PREFIX: Final = frozenset({None, "full_attention", "mla_attention", "sink_full_attention"})
"""Kinds of layers that need all of a prefix. Others (sliding windows, recurrent states) forget most of it by design."""

_NULL: Final = b"\xc0"

_Hash = int | Annotated[bytes, Meta(max_length=128)]
_Hashes = Annotated[list[_Hash], Meta(max_length=MAX_BLOCKS)]
_Tokens = Annotated[list[int], Meta(max_length=MAX_TOKENS)]
_Text = Annotated[str, Meta(max_length=1024)]
_AllKeys = Annotated[list[Raw], Meta(max_length=MAX_BLOCKS)]
"""For each block null, or a list of what parts its cache: names, numbers, hashes, or pairs of them, as of an image and its place."""


class _Stored(Struct, gc=False):
    block_hashes: _Hashes
    parent_block_hash: _Hash | None
    token_ids: _Tokens
    block_size: int
    lora_id: int | _Text | None = None
    medium: _Text | None = None
    lora_name: _Text | None = None
    extra_keys: _AllKeys | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: _Text | None = None


class _Removed(Struct, gc=False):
    block_hashes: _Hashes
    medium: _Text | None = None
    group_idx: int | None = None


class _Name(Struct, gc=False):
    type: _Text


class _StoredMap(_Stored, tag_field="type", tag="BlockStored", kw_only=True, gc=False):
    parent_block_hash: _Hash | None = None


class _StoredArray(_Stored, array_like=True, tag="BlockStored", gc=False):
    pass


class _RemovedMap(_Removed, tag_field="type", tag="BlockRemoved", gc=False):
    pass


class _RemovedArray(_Removed, array_like=True, tag="BlockRemoved", gc=False):
    pass


class _ClearedMap(Struct, tag_field="type", tag="AllBlocksCleared", gc=False):
    pass


class _ClearedArray(Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    pass


class _NameOfArray(_Name, array_like=True, gc=False):
    pass


_Events = Annotated[list[Raw], Meta(max_length=MAX_EVENTS)]


class _BatchMap(Struct, gc=False):
    events: _Events
    ts: Raw = Raw(_NULL)


class _BatchArray(Struct, array_like=True, gc=False):
    ts: Raw
    events: _Events


_Event = _StoredMap | _RemovedMap | _ClearedMap | _StoredArray | _RemovedArray | _ClearedArray

_BATCH_MAPS: Final = msgspec.msgpack.Decoder(_BatchMap)
_BATCH_ARRAYS: Final = msgspec.msgpack.Decoder(_BatchArray)
_MAPS: Final[msgspec.msgpack.Decoder[_Event]] = msgspec.msgpack.Decoder(
    _StoredMap | _RemovedMap | _ClearedMap
)
_ARRAYS: Final[msgspec.msgpack.Decoder[_Event]] = msgspec.msgpack.Decoder(
    _StoredArray | _RemovedArray | _ClearedArray
)
_NAMES_OF_MAPS: Final = msgspec.msgpack.Decoder(_Name)
_NAMES_OF_ARRAYS: Final = msgspec.msgpack.Decoder(_NameOfArray)
_TEXTS: Final = msgspec.msgpack.Decoder(Annotated[list[_Text], Meta(max_length=64)])
_TIMES: Final = msgspec.msgpack.Decoder(float)
_LONG_KEYS: Final = 128
_KNOWN: Final = frozenset({"BlockStored", "BlockRemoved", "AllBlocksCleared"})
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Batch(NamedTuple):
    """What was published together. `at` is Unix time, 0 where it does not say."""

    at: float
    events: list[KvEvent]


def batch_of(payload: bytes) -> Batch | None:
    """Return the batch in *payload*, None where it cannot be read or is too large. Events of unknown kinds are left out."""
    if len(payload) > MAX_MESSAGE_BYTES:
        return None
    with collector_off(len(payload)):
        try:
            raw = (_BATCH_MAPS if _is_map(payload) else _BATCH_ARRAYS).decode(payload)
            found = _events(raw.events)
        except _UNREADABLE:
            return None
    return None if found is None else Batch(_time(raw.ts), found)


def _events(raw: list[Raw]) -> list[KvEvent] | None:
    """Return the events, None where one cannot be understood or there is too much in them. Raise what decoders raise."""
    found: list[KvEvent] = []
    blocks = tokens = 0
    for one in raw:
        event = _event(one)
        if event is None:
            continue
        if isinstance(event, _Stored):
            blocks += len(event.block_hashes)
            tokens += len(event.token_ids)
            if blocks > MAX_BLOCKS or tokens > MAX_TOKENS:
                return None
            if event.kv_cache_spec_kind in _WHOLE_PREFIX:
                found += _stored(event)
        elif isinstance(event, _Removed):
            blocks += len(event.block_hashes)
            if blocks > MAX_BLOCKS:
                return None
            found.append(Removed(tuple(event.block_hashes), event.medium or "GPU", event.group_idx or 0))
        else:
            found.append(Cleared())
    return found


def _event(raw: Raw) -> _Event | None:
    """Return the event, None for one of an unknown kind. Raise what decoders raise."""
    is_map = _is_map(raw)
    try:
        return (_MAPS if is_map else _ARRAYS).decode(raw)
    except msgspec.ValidationError:
        name = (_NAMES_OF_MAPS if is_map else _NAMES_OF_ARRAYS).decode(raw).type
        if name in _KNOWN:
            raise
        return None


def _is_map(payload: bytes | Raw) -> bool:
    first = memoryview(payload)[:1]
    return bool(first) and (first[0] & 0xF0 == 0x80 or first[0] in (0xDE, 0xDF))  # noqa: PLR2004 - MessagePack's own


def _is_array(payload: bytes) -> bool:
    return payload[0] & 0xF0 == 0x90 or payload[0] in (0xDC, 0xDD)  # noqa: PLR2004 - as above


def _time(raw: Raw) -> float:
    try:
        return _TIMES.decode(raw)
    except _UNREADABLE:
        return 0.0


def _stored(event: _Stored) -> list[Stored]:
    """Return *event* in pieces of at most `PIECE_BLOCKS` blocks, each behind the one before it."""
    medium, group, size = event.medium or "GPU", event.group_idx or 0, event.block_size
    blocks, tokens = tuple(event.block_hashes), tuple(event.token_ids)
    extra, parent = _extra(event), event.parent_block_hash
    if len(blocks) <= PIECE_BLOCKS:
        return [Stored(blocks, parent, tokens, size, medium, extra, group)]
    if size < 1 or len(tokens) != len(blocks) * size or (extra and len(extra) != len(blocks)):
        size, tokens, extra = 0, (), ()  # their place is not known
    pieces: list[Stored] = []
    before: BlockHash | None = parent
    for start in range(0, len(blocks), PIECE_BLOCKS):
        end = start + PIECE_BLOCKS
        piece = blocks[start:end]
        pieces.append(
            Stored(piece, before, tokens[start * size : end * size], size, medium, extra[start:end], group)
        )
        before = piece[-1]
    return pieces


def _extra(event: _Stored) -> tuple[str, ...]:
    """Return what separates each block's cache beside its tokens. Engines that list no extra keys publish adapters only."""
    keys = event.extra_keys
    if keys is None:
        adapter = event.lora_name or event.lora_id
        return () if adapter is None else (extra_of([adapter]),) * len(event.block_hashes)
    known: dict[bytes, str] = {}  # the blocks of a prompt mostly have the same
    extra = []
    for raw in keys:
        encoded = bytes(raw)
        if encoded not in known:
            known[encoded] = _extra_in(encoded)
        extra.append(known[encoded])
    return tuple(extra) if any(extra) else ()


def _extra_in(keys: bytes) -> str:
    """Return one block's extra keys in `extra_of`'s form where they are texts, as those of adapters and salts are.

    Others stand for what no router knows, an image, say: it is enough to distinguish them. Raise ValidationError for
    what is no list.
    """
    if keys == _NULL:
        return ""
    try:
        return extra_of(_TEXTS.decode(keys))
    except msgspec.ValidationError:
        if not _is_array(keys):
            raise
        return keys.hex() if len(keys) <= _LONG_KEYS else blake2b(keys, digest_size=16).hexdigest()
