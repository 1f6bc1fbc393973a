"""What sizing needs of a decoder-only language model: weights, and what one sequence leaves in memory.

A sequence keeps three things. Layers with *full* attention keep an entry of every token; layers with a sliding *window*
those of the last tokens; *state* layers (Mamba, linear attention) a block of fixed size however long the sequence is.
An entry holds a key and a value for each KV head. Multi-head latent attention (MLA) keeps one latent vector for all
heads instead, which is the same arithmetic with one KV head::

    bytes of a sequence = sum over attention layers (kept tokens x KV heads x values per head) x bytes per value
                          + state bytes

Tensor parallelism shares out KV heads; beyond their number they are replicated, as the latent of MLA always is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Self

MAX_FIELD: Final = 1 << 56
"""Largest number that a description may hold: far above every model, and small enough to multiply."""
MAX_GROUPS: Final = 64
"""Most kinds of attention layers that a description may list."""


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """Layers of one kind that keep keys and values."""

    layers: int
    kv_heads: int
    """1 for MLA: one latent for all heads."""
    values_per_head: int
    """Of one token in one layer: the sizes of key and value together, or the size of MLA's latent."""
    window_tokens: int = 0
    """Tokens that are kept; 0: all of them."""

    def values(self, tokens: int, ranks: int = 1) -> int:
        """Values that *tokens* leave in these layers on each of *ranks*, among which the KV heads are shared out."""
        kept = min(tokens, self.window_tokens) if self.window_tokens else tokens
        return self.layers * kept * -(-self.kv_heads // ranks) * self.values_per_head


@dataclass(frozen=True, slots=True)
class ModelArchitecture:
    """One model."""

    name: str
    parameters: int
    weight_bytes: int
    """Of all weights in memory."""
    layers: int
    """Layers of any kind; pipeline parallelism shares them out."""
    attention_heads: int
    head_dimension: int
    """Of queries."""
    attention: tuple[AttentionLayers, ...]
    active_parameters: int
    """Parameters that one token meets: all of them, or without the experts of a mixture that it is not sent to."""
    experts: int = 0
    """Routed experts of a layer; 0: no mixture."""
    active_experts: int = 0
    """Of these, those that one token is sent to."""
    state_layers: int = 0
    state_bytes: int = 0
    """Of one sequence, in all state layers together."""
    max_context: int = 0
    """Tokens that the model was made for; 0: not known."""

    @property
    def kv_heads(self) -> int:
        """The most KV heads of a layer."""
        return max((group.kv_heads for group in self.attention), default=1)

    @property
    def full_layers(self) -> int:
        """Layers that attend to every token."""
        return sum(group.layers for group in self.attention if not group.window_tokens)

    @property
    def expert_bytes(self) -> int:
        """Bytes of the weights of all routed experts; 0 where they are not known to be a mixture."""
        if not 0 < self.active_experts < self.experts:
            return 0
        # What a token leaves out are all but the active ones.
        idle = self.weight_bytes * (self.parameters - self.active_parameters) // self.parameters
        return min(self.weight_bytes, idle * self.experts // (self.experts - self.active_experts))

    def kv_bytes_per_token(self, bytes_per_value: int = 2, tensor_parallel: int = 1) -> int:
        """Bytes by which each token makes a sequence grow, for good, on each of *tensor_parallel* ranks."""
        growing = (group for group in self.attention if not group.window_tokens)
        return sum(group.values(1, tensor_parallel) for group in growing) * bytes_per_value

    def kv_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Bytes that one sequence of *tokens* keeps, over all ranks without what they replicate."""
        return self.rank_bytes(tokens, bytes_per_value)

    def rank_bytes(
        self, tokens: int, bytes_per_value: int = 2, *, tensor_parallel: int = 1, pipeline_parallel: int = 1
    ) -> int:
        """Bytes that one sequence of *tokens* keeps on the fullest rank.

        Pipeline stages take whole layers, so the fullest one has the share that rounding up gives.
        """
        values = sum(group.values(tokens, tensor_parallel) for group in self.attention)
        stage = -(-self.layers // pipeline_parallel)
        return -(-(values * bytes_per_value + self.state_bytes // tensor_parallel) * stage // self.layers)

    def fixed_bytes(self, bytes_per_value: int = 2, tensor_parallel: int = 1) -> int:
        """Bytes that a sequence keeps on each rank beside those that grow: full windows, and states."""
        windows = (group for group in self.attention if group.window_tokens)
        values = sum(group.values(group.window_tokens, tensor_parallel) for group in windows)
        return values * bytes_per_value + self.state_bytes // tensor_parallel

    def sequences(self, memory_bytes: int, tokens: int, bytes_per_value: int = 2) -> int:
        """How many sequences of *tokens* fit into *memory_bytes* beside nothing else."""
        return max(0, memory_bytes) // max(1, self.kv_bytes(tokens, bytes_per_value))

    def to_fields(self) -> dict[str, Any]:
        """Return this as JSON values, defaults left out: a line of the catalog, the worker's ``--architecture``."""
        made: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "attention":
                value = [
                    [group.layers, group.kv_heads, group.values_per_head, group.window_tokens]
                    if group.window_tokens
                    else [group.layers, group.kv_heads, group.values_per_head]
                    for group in value
                ]
            if value != field.default:
                made[field.name] = value
        return made

    @classmethod
    def from_fields(cls, raw: object) -> Self:
        """Return what `to_fields` has made. Raise ValueError, with the field, where *raw* is something else."""
        if not isinstance(raw, dict):
            raise ValueError("an architecture is a JSON object")  # noqa: TRY004 - of whoever wrote it
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(map(str, raw)) - known):
            raise ValueError(f"{unknown[0]} is none of {', '.join(sorted(known))}")
        name, attention = raw.get("name"), raw.get("attention")
        if not isinstance(name, str):
            raise ValueError("name must be a text")  # noqa: TRY004
        if not isinstance(attention, list) or not attention or len(attention) > MAX_GROUPS:
            raise ValueError(f"attention must list 1 to {MAX_GROUPS} kinds of layers")
        numbers: dict[str, int] = {}
        for field in fields(cls):
            if field.name not in {"name", "attention"}:
                least = 0 if isinstance(field.default, int) else 1
                numbers[field.name] = _number(raw.get(field.name, field.default), field.name, least)
        return cls(name=name, attention=tuple(map(_group, attention)), **numbers)


def _number(value: object, name: str, least: int) -> int:
    if type(value) is not int or not least <= value <= MAX_FIELD:
        raise ValueError(f"{name} must be a whole number from {least} to {MAX_FIELD}")
    return value


def _group(raw: object) -> AttentionLayers:
    names = [field.name for field in fields(AttentionLayers)]
    if not isinstance(raw, list) or not len(names) - 1 <= len(raw) <= len(names):
        raise ValueError(f"attention must list [{', '.join(names)}], the last of them optional")
    return AttentionLayers(
        *(_number(value, f"attention: {n}", 1) for n, value in zip(names, raw, strict=False))
    )
