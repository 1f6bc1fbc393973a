"""Who serves a name that several deployments of a namespace claim: the oldest of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Claim:
    """The names that one deployment wants to serve."""

    deployment: str
    created: str
    """``creationTimestamp``, RFC 3339: its text sorts by time."""
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a deployment gets of the names it claims."""

    served: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    """Name, and the deployment that has it."""


def settle(claims: Iterable[Claim]) -> dict[str, Settlement]:
    """Share out the names of one namespace, by deployment.

    The oldest claim wins; of equally old ones the first by name. So a newcomer never takes a name from what
    already serves it, and every operator comes to the same result.
    """
    holders: dict[str, str] = {}
    settled: dict[str, Settlement] = {}
    for claim in sorted(claims, key=lambda claim: (claim.created, claim.deployment)):
        wanted = tuple(dict.fromkeys(claim.names))
        refused = tuple((name, holders[name]) for name in wanted if name in holders)
        served = tuple(name for name in wanted if name not in holders)
        holders.update(dict.fromkeys(served, claim.deployment))
        settled[claim.deployment] = Settlement(served, refused)
    return settled


def claim_of(raw: Mapping[str, Any]) -> Claim:
    """Read the claim of an LLMDeployment, also of one whose spec cannot be used: what it serves stays its own."""
    meta, spec = raw["metadata"], raw.get("spec", {})
    served = _names(_field(spec.get("model"), "servedNames")) or (meta["name"],)
    adapters = _field(spec.get("lora"), "adapters")
    told = [_field(adapter, "name") for adapter in adapters] if isinstance(adapters, list) else []
    return Claim(meta["name"], meta.get("creationTimestamp") or "", (*served, *_names(told)))


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _names(values: Any) -> tuple[str, ...]:
    return tuple(name for name in values if isinstance(name, str)) if isinstance(values, list) else ()
