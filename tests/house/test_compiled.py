"""What code must not do to be compiled with mypyc, where mypyc itself says nothing."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NEVER_WAIT_AT_THEIR_END = {"asyncio.timeout", "asyncio.timeout_at"}
"""What `async with` may enter: leaving these never suspends the coroutine."""


def compiled() -> list[str]:
    """Return the modules that are compiled, as pyproject.toml lists them."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    modules = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
    return [str(module) for module in modules]


class Waits(ast.NodeVisitor):
    """Finds the lines of code that suspend a coroutine while an exception may be handled."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self._is_handling = False

    def visit_Try(self, node: ast.Try) -> None:
        for part in (*node.body, *node.orelse):
            self.visit(part)
        before, self._is_handling = self._is_handling, True
        for part in (*node.handlers, *node.finalbody):
            self.visit(part)
        self._is_handling = before

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        before, self._is_handling = self._is_handling, False
        self.generic_visit(node)
        self._is_handling = before

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        entered = {
            ast.unparse(i.context_expr.func if isinstance(i.context_expr, ast.Call) else i.context_expr)
            for i in node.items
        }
        if self._is_handling or not entered <= NEVER_WAIT_AT_THEIR_END:
            self.lines.append(node.lineno)
        self.generic_visit(node)

    def visit_Await(self, node: ast.Await) -> None:
        if self._is_handling:
            self.lines.append(node.lineno)
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        if self._is_handling:
            self.lines.append(node.lineno)
        self.generic_visit(node)


def waits_of(code: str) -> list[int]:
    """Return the numbers of those lines."""
    visitor = Waits()
    visitor.visit(ast.parse(code))
    return visitor.lines


@pytest.mark.parametrize("module", compiled())
def test_no_compiled_coroutine_waits_while_it_handles_an_exception(module: str) -> None:
    """The thread would count the exception as being handled for good: it would be the context of each later one, and kept."""
    assert waits_of((REPOSITORY / module).read_text()) == []


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("async def f():\n try:\n  await a\n finally:\n  await b", [5]),
        ("async def f():\n try:\n  await a\n except E:\n  await b\n else:\n  await c", [5]),
        ("async def f():\n async with lock:\n  pass", [2]),
        ("async def f():\n async with asyncio.timeout(1):\n  await a", []),
        ("async def f():\n try:\n  pass\n finally:\n  async def g():\n   await a", []),
    ],
)
def test_such_waits_are_found(code: str, lines: list[int]) -> None:
    assert waits_of(code) == lines
