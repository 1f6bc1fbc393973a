"""What every resource shares: the base of all models, object metadata, conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel

from turnout.api.rules import VALIDATIONS, Rule

if TYPE_CHECKING:
    from pydantic_core import CoreSchema


class Model(BaseModel):
    """Base of every part of a resource: camelCase outside, frozen, no unknown field."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Constraints between this model's fields."""

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        result = handler(schema)
        if cls.rules:
            handler.resolve_ref_schema(result)[VALIDATIONS] = [rule.validation() for rule in cls.rules]
        return result


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
    last_transition_time: str = Field(
        description="When the status last changed, RFC 3339, UTC.",
        json_schema_extra={"format": "date-time"},
    )
    observed_generation: int = Field(
        default=0, ge=0, description="The generation of the spec that this is about."
    )
