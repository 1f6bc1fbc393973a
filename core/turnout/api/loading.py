"""Reading resources as the API server hands them out: what does not validate ends in one readable line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from turnout.api.budget import TokenBudget
from turnout.api.deployment import LLMDeployment
from turnout.api.route import LLMRoute

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

_Resource = TypeVar("_Resource", bound=BaseModel)
_MAX_FAULTS = 8
"""Faults named in one message; the rest is counted, for a message has to fit into a condition."""


class InvalidResource(ValueError):  # noqa: N818 - a state that a resource is in, reported in its condition
    """A resource that this version cannot use. Its text names each faulty field and what is wrong with it."""


def load_deployment(raw: Mapping[str, Any]) -> LLMDeployment:
    """Return the LLMDeployment in *raw*.

    Fields that this version does not know are left out, so that objects stored under another schema
    load. Raise InvalidResource where what remains cannot be used.
    """
    return _load(LLMDeployment, raw)


def load_route(raw: Mapping[str, Any]) -> LLMRoute:
    """Return the LLMRoute in *raw*, on the terms of `load_deployment`."""
    return _load(LLMRoute, raw)


def load_budget(raw: Mapping[str, Any]) -> TokenBudget:
    """Return the TokenBudget in *raw*, on the terms of `load_deployment`."""
    return _load(TokenBudget, raw)


def faults(error: ValidationError) -> str:
    """Return what pydantic found as one line: ``path: message`` of each fault, paths as in the manifest."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    named = [_fault(details) for details in found[:_MAX_FAULTS]]
    if len(found) > _MAX_FAULTS:
        named.append(f"and {len(found) - _MAX_FAULTS} more")
    return "; ".join(named)


def _load(model: type[_Resource], raw: Mapping[str, Any]) -> _Resource:
    try:
        return model.model_validate(raw, extra="ignore")
    except ValidationError as error:
        raise InvalidResource(faults(error)) from error


def _fault(details: ErrorDetails) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"])
    message = details["msg"].removeprefix("Value error, ")
    return f"{path.lstrip('.')}: {message}" if path else message
