"""The tables of failures in docs/failures.md name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from turnout_router.tasks import TASKS

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "failures.md"


def rows_of(heading: str) -> list[str]:
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]


@pytest.mark.parametrize(("heading", "least"), [("Requests", 20), ("The router's own tasks", 7)])
def test_every_row_of_a_table_has_its_test(heading: str, least: int) -> None:
    """A row without a test, or with one that is gone, is no promise."""
    rows = rows_of(heading)
    assert len(rows) > least
    defined = {
        name
        for file in TESTS.rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    for row in rows:
        named = re.findall(r"`(test_\w+)", row)
        assert named, row
        assert set(named) <= defined, row


def test_every_task_of_the_router_has_its_row() -> None:
    """A failure that is counted is one that is explained."""
    told = [
        name
        for row in rows_of("The router's own tasks")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    assert sorted(told) == sorted(TASKS)
