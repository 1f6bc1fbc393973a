"""TokenBudget: who may call which names. In this form it holds keys and names; limits join it when they work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from turnout.api.meta import Model, ObjectMeta


class ApiKey(Model):
    """One API key, known by its digest alone."""

    name: str = Field(
        min_length=1, max_length=63, description="What people call the key, so that it can be withdrawn."
    )
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the key in lower-case hex, as `turnout key create` prints it beside the key.",
    )


class TokenBudgetSpec(Model):
    """What the user wants."""

    keys: list[ApiKey] = Field(
        min_length=1,
        max_length=64,
        description="Keys whose holders this budget is for. A client sends one as `Authorization: Bearer KEY`.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    models: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Names that these keys may call. Empty: every name.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class TokenBudget(Model):
    """Who may call which names."""

    api_version: Literal["turnout.dev/v1alpha1"] = "turnout.dev/v1alpha1"
    kind: Literal["TokenBudget"] = "TokenBudget"
    metadata: ObjectMeta
    spec: TokenBudgetSpec

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.metadata.namespace}/{self.metadata.name}"
