"""Tables of the docs that say what Turnout does, with the tests that show it: each row has one, and all of them exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
COLUMN = "Test"


class Table(NamedTuple):
    """A table whose last column names tests."""

    place: str
    """File and line, as editors understand them."""
    rows: list[list[str]]
    """The cells of its rows, without the headings."""


def tables() -> list[Table]:
    found = []
    for page in sorted(DOCS.rglob("*.md")):
        lines = page.read_text().splitlines()
        for number, line in enumerate(lines, start=1):
            if line.startswith("|") and cells(line)[-1] == COLUMN:
                rows = []
                for row in lines[number + 1 :]:
                    if not row.startswith("|"):
                        break
                    rows.append(cells(row))
                found.append(Table(f"{page.relative_to(REPOSITORY)}:{number}", rows))
    return found


def cells(line: str) -> list[str]:
    """Return the cells of a line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def defined() -> set[str]:
    """Return the names of all tests."""
    return {
        name
        for file in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }


def test_there_are_tables_of_tests() -> None:
    """Of parts and requests that fail, of the router's tasks, and of open ports."""
    assert len(tables()) >= 4
    assert sum(len(table.rows) for table in tables()) > 100


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.place)
def test_every_row_has_its_test(table: Table) -> None:
    """A row without a test, or with one that is gone, is no promise."""
    tests = defined()
    for row in table.rows:
        named = re.findall(r"`(test_\w+)", row[-1])
        assert named, f"no test: {row}"
        assert set(named) <= tests, f"no such test: {set(named) - tests}"
