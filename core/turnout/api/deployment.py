"""LLMDeployment: a model served by a pool of prefill and a pool of decode workers."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from turnout.api.deployment_status import LLMDeploymentStatus
from turnout.api.engine import Engine
from turnout.api.meta import Model, ObjectMeta
from turnout.api.model_source import REVISION_OF_HUB, ModelSource, Revision, SourceText
from turnout.api.quantities import Duration, Ratio
from turnout.api.rules import Rule, Unique
from turnout.api.served import LoneName
from turnout.quantities import RATIO_PATTERN, fraction
from turnout.sources import DEFAULT_REVISION
from turnout.terms import (
    MAX_NAME_LENGTH,
    AcceleratorType,
    CacheKnowledge,
    Queueing,
    Role,
    RoutingPolicy,
    ScalingMode,
)

_ANY_RATIO: Final = ("1:100", "100:1")
_LOCAL_PREFILL_BELOW_TOKENS: Final = 256
# Defaults that rules compare with, to distinguish a user's value from the API server's default.

_RATIO_OF: Final = "self.scaling.prefillToDecode."
_EVENLY: Final = "{pool}.accelerator.count % (self.engine.vllm.parallelism.pipeline * self.engine.vllm.parallelism.data) == 0"
_NAME = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")


class LoraAdapter(Model):
    """One LoRA adapter of the model."""

    name: LoneName = Field(description="What clients put into the field `model` to be answered with it.")
    source: SourceText
    revision: Revision = Field(
        default=DEFAULT_REVISION,
        description="Branch, tag or commit of a hf:// source. A change rolls prefill and decode out together.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (REVISION_OF_HUB,)


class Lora(Model):
    """LoRA adapters that the workers serve beside the model."""

    adapters: Annotated[list[LoraAdapter], Unique("name")] = Field(
        default_factory=list,
        max_length=16,
        description="The adapters. Requests for one go to a worker that has it loaded, if its queue allows. A change rolls"
        " prefill and decode out together.",
    )
    max_loaded: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Adapters that a worker keeps on its accelerator at a time; the least recently used one is evicted.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.adapters.size() > 0 || self.maxLoaded == 1",
            "lora.maxLoaded has no effect without adapters: remove it or add lora.adapters",
            lambda lora: bool(lora.adapters) or lora.max_loaded == 1,
        ),
    )


class ReplicaBounds(Model):
    """How few and how many replicas a pool may have."""

    min: int = Field(default=1, ge=1, le=1000, description="Fewest replicas.")
    max: int = Field(default=1, ge=1, le=1000, description="Most replicas.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.min <= self.max",
            "replicas.min is greater than replicas.max: raise max or lower min",
            lambda bounds: bounds.min <= bounds.max,
            field_path=".min",
        ),
    )


class Accelerator(Model):
    """What one replica runs on."""

    type: AcceleratorType = Field(
        description="Which accelerator: nodes are chosen by its product label. CPU: the processor of any node."
    )
    count: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Accelerators of one replica; the model is split over them (tensor parallelism).",
    )


class Pool(Model):
    """One pool of like workers."""

    replicas: ReplicaBounds = Field(default_factory=ReplicaBounds, description="Bounds of the replica count.")
    accelerator: Accelerator = Field(description="What one replica runs on.")


_NOT_ZERO = Rule(
    "!self.matches('^(0+(h|m|s|ms))+$')",
    "an objective of zero can never be met: write a duration such as 500ms",
    lambda text: re.fullmatch("(0+(h|m|s|ms))+", text) is None,
)


class Objectives(Model):
    """What a request must meet to count as good."""

    time_to_first_token: Annotated[Duration, _NOT_ZERO] = Field(
        default="2s", description="Longest time from the request to the first token, such as 500ms or 2s."
    )
    inter_token_latency: Annotated[Duration, _NOT_ZERO] = Field(
        default="50ms", description="Longest mean time between the tokens of a request, such as 50ms."
    )
    goodput_percent: int = Field(
        default=99, ge=1, le=100, description="Share of requests that shall meet both objectives, in percent."
    )


class RatioBounds(Model):
    """Bounds of prefill replicas divided by decode replicas."""

    min: Ratio = Field(default=_ANY_RATIO[0], description="Fewest prefill to decode replicas, such as 1:4.")
    max: Ratio = Field(default=_ANY_RATIO[1], description="Most prefill to decode replicas, such as 2:1.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"!self.min.matches('{RATIO_PATTERN}') || !self.max.matches('{RATIO_PATTERN}')"
            " || int(self.min.split(':')[0]) * int(self.max.split(':')[1])"
            " <= int(self.max.split(':')[0]) * int(self.min.split(':')[1])",
            "prefillToDecode.min is a greater ratio than prefillToDecode.max: swap them, as in min 1:4 and max 2:1",
            lambda bounds: fraction(bounds.min) <= fraction(bounds.max),
        ),
    )


class ScaleDown(Model):
    """How carefully replicas are taken away."""

    stabilization: Duration = Field(
        default="5m", description="Replicas leave only after this long without a need for them."
    )


class Scaling(Model):
    """When and how far the pools grow and shrink."""

    mode: ScalingMode = Field(
        default="Automatic",
        description="Automatic: decide and apply. Advisory: decide and report in status, change nothing. Paused: do not decide.",
    )
    kv_cache_utilization_percent: int = Field(
        default=80, ge=10, le=95, description="Share of KV cache in use above which a pool grows, in percent."
    )
    max_accelerators: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Most accelerators that both pools together may use. Unset: no such bound.",
    )
    prefill_to_decode: RatioBounds = Field(
        default_factory=RatioBounds,
        description="Bounds of prefill replicas to decode replicas.",
    )
    scale_down: ScaleDown = Field(
        default_factory=ScaleDown, description="How carefully replicas are taken away."
    )


class Admission(Model):
    """How many requests of this deployment a router admits at a time, and how many may queue. Unset: the router's own setting."""

    requests_per_worker: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Requests in flight at a time, for each worker that decodes, per router. Further ones wait.",
    )
    tokens_per_worker: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="The same in tokens: those of the prompt and of the expected output.",
    )
    waiting_requests: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Requests that may wait, per router; beyond that those of the lowest priority are refused with 503. 0: none waits.",
    )
    waiting_tokens: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="Tokens of the requests that may wait, per router."
    )
    max_wait: Duration | None = Field(
        default=None,
        description="How long a request waits for room in real time, such as 30s; then it is refused with 503.",
    )


