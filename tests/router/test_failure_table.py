"""The table of docs/failures.md on the router's own tasks has all of them."""

from __future__ import annotations

import re
from pathlib import Path

from turnout_router.tasks import TASKS

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "failures.md"


def rows_of(heading: str) -> list[str]:
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]


def test_every_task_of_the_router_has_its_row() -> None:
    """A failure that is counted is one that is explained."""
    explained = [
        name
        for row in rows_of("The router's own tasks")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    assert sorted(explained) == sorted(TASKS)
