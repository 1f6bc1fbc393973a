"""The tables of docs/failures.md and docs/security.md name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "failures.md"


def defined() -> set[str]:
    """Return the names of all tests."""
    return {
        name
        for file in TESTS.rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }


def test_every_row_of_the_requests_table_has_its_test() -> None:
    """A row without a test, or with one that is gone, is no promise."""
    section = PAGE.read_text().split("## Requests\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20
    tests = defined()
    for row in rows:
        named = re.findall(r"`(test_\w+)", row)
        assert named, row
        assert set(named) <= tests, row


def test_the_page_on_trust_names_tests_that_exist() -> None:
    """Its claims have been tried, and are tried again."""
    named = set(re.findall(r"`(test_\w+)", (PAGE.parent / "security.md").read_text()))
    assert len(named) > 10
    assert named <= defined(), named - defined()