QUEUEING_NEEDS_WORK: Final = Rule(
    "self.queueing == 'Engine' || self.policy == 'PrefixAware'",
    "queueing Router has no effect with the policy LeastLoaded, which does not estimate when a worker can start: remove it"
    " or choose PrefixAware",
    lambda routing: routing.queueing == "Engine" or routing.policy == "PrefixAware",
    field_path=".queueing",
)
"""Holds in a resource and in a router's file alike: on whatever has `queueing` and `policy`."""


class Routing(Model):
    """How the router treats requests to this deployment."""

    policy: RoutingPolicy = Field(
        default="PrefixAware",
        description=(
            "How a worker is chosen. PrefixAware: by what its prefix cache holds of the prompt, its queue and its"
            " KV room. LeastLoaded: by the tokens in flight only, for prompts that have nothing in common."
        ),
    )
    cache_knowledge: CacheKnowledge = Field(
        default="Estimated",
        description=(
            "How the router knows what workers' prefix caches hold. Estimated: from what it has sent them. Exact: from"
            " the KV events that workers publish, whichever client caused them; workers tokenize prompts for it."
            " A change restarts the workers, a few at a time."
        ),
    )
    queueing: Queueing = Field(
        default="Engine",
        description=(
            "Where requests wait that no worker can start yet. Engine: in the engines' own queues, in the order of"
            " arrival. Router: in the router, shortest first, until a worker can start one."
        ),
    )
    local_prefill_below_tokens: int = Field(
        default=_LOCAL_PREFILL_BELOW_TOKENS,
        ge=0,
        le=1_048_576,
        description="Prompts with fewer (estimated) tokens are prefilled by the decode worker itself: moving the cache costs more.",
    )
    max_output_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="Most output tokens that a request may ask for; more is refused with 400, and a request that names no"
        " bound gets this one. Unset: no such bound.",
    )
    admission: Admission = Field(
        default_factory=Admission,
        description="How many requests of this deployment a router admits at a time, and how many may queue.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.cacheKnowledge == 'Estimated' || self.policy == 'PrefixAware'",
            "routing.cacheKnowledge Exact has no effect with the policy LeastLoaded: remove it or choose PrefixAware",
            lambda routing: routing.cache_knowledge == "Estimated" or routing.policy == "PrefixAware",
            field_path=".cacheKnowledge",
        ),
        QUEUEING_NEEDS_WORK,
    )


