"""Each package's extra names what the package imports, no more and no less: an image holds just one of them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = ["operator", "router", "worker", "simulator", "devcluster", "cli"]


def declared(requirements: list[str]) -> set[str]:
    """Return the names in *requirements*."""
    return {re.split(r"[\[<>=!~ ;]", one, maxsplit=1)[0].lower().replace("_", "-") for one in requirements}


def imported(folder: Path) -> set[str]:
    """Return the distributions whose modules the code below *folder* imports, ours and the standard library left out."""
    modules: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    known = packages_distributions()
    foreign = {m for m in modules if m not in sys.stdlib_module_names and not m.startswith("turnout")}
    found = {known[module][0].lower().replace("_", "-") for module in foreign}
    return found - {"pydantic-core"}  # a part of pydantic, which pins it


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_names_what_its_package_imports(extra: str) -> None:
    """What is imported is declared (by the extra or the base), what is declared is imported."""
    wanted = declared(PROJECT["optional-dependencies"][extra])
    found = imported(REPOSITORY / extra)
    assert found <= wanted | declared(PROJECT["dependencies"])
    assert wanted <= found


def test_the_core_needs_pydantic_alone() -> None:
    """Decisions run wherever Python runs."""
    assert imported(REPOSITORY / "core") == declared(PROJECT["dependencies"])
