"""TokenBudget: who may call which names. In this form it holds keys and names; limits join it when they work."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from turnout.api.meta import Condition, Model, ObjectMeta
from turnout.api.rules import Rule, Unique
from turnout.api.served import CallableName
from turnout.terms import Priority

Scope = Literal["Namespace", "Cluster"]


class ApiKey(Model):
    """One API key, known by its digest alone."""

    name: str = Field(
        min_length=1, max_length=63, description="What people call the key, so that it can be withdrawn."
    )
    sha256: Annotated[
        str,
        Rule(
            "self.matches('^[0-9a-f]{64}$')",
            "not a SHA-256 digest: write its 64 lower-case hex digits as `turnout key create` prints them, never the key itself",
            lambda text: re.fullmatch("[0-9a-f]{64}", text) is not None,
        ),
    ] = Field(
        max_length=128,
        description="SHA-256 of the key in lower-case hex, as `turnout key create` prints it beside the key.",
    )


class TokenBudgetSpec(Model):
    """What the user wants."""

    keys: Annotated[
        list[ApiKey],
        Unique("name"),
        Rule(
            "self.all(k, self.exists_one(o, o.sha256 == k.sha256))",
            "two entries hold the digest of the same key: remove one, or it could not be withdrawn by its name",
            lambda keys: len({key.sha256 for key in keys}) == len(keys),
        ),
    ] = Field(
        min_length=1,
        max_length=64,
        description="Keys whose holders this budget is for. A client sends one as `Authorization: Bearer KEY`.",
    )
    priority: Priority = Field(
        default="Normal",
        description="Which requests go first where a deployment has no room for all: High before Normal before Low."
        " With the header x-turnout-priority a client can lower it for one request, never raise it.",
    )
    explain: bool = Field(
        default=False,
        description="Whether holders may ask with x-turnout-explain why their requests went where they did. The reason"
        " contains names of workers and their load.",
    )
    models: Annotated[list[CallableName], Unique()] = Field(
        default_factory=list,
        max_length=64,
        description="Names that these keys may call. Empty: every name of the scope.",
    )
    scope: Scope = Field(
        default="Namespace",
        description="Whose names these keys open. Namespace: those of deployments, adapters and routes in the budget's own"
        " namespace. Cluster: those of every namespace that the router serves; this holds only for a budget in the"
        " namespace of the router itself, elsewhere it means Namespace and the condition Ready says so.",
    )


class TokenBudgetStatus(Model):
    """What is. Written by the operator alone."""

    observed_generation: int = Field(
        default=0, ge=0, description="The generation of the spec that this is about."
    )
    conditions: Annotated[list[Condition], Unique("type")] = Field(
        default_factory=list, max_length=16, description="Ready."
    )
    accepted_keys: list[str] | None = Field(
        default=None,
        max_length=64,
        description="Names of the keys that are valid, those left out that another budget had first.",
    )


class TokenBudget(Model):
    """API keys, and the names that they may call."""

    api_version: Literal["turnout.dev/v1alpha1"] = "turnout.dev/v1alpha1"
    kind: Literal["TokenBudget"] = "TokenBudget"
    metadata: ObjectMeta
    spec: TokenBudgetSpec
    status: TokenBudgetStatus = Field(default_factory=TokenBudgetStatus)

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.metadata.namespace}/{self.metadata.name}"
