"""The status of a TokenBudget: which of its keys are valid, and whose names they open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnout_operator.plan.conditions import Finding, conditions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.api import TokenBudget
    from turnout_operator.plan.claims import NameAssignment


def budget_status(
    budget: TokenBudget, keys: NameAssignment, own_namespace: str, previous: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Return the status of *budget*, which gets the *keys* (digests). *own_namespace* is Turnout's."""
    valid = [key.name for key in budget.spec.keys if key.sha256 in keys.served]
    generation = budget.metadata.generation
    made = conditions([_ready(budget, valid, own_namespace)], previous.get("conditions", []), generation, now)
    return {"observedGeneration": generation, "conditions": made, "acceptedKeys": valid}


def invalid_budget(raw: Mapping[str, Any], message: str, now: float) -> dict[str, Any]:
    """Return the status of a budget that cannot be used: its keys stay what they were."""
    previous = raw.get("status") or {}
    generation = raw["metadata"].get("generation", 0)
    finding = Finding("Ready", "False", "InvalidSpec", message)
    made = conditions([finding], previous.get("conditions", []), generation, now)
    return {**previous, "observedGeneration": generation, "conditions": made}


def _ready(budget: TokenBudget, valid: list[str], own_namespace: str) -> Finding:
    namespace = budget.metadata.namespace
    lost = [key.name for key in budget.spec.keys if key.name not in valid]
    everywhere = budget.spec.scope == "Cluster" and namespace == own_namespace
    opened = "every namespace" if everywhere else f"namespace {namespace}"
    if lost:
        # The message does not name the other budget: knowing a digest must not reveal the holder of its key.
        return Finding(
            "Ready",
            "False",
            "KeyConflict",
            f"another TokenBudget had {_keys(lost)} first, so {'they open' if len(lost) > 1 else 'it opens'} nothing here: "
            f"make {'other ones' if len(lost) > 1 else 'another one'} with `turnout key create`; "
            f"{_keys(valid) if valid else 'no key'} of this one: valid for {opened}",
        )
    if budget.spec.scope == "Cluster" and not everywhere:
        return Finding(
            "Ready",
            "False",
            "ScopeNotAllowed",
            f"scope Cluster holds in namespace {own_namespace} alone, where Turnout runs: "
            f"{_keys(valid)} open the names of namespace {namespace} only; "
            "write scope Namespace, or have the budget created there",
        )
    return Finding("Ready", "True", "KeysValid", f"{_keys(valid)}: valid for {opened}")


def _keys(names: list[str]) -> str:
    return f"{'keys' if len(names) > 1 else 'key'} {', '.join(names)}"