class LLMDeploymentSpec(Model):
    """What the user wants."""

    model: ModelSource = Field(description="Which model, and under which names clients call it.")
    engine: Engine = Field(description="What runs the model.")
    lora: Lora = Field(
        default_factory=Lora, description="LoRA adapters that the workers serve beside the model."
    )
    prefill: Pool | None = Field(
        default=None,
        description="Workers that compute prompts. Absent: one aggregated pool, described by `decode`, does both phases.",
    )
    decode: Pool = Field(
        description="Workers that generate tokens (and compute prompts where `prefill` is absent)."
    )
    slo: Objectives = Field(
        default_factory=Objectives, description="What a request must meet to count as good."
    )
    scaling: Scaling = Field(
        default_factory=Scaling, description="When and how far the pools grow and shrink."
    )
    routing: Routing = Field(
        default_factory=Routing, description="How the router treats requests to this deployment."
    )
    network_policy: Literal["None", "Restrict"] = Field(
        default="None",
        description="Restrict: a NetworkPolicy lets only Turnout's router and operator and the deployment's own workers reach"
        " the workers. Other clients of theirs, such as Prometheus, need a further NetworkPolicy of yours. The cluster's"
        " network has to enforce NetworkPolicies. None: Turnout makes none.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"!has(self.engine.vllm) || ({_EVENLY.format(pool='self.decode')}"
            f" && (!has(self.prefill) || {_EVENLY.format(pool='self.prefill')}))",
            "accelerator.count is not a multiple of engine.vllm.parallelism.pipeline times data: what they leave is the tensor"
            " parallelism of a replica",
            lambda spec: all(
                spec.pool(role).accelerator.count % spec.engine.vllm_settings.parallelism.groups == 0
                for role in spec.roles
            ),
        ),
        Rule(
            "self.engine.type != 'vllm' || self.routing.cacheKnowledge == 'Estimated' || !has(self.engine.vllm)"
            " || self.engine.vllm.prefixCaching",
            "routing.cacheKnowledge Exact has no effect with engine.vllm.prefixCaching false: remove one of them",
            lambda spec: (
                spec.routing.cache_knowledge == "Estimated" or spec.engine.vllm_settings.prefix_caching
            ),
        ),
        Rule(
            "self.lora.adapters.size() > 0 || !has(self.engine.vllm) || self.engine.vllm.maxLoraRank == 16",
            "engine.vllm.maxLoraRank has no effect without adapters: remove it or add lora.adapters",
            lambda spec: bool(spec.lora.adapters) or spec.engine.vllm_settings.max_lora_rank == 16,  # noqa: PLR2004
        ),
        Rule(
            "has(self.prefill) || !has(self.engine.vllm) || self.engine.vllm.kvLoadFailure == 'Fail'",
            "engine.vllm.kvLoadFailure has no effect without a prefill pool: remove it or add spec.prefill",
            lambda spec: spec.prefill is not None or spec.engine.vllm_settings.kv_load_failure == "Fail",
        ),
        Rule(
            "!has(self.scaling.maxAccelerators) || (has(self.prefill) ? self.prefill.replicas.min"
            " * self.prefill.accelerator.count : 0) + self.decode.replicas.min * self.decode.accelerator.count"
            " <= self.scaling.maxAccelerators",
            "scaling.maxAccelerators is below what the minimum replicas need: raise it or lower replicas.min",
            lambda spec: (
                spec.scaling.max_accelerators is None
                or sum(
                    spec.pool(role).replicas.min * spec.pool(role).accelerator.count for role in spec.roles
                )
                <= spec.scaling.max_accelerators
            ),
        ),
        Rule(
            f"has(self.prefill) || (self.scaling.prefillToDecode.min == '{_ANY_RATIO[0]}'"
            f" && self.scaling.prefillToDecode.max == '{_ANY_RATIO[1]}')",
            "scaling.prefillToDecode has no effect without a prefill pool: remove it or add spec.prefill",
            lambda spec: spec.prefill is not None or spec.scaling.prefill_to_decode == RatioBounds(),
        ),
        Rule(
            f"has(self.prefill) || self.routing.localPrefillBelowTokens == {_LOCAL_PREFILL_BELOW_TOKENS}",
            "routing.localPrefillBelowTokens has no effect without a prefill pool: remove it or add spec.prefill",
            lambda spec: (
                spec.prefill is not None
                or spec.routing.local_prefill_below_tokens == _LOCAL_PREFILL_BELOW_TOKENS
            ),
        ),
        Rule(
            f"!has(self.prefill) || !{_RATIO_OF}min.matches('{RATIO_PATTERN}')"
            f" || int({_RATIO_OF}min.split(':')[0]) * self.decode.replicas.min"
            f" <= int({_RATIO_OF}min.split(':')[1]) * self.prefill.replicas.max",
            "scaling.prefillToDecode.min asks for more prefill replicas than prefill.replicas.max at the least decode replicas:"
            " raise prefill.replicas.max, or lower decode.replicas.min or the ratio",
            lambda spec: (
                spec.prefill is None
                or fraction(spec.scaling.prefill_to_decode.min) * spec.decode.replicas.min
                <= spec.prefill.replicas.max
            ),
        ),
        Rule(
            f"!has(self.prefill) || !{_RATIO_OF}max.matches('{RATIO_PATTERN}')"
            f" || int({_RATIO_OF}max.split(':')[1]) * self.prefill.replicas.min"
            f" <= int({_RATIO_OF}max.split(':')[0]) * self.decode.replicas.max",
            "scaling.prefillToDecode.max asks for more decode replicas than decode.replicas.max at the least prefill replicas:"
            " raise decode.replicas.max, or lower prefill.replicas.min or raise the ratio",
            lambda spec: (
                spec.prefill is None
                or fraction(spec.scaling.prefill_to_decode.max) * spec.decode.replicas.max
                >= spec.prefill.replicas.min
            ),
        ),
    )

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles of the pools, prefill first."""
        return ("aggregated",) if self.prefill is None else ("prefill", "decode")

    def pool(self, role: Role) -> Pool:
        """Return the pool that plays *role*. Raise KeyError where this deployment has none."""
        if role not in self.roles:
            raise KeyError(role)
        return self.prefill if role == "prefill" and self.prefill is not None else self.decode


class LLMDeployment(Model):
    """A model served by a pool of prefill and a pool of decode workers."""

    api_version: Literal["turnout.dev/v1alpha1"] = "turnout.dev/v1alpha1"
    kind: Literal["LLMDeployment"] = "LLMDeployment"
    metadata: ObjectMeta
    spec: LLMDeploymentSpec
    status: LLMDeploymentStatus = Field(default_factory=LLMDeploymentStatus)

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
            f"metadata.name is longer than {MAX_NAME_LENGTH} characters: shorten it, for the names of pods are made"
            " from it and end at 63; what clients call goes into spec.model.servedNames",
            lambda resource: len(resource.metadata.name) <= MAX_NAME_LENGTH,
        ),
        Rule(
            f"self.metadata.name.matches('^{_NAME.pattern}$')",
            "metadata.name has to begin with a letter and hold only a-z, 0-9 and '-', such as llama-3-1-8b, for Services"
            " are named after it; what clients call goes into spec.model.servedNames",
            lambda resource: _NAME.fullmatch(resource.metadata.name) is not None,
        ),
        Rule(
            "self.spec.lora.adapters.all(a, !(a.name in self.spec.model.servedNames)"
            " && (self.spec.model.servedNames.size() > 0 || a.name != self.metadata.name))",
            "an adapter has the name of the model itself: give it another one, or the two could not be told apart",
            lambda resource: not {a.name for a in resource.spec.lora.adapters} & {*resource.served_names},
        ),
    )

    @property
    def key(self) -> str:
        """``namespace/name``: what it is called in metrics, logs and between components."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def served_names(self) -> tuple[str, ...]:
        """Names that clients may call it by, before conflicts are settled."""
        return tuple(self.spec.model.served_names) or (self.metadata.name,)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names that clients may call its LoRA adapters by, before conflicts are settled."""
        return tuple(adapter.name for adapter in self.spec.lora.adapters)
