"""What a router needs to know of a worker pod beside its labels, in one annotation that the operator writes on the pod."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError
from pydantic.alias_generators import to_camel

from turnout.api.loading import InvalidResource, faults
from turnout.api.served import SERVED_NAMES, ServedName
from turnout.terms import ANNOTATION_WORKER, WORKER_PORT, EngineType

WORKER_FACTS_VERSION: Final = 1
"""The least version that a reader has to know. A key that a reader may ignore is added without raising it."""
MAX_CHARACTERS: Final = 16_384
"""Longest annotation that is read. The names of an LLMDeployment and its adapters take up a fifth of it at most."""
MAX_NAMES: Final = 128
MAX_KV_TOKENS: Final = 1 << 24
"""Most that is written and read. A router keeps some memory for each block of a worker's KV cache, and any user who may
create pods in a namespace can write this number. Of the models in the catalog those below 2B parameters and hybrids hold more
on many accelerators; a router then takes their prefix cache for smaller than it is."""


def _known(version: int) -> int:
    if version > WORKER_FACTS_VERSION:
        raise ValueError(
            f"{version} is newer than what this router reads ({WORKER_FACTS_VERSION}): upgrade the router"
        )
    return version


class _Part(BaseModel):
    """A part of the annotation: camelCase outside, frozen, exact types, keys of later releases ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", strict=True
    )


class WorkerPorts(_Part):
    """Where a worker listens. 0: it does not."""

    http: int = Field(default=WORKER_PORT, ge=1, le=65535)
    """The OpenAI API, /health and /metrics."""
    kv_events: int = Field(default=0, ge=0, le=65535)
    """Publishes what its prefix cache holds."""
    kv_replay: int = Field(default=0, ge=0, le=65535)
    """Repeats what a router has missed of that."""


class WorkerFacts(_Part):
    """One worker. Deployment, role and revision stand in the pod's labels, by which pods are selected."""

    version: Annotated[int, AfterValidator(_known)] = Field(default=WORKER_FACTS_VERSION, ge=1)
    engine: EngineType
    """Which protocol the worker speaks."""
    names: Annotated[tuple[ServedName, ...], FailFast(), SERVED_NAMES] = Field(
        min_length=1, max_length=MAX_NAMES
    )
    """The model names that this very worker answers to, those of LoRA adapters last.

    In a rollout that changes served names, workers of both revisions serve, each under its own.
    """
    kv_tokens: int = Field(default=0, ge=0, le=MAX_KV_TOKENS)
    """Tokens that its KV cache holds; 0: not known."""
    ports: WorkerPorts = Field(default_factory=WorkerPorts)

    def to_annotation(self) -> str:
        """Return the value of the annotation: JSON on one line, the same for the same facts."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def from_annotation(cls, text: str) -> Self:
        """Return the facts in *text*, which may come from any user. Raise InvalidResource, with what is wrong where.

        A key that is missing has its default, one that is not known is ignored: routers of two releases read the same
        pods during an upgrade.
        """
        if len(text) > MAX_CHARACTERS:
            raise InvalidResource(
                f"annotation {ANNOTATION_WORKER} has {len(text)} characters, of which at most {MAX_CHARACTERS} are read"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidResource(f"annotation {ANNOTATION_WORKER}: {faults(error)}") from error
