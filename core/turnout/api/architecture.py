"""What a user may say of a model's size, where the catalog does not have it or does not fit."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from turnout.api.meta import Model
from turnout.api.rules import Rule
from turnout.sizing.architecture import AttentionLayers, ModelArchitecture

_MILLION = 1_000_000
_MIB = 1 << 20
_GIB = 1 << 30


class SlidingWindow(Model):
    """Layers that attend to the last tokens only."""

    layers: int = Field(ge=1, le=1000, description="How many layers have a sliding window.")
    tokens: int = Field(ge=1, le=10_000_000, description="Tokens of the window.")


class StateLayers(Model):
    """Layers that keep a state of fixed size instead of keys and values (Mamba, linear attention)."""

    layers: int = Field(ge=1, le=1000, description="How many layers keep a state.")
    mebibytes: int = Field(
        ge=1, le=1_000_000, description="MiB that the states of one sequence take in all of them together."
    )


class Experts(Model):
    """The mixture of experts."""

    count: int = Field(ge=2, le=100_000, description="Routed experts of a layer.")
    active: int = Field(ge=1, le=100_000, description="Of these, those that a token is sent to.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.active < self.count",
            "architecture.experts.active is not below architecture.experts.count: write how many a token is sent to",
            lambda experts: experts.active < experts.count,
            field_path=".active",
        ),
    )


class Architecture(Model):
    """The size of a model, by its config.json."""

    parameters_million: int = Field(
        ge=1, le=100_000_000, description="Parameters in millions, such as 8030 for 8.03B."
    )
    active_parameters_million: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Of a mixture of experts: millions of parameters that one token meets. Unset: all of them.",
    )
    weight_gib: int | None = Field(
        default=None,
        alias="weightGiB",
        ge=1,
        le=1_000_000,
        description="GiB of the weights' files. Unset: parameters times bits.",
    )
    bits_per_parameter: int = Field(
        default=16, ge=1, le=32, description="Bits of a weight, such as 8 for FP8 and 4 for AWQ or GPTQ."
    )
    layers: int = Field(ge=1, le=1000, description="`num_hidden_layers`.")
    attention_heads: int = Field(ge=1, le=10_000, description="`num_attention_heads`.")
    kv_heads: int | None = Field(default=None, ge=1, le=10_000, description="`num_key_value_heads`.")
    head_dimension: int = Field(
        ge=1, le=100_000, description="`head_dim`, or `hidden_size` divided by `num_attention_heads`."
    )
    latent_dimension: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Instead of `kvHeads`, of a model with multi-head latent attention: `kv_lora_rank` plus"
        " `qk_rope_head_dim`.",
    )
    sliding_window: SlidingWindow | None = Field(
        default=None, description="Layers that attend to the last tokens only. Unset: none."
    )
    state: StateLayers | None = Field(
        default=None,
        description="Layers that keep a state of fixed size (Mamba, linear attention). Unset: none.",
    )
    experts: Experts | None = Field(default=None, description="The mixture of experts. Unset: none.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.activeParametersMillion) || self.activeParametersMillion <= self.parametersMillion",
            "architecture.activeParametersMillion is greater than architecture.parametersMillion: swap them",
            lambda it: (it.active_parameters_million or 0) <= it.parameters_million,
            field_path=".activeParametersMillion",
        ),
        Rule(
            "!has(self.weightGiB) || self.bitsPerParameter == 16",
            "architecture.bitsPerParameter has no effect beside architecture.weightGiB: remove one",
            lambda it: it.weight_gib is None or it.bits_per_parameter == 16,  # noqa: PLR2004 - the default
            field_path=".bitsPerParameter",
        ),
        Rule(
            "has(self.kvHeads) != has(self.latentDimension)",
            "write either architecture.kvHeads or, for multi-head latent attention, architecture.latentDimension",
            lambda it: (it.kv_heads is None) != (it.latent_dimension is None),
        ),
        Rule(
            "!has(self.kvHeads) || self.attentionHeads % self.kvHeads == 0",
            "architecture.attentionHeads is not a multiple of architecture.kvHeads: write num_attention_heads and"
            " num_key_value_heads of config.json",
            lambda it: it.kv_heads is None or it.attention_heads % it.kv_heads == 0,
            field_path=".kvHeads",
        ),
        Rule(
            "(has(self.slidingWindow) ? self.slidingWindow.layers : 0) <= self.layers"
            " - (has(self.state) ? self.state.layers : 0) && (!has(self.state) || self.state.layers < self.layers)",
            "architecture.slidingWindow.layers and architecture.state.layers leave no layer: layers counts all of them, those with"
            " full attention too",
            lambda it: (
                (0 if it.sliding_window is None else it.sliding_window.layers) <= it.layers - it.state_layers
                and it.state_layers < it.layers
            ),
            field_path=".layers",
        ),
        Rule(
            "!has(self.experts) || has(self.activeParametersMillion)",
            "architecture.experts needs architecture.activeParametersMillion: write how many million parameters a token meets",
            lambda it: it.experts is None or it.active_parameters_million is not None,
            field_path=".experts",
        ),
    )

    @property
    def state_layers(self) -> int:
        """Layers that keep a state."""
        return 0 if self.state is None else self.state.layers

    def sizing(self, name: str) -> ModelArchitecture:
        """Return what sizing needs, of the model called *name*."""
        heads, values = (
            (1, self.latent_dimension)
            if self.latent_dimension is not None
            else (self.kv_heads or 1, 2 * self.head_dimension)
        )
        windowed = 0 if self.sliding_window is None else self.sliding_window.layers
        full = self.layers - windowed - self.state_layers
        attention = [AttentionLayers(full, heads, values)] if full else []
        if self.sliding_window is not None:
            attention.append(AttentionLayers(windowed, heads, values, self.sliding_window.tokens))
        parameters = self.parameters_million * _MILLION
        return ModelArchitecture(
            name=name,
            parameters=parameters,
            weight_bytes=(
                parameters * self.bits_per_parameter // 8
                if self.weight_gib is None
                else self.weight_gib * _GIB
            ),
            layers=self.layers,
            attention_heads=self.attention_heads,
            head_dimension=self.head_dimension,
            attention=tuple(attention),
            active_parameters=(self.active_parameters_million or self.parameters_million) * _MILLION,
            experts=0 if self.experts is None else self.experts.count,
            active_experts=0 if self.experts is None else self.experts.active,
            state_layers=self.state_layers,
            state_bytes=0 if self.state is None else self.state.mebibytes * _MIB,
        )
