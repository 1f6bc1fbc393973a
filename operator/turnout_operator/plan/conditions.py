"""Conditions: what holds, why, and since when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from turnout.reasons import Reason

MAX_MESSAGE = 4096
"""Longest message that the resource's schema takes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about a resource, without its times."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str


def rfc3339(now: float) -> str:
    """Return *now* (seconds since the epoch) as Kubernetes writes it in status: UTC, whole seconds."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(text: str) -> float | None:
    """Return an RFC 3339 time in seconds since the epoch, or None where it is none (it was edited)."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def conditions(
    findings: Iterable[Finding], previous: Iterable[Mapping[str, Any]], generation: int, now: float
) -> list[dict[str, Any]]:
    """Return *findings* as conditions; ``lastTransitionTime`` is kept while the status stays what it was."""
    before = {item.get("type"): item for item in previous}
    made = []
    for finding in findings:
        old = before.get(finding.type, {})
        same = old.get("status") == finding.status and old.get("lastTransitionTime")
        made.append(
            {
                "type": finding.type,
                "status": finding.status,
                "reason": finding.reason,
                "message": finding.message[:MAX_MESSAGE],
                "lastTransitionTime": old["lastTransitionTime"] if same else rfc3339(now),
                "observedGeneration": generation,
            }
        )
    return made
