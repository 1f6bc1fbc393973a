"""What a plan asks for: values that the reconciler turns into requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.reasons import EventReason
    from turnout_operator.plan.manifests import Manifest


@dataclass(frozen=True, slots=True)
class Removal:
    """An object to delete, exactly the one that was seen."""

    kind: str
    namespace: str
    name: str
    uid: str


def removal_of(raw: Mapping[str, Any]) -> Removal:
    """Return what deletes the very object *raw*."""
    meta = raw["metadata"]
    return Removal(raw["kind"], meta["namespace"], meta["name"], meta["uid"])


@dataclass(frozen=True, slots=True)
class PodPatch:
    """A merge patch of a worker pod's metadata: draining, back in service, or what it is."""

    namespace: str
    name: str
    body: Manifest


@dataclass(frozen=True, slots=True)
class Notice:
    """An Event about the resource."""

    type: Literal["Normal", "Warning"]
    reason: EventReason
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to do about one resource now, in this order."""

    patches: tuple[PodPatch, ...] = ()
    apply: tuple[Manifest, ...] = ()
    delete: tuple[Removal, ...] = ()
    status: dict[str, Any] = field(default_factory=dict)
    """The whole status as it should read."""
    notices: tuple[Notice, ...] = ()
    """Events that belong to the status: posted once it is written."""
    milestones: tuple[Notice, ...] = ()
    """Events about what this plan does: posted once all of it is done."""
    requeue_seconds: float | None = None
    """When to look again though nothing happened. None: not before something does."""
    summary: str = ""
    """One sentence on what was found and done."""
