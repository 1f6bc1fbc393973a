"""The status of an LLMRoute: whether its targets exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnout_operator.plan.conditions import Finding, conditions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from turnout.api import LLMRoute


def route_status(
    route: LLMRoute, deployments: Collection[str], previous: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Return the status of *route*, given the names of the deployments in its namespace."""
    missing = [target.deployment for target in route.spec.targets if target.deployment not in deployments]
    if missing:
        what = "LLMDeployments" if len(missing) > 1 else "LLMDeployment"
        finding = Finding(
            "Ready",
            "False",
            "DeploymentNotFound",
            f"there is no {what} {', '.join(missing)} in namespace {route.metadata.namespace}: create it or change spec.targets",
        )
    else:
        targets = ", ".join(f"{target.deployment} (weight {target.weight})" for target in route.spec.targets)
        finding = Finding(
            "Ready", "True", "TargetsExist", f"{', '.join(route.spec.names)} leads to {targets}"
        )
    generation = route.metadata.generation
    made = conditions([finding], previous.get("conditions", []), generation, now)
    return {"observedGeneration": generation, "conditions": made}


def invalid_route(raw: Mapping[str, Any], message: str, now: float) -> dict[str, Any]:
    """Return the status of a route that cannot be used."""
    generation = raw["metadata"].get("generation", 0)
    previous = (raw.get("status") or {}).get("conditions", [])
    finding = Finding("Ready", "False", "InvalidSpec", message)
    return {"observedGeneration": generation, "conditions": conditions([finding], previous, generation, now)}
