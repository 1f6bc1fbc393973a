"""LLMRoute: a name that clients call, sent to one deployment or shared out between several by weight."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from turnout.api.meta import Condition, Model, ObjectMeta
from turnout.api.rules import Rule, Unique
from turnout.api.served import SERVED_NAMES, ServedName


class RouteTarget(Model):
    """One deployment that a route leads to."""

    deployment: str = Field(
        min_length=1, max_length=63, description="Name of an LLMDeployment in the route's namespace."
    )
    weight: int = Field(
        default=1, ge=0, le=1000, description="Share of the requests, relative to the other targets' weights."
    )


class LLMRouteSpec(Model):
    """What the user wants."""

    names: Annotated[list[ServedName], Unique(), SERVED_NAMES] = Field(
        min_length=1, max_length=16, description="Names that clients put into the field `model`."
    )
    targets: Annotated[
        list[RouteTarget],
        Unique("deployment"),
        Rule(
            "self.exists(t, t.weight > 0)",
            "all weights are 0, so no target would get a request: give one a weight of 1",
            lambda targets: any(target.weight > 0 for target in targets),
        ),
    ] = Field(min_length=1, max_length=16, description="Where the requests go.")


class LLMRouteStatus(Model):
    """What is. Written by the operator alone."""

    observed_generation: int = Field(
        default=0, ge=0, description="The generation of the spec that this is about."
    )
    conditions: Annotated[list[Condition], Unique("type")] = Field(
        default_factory=list, max_length=16, description="Ready."
    )
    served_names: list[str] | None = Field(
        default=None, max_length=16, description="Names that lead to its targets, conflicts left out."
    )


class LLMRoute(Model):
    """A name that clients call, sent to one deployment or shared out between several by weight."""

    api_version: Literal["turnout.dev/v1alpha1"] = "turnout.dev/v1alpha1"
    kind: Literal["LLMRoute"] = "LLMRoute"
    metadata: ObjectMeta
    spec: LLMRouteSpec
    status: LLMRouteStatus = Field(default_factory=LLMRouteStatus)

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.metadata.namespace}/{self.metadata.name}"
