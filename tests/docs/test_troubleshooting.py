"""docs/troubleshooting.md explains every reason that a condition or an Event can give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from turnout import reasons

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md").read_text()


def listed(alias: object) -> set[str]:
    """Return the words of a Literal, or of a union of Literals."""
    found: set[str] = set()
    for argument in get_args(alias):
        found |= {argument} if isinstance(argument, str) else listed(argument)
    return found


def test_every_reason_of_a_condition_has_a_section() -> None:
    """A reason without a section leaves its reader alone; a section without a reason is out of date."""
    conditions = PAGE.split("\n## Events\n")[0]
    sections = re.findall(r"^### (\w+)$", conditions, re.MULTILINE)
    assert len(sections) == len(set(sections))
    assert set(sections) == listed(reasons.Reason)


def test_every_reason_of_an_event_is_in_the_table() -> None:
    """Events have one table."""
    table = PAGE.split("\n## Events\n")[1].split("\n## ")[0]
    assert set(re.findall(r"`([A-Z]\w+)`", table)) - {"Advisory"} == listed(reasons.EventReason)
