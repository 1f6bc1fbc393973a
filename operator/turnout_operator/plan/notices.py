"""Events: what has changed since the last status, posted once.

They follow from the difference of two statuses, so a restart neither loses nor repeats one (but for the instant
between writing the status and posting the Event).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from turnout_operator.plan.effects import Notice
from turnout_operator.plan.status import OVERRIDDEN, advice, condition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.reasons import EventReason
    from turnout_operator.plan.claims import NameAssignment
    from turnout_operator.plan.scaling import ScalingChange

CHILD_NAME_TAKEN: Final = "ChildNameTaken"
"""Reason of the condition Ready, and of the Event."""


def notices(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    names: NameAssignment,
    *,
    scaled: ScalingChange | None,
    advised: ScalingChange | None,
) -> tuple[Notice, ...]:
    """Return the Events that the change from status *before* to *after* is worth.

    *scaled* is the change of replicas that is made, *advised* the one that is only recommended.
    """
    events: list[Notice] = []
    if scaled is not None:
        events.append(_scaling(scaled))
    if advised is not None:
        events += _advice(condition(before, "ScalingLimited"), condition(after, "ScalingLimited"), advised)
    events += _readiness(condition(before, "Ready"), condition(after, "Ready"))
    fits = condition(after, "ModelFits")
    if fits.get("status") == "False" and condition(before, "ModelFits").get("message") != fits["message"]:
        events.append(Notice("Warning", fits["reason"], fits["message"]))
    if names.refused and before.get("servedNames") != after["servedNames"]:
        taken = ", ".join(f"{name} (served by {holder})" for name, holder in names.refused)
        events.append(Notice("Warning", "NameConflict", f"names that an older deployment serves: {taken}"))
    return tuple(events)


def taken(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Notice, ...]:
    """Return the Event that an object which the deployment does not own has a child's name."""
    was, now = condition(before, "Ready"), condition(after, "Ready")
    if now.get("reason") != CHILD_NAME_TAKEN or was.get("reason") == CHILD_NAME_TAKEN:
        return ()
    return (Notice("Warning", CHILD_NAME_TAKEN, now["message"]),)


def overridden(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Notice, ...]:
    """Return the Event that another writer insists on other values than this operator's, each time that is news."""
    was, now = condition(before, OVERRIDDEN), condition(after, OVERRIDDEN)
    if not now or was.get("message") == now["message"]:
        return ()
    return (Notice("Warning", OVERRIDDEN, now["message"]),)


def _scaling(scaled: ScalingChange) -> Notice:
    reason: EventReason = (
        "ScaledUp" if scaled.change > 0 else "ScaledDown" if scaled.change < 0 else "Rebalanced"
    )
    return Notice("Normal", reason, scaled.reason)


def _advice(before: Mapping[str, Any], after: Mapping[str, Any], advised: ScalingChange) -> list[Notice]:
    """Return one Event per advised change, whatever the figures in its reason."""
    if after.get("reason") != "Advisory":
        return []
    if before.get("reason") == "Advisory" and str(before.get("message", "")).startswith(
        f"{advice(advised)}:"
    ):
        return []
    return [Notice("Normal", "ScalingAdvised", after["message"])]


def _readiness(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Notice]:
    if before.get("status") == after.get("status"):
        return []
    if after["status"] == "True":
        return [Notice("Normal", "Ready", after["message"])]
    if before.get("status") == "True":
        return [Notice("Warning", "NotReady", f"{after['reason']}: {after['message']}")]
    return []
