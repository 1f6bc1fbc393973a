"""What every resource shares: the base of all models, object metadata, conditions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Base of every part of a resource: camelCase outside, frozen, no unknown field."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


def rule(expression: str, message: str, **more: Any) -> dict[str, Any]:
    """Return a CEL validation rule for the CRD: *message* tells the user what to write instead."""
    return {"rule": expression, "message": message, **more}


def rules(*cel: dict[str, Any]) -> dict[str, Any]:
    """Return the schema extension that carries *cel* rules in a CRD."""
    return {"x-kubernetes-validations": list(cel)}


class ObjectMeta(BaseModel):
    """The part of Kubernetes' object metadata that decisions read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Condition(Model):
    """One fact about a resource, in the form of Kubernetes' metav1.Condition."""

    type: str = Field(max_length=63, description="What the condition is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(max_length=128, description="Why, in one CamelCase word.")
    message: str = Field(max_length=4096, description="Why, in a sentence that says what to do.")
    last_transition_time: str = Field(description="When the status last changed, RFC 3339, UTC.")
    observed_generation: int = Field(
        default=0, ge=0, description="The generation of the spec that this is about."
    )
