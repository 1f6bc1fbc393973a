"""The status of an LLMRoute: whether its targets exist, and which of its names it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnout_operator.plan.conditions import Finding, conditions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from turnout.api import LLMRoute
    from turnout_operator.plan.claims import NameAssignment


def route_status(
    route: LLMRoute,
    deployments: Collection[str],
    names: NameAssignment,
    previous: Mapping[str, Any],
    now: float,
) -> dict[str, Any]:
    """Return the status of *route*, given the names of the deployments in its namespace and its own settled *names*."""
    generation = route.metadata.generation
    made = conditions([_ready(route, deployments, names)], previous.get("conditions", []), generation, now)
    return {"observedGeneration": generation, "conditions": made, "servedNames": list(names.served)}


def targets_of(raw: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the deployments that a raw route leads to, also of one that cannot be used."""
    targets = (raw.get("spec") or {}).get("targets")
    found = (target.get("deployment") for target in targets or () if isinstance(target, dict))
    return frozenset(name for name in found if isinstance(name, str))


def invalid_route(raw: Mapping[str, Any], message: str, now: float) -> dict[str, Any]:
    """Return the status of a route that cannot be used: its names stay what they were."""
    generation = raw["metadata"].get("generation", 0)
    previous = raw.get("status") or {}
    finding = Finding("Ready", "False", "InvalidSpec", message)
    made = conditions([finding], previous.get("conditions", []), generation, now)
    return {**previous, "observedGeneration": generation, "conditions": made}


def _ready(route: LLMRoute, deployments: Collection[str], names: NameAssignment) -> Finding:
    refused = ", ".join(f"{name} ({why})" for name, why in names.refused)
    if not names.served:
        return Finding(
            "Ready", "False", "ServedNameConflict", f"every name is taken: {refused}; choose other spec.names"
        )
    missing = [target.deployment for target in route.spec.targets if target.deployment not in deployments]
    if missing:
        what = "LLMDeployments" if len(missing) > 1 else "LLMDeployment"
        return Finding(
            "Ready",
            "False",
            "DeploymentNotFound",
            f"there is no {what} {', '.join(missing)} in namespace {route.metadata.namespace}: create it or change spec.targets",
        )
    targets = ", ".join(f"{target.deployment} (weight {target.weight})" for target in route.spec.targets)
    leads = f"{', '.join(names.served)} leads to {targets}"
    if refused:
        return Finding("Ready", "True", "NameConflict", f"{leads}; not {refused}: choose other spec.names")
    return Finding("Ready", "True", "TargetsExist", leads)
