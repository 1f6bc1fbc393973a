"""Each package declares what it imports, no more and no less: a service by its extra, a tool by its own distribution."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXTRAS = ["kube", "operator", "router", "worker"]
"""Of turnout's one wheel: an image installs just one of the services', a tool the shared packages' that it uses."""
TOOLS = ["simulator", "devcluster", "cli"]
"""Folders of distributions of their own."""


def project(folder: str) -> dict[str, Any]:
    """Return the table `project` of the pyproject.toml in *folder*."""
    found: dict[str, Any] = tomllib.loads((REPOSITORY / folder / "pyproject.toml").read_text())["project"]
    return found


PROJECT = project(".")


def declared(requirements: list[str]) -> set[str]:
    """Return the names in *requirements*."""
    return {re.split(r"[\[<>=!~ ;]", one, maxsplit=1)[0].lower().replace("_", "-") for one in requirements}


def modules_of(folder: Path) -> set[str]:
    """Return the top-level modules that the code below *folder* imports, without the standard library."""
    modules: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    return modules - sys.stdlib_module_names


def imported(folder: Path) -> set[str]:
    """Return the distributions of others whose modules the code below *folder* imports."""
    known = packages_distributions()
    foreign = {module for module in modules_of(folder) if not module.startswith("turnout")}
    found = {known[module][0].lower().replace("_", "-") for module in foreign}
    return found - {"pydantic-core"}  # a part of pydantic, which pins it


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_names_what_its_package_imports(extra: str) -> None:
    """What is imported is declared (by the extra or the base), what is declared is imported."""
    named = (
        [extra, "fetch"] if extra == "worker" else [extra]
    )  # what a real model's files are fetched with, apart
    wanted = {name for each in named for name in declared(PROJECT["optional-dependencies"][each])}
    found = imported(REPOSITORY / extra)
    assert found <= wanted | declared(PROJECT["dependencies"])
    assert wanted <= found


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_names_what_it_imports(tool: str) -> None:
    """Of other people's packages it declares what it imports itself; of Turnout's, those that it uses, at its own version."""
    own = project(tool)
    wanted = declared(own["dependencies"])
    assert {name for name in wanted if not name.startswith("turnout")} == imported(
        REPOSITORY / tool / f"turnout_{tool}"
    )
    used = {
        module for module in modules_of(REPOSITORY / tool / f"turnout_{tool}") if module.startswith("turnout")
    }
    tools = {f"turnout_{name}" for name in TOOLS}
    distributions = {module.replace("_", "-") if module in tools else "turnout" for module in used}
    ours = {one for one in own["dependencies"] if one.startswith("turnout")}
    assert {re.sub(r"\[.*]", "", one) for one in ours} == {
        f"{name}=={PROJECT['version']}" for name in distributions - {own["name"]}
    }
    assert any("[kube]" in one for one in ours) == ("turnout_kube" in used)
    assert own["version"] == PROJECT["version"]


def test_the_core_needs_pydantic_alone() -> None:
    """Decisions run wherever Python runs."""
    assert imported(REPOSITORY / "core") == declared(PROJECT["dependencies"])


@pytest.mark.parametrize("shared", ["prom", "runtime"])
def test_what_all_share_needs_nothing(shared: str) -> None:
    """Each service has these in its image."""
    assert imported(REPOSITORY / shared) == set()
