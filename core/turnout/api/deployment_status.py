"""Status of an LLMDeployment: what is. Written by the operator alone."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from turnout.api.meta import Condition, Model
from turnout.api.rules import Unique


class PoolStatus(Model):
    """What one pool is at."""

    desired: int = Field(default=0, ge=0, description="Replicas that scaling asks for.")
    replicas: int = Field(default=0, ge=0, description="Pods that exist, those on their way out included.")
    ready: int = Field(default=0, ge=0, description="Pods that serve.")
    summary: str = Field(
        default_factory=lambda pool: f"{pool['ready']}/{pool['desired']}",
        description="Ready and desired replicas at a glance, such as 2/3.",
    )


class LastScaling(Model):
    """The last change of replicas, and why."""

    time: str = Field(description="When, RFC 3339, UTC.", json_schema_extra={"format": "date-time"})
    from_: str = Field(alias="from", description="Replicas before, such as `prefill 1, decode 2`.")
    to: str = Field(description="Replicas after.")
    reason: str = Field(max_length=1024, description="Why, in one sentence.")


class LLMDeploymentStatus(Model):
    """What is. Written by the operator alone."""

    observed_generation: int = Field(
        default=0, ge=0, description="The generation of the spec that this is about."
    )
    conditions: Annotated[list[Condition], Unique("type")] = Field(
        default_factory=list,
        max_length=16,
        description="Ready, PrefillReady, DecodeReady, ModelFits, ModelCached, SLOMet, ScalingLimited; FieldsOverridden while "
        "another writer changes what the operator writes.",
    )
    prefill: PoolStatus | None = Field(default=None, description="The prefill pool.")
    decode: PoolStatus | None = Field(
        default=None, description="The decode pool (the aggregated one where there is no prefill)."
    )
    revision: str = Field(
        default="", description="The model revision that serves; the newest one once a rollout is over."
    )
    served_names: list[str] = Field(
        default_factory=list,
        description="Names that clients call it and its adapters by, conflicts left out.",
    )
    goodput_percent: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Share of recent requests that met the objectives, in percent. Absent: no requests.",
    )
    endpoint: str = Field(default="", description="Base URL of the OpenAI API inside the cluster.")
    last_scaling: LastScaling | None = Field(
        default=None, description="The last change of replicas, and why."
    )
