"""Writes the reference of command lines from their parsers: `python docs/settings.py`, with `--check` in `make check`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from turnout_operator.settings import parser as operator
from turnout_router.options import parser as router
from turnout_runtime.options import table
from turnout_worker.main import parser as worker

PAGE: Final = Path(__file__).parent / "reference" / "settings.md"
_HEAD: Final = """# Settings
<!-- Written by docs/settings.py: change the settings that it reads, then run `make settings`. -->
Options of the services' command lines. With the chart, `router.extraArgs` and `operator.extraArgs` give further ones. Times are
real seconds, sizes bytes. Why a default is what it is stands beside its field, in `settings.py` of each service."""


def page() -> str:
    """Return the page."""
    services = (
        ("turnout-router", router({})),
        ("turnout-operator", operator({})),
        ("turnout-worker serve", commands(worker())["serve"]),
        ("turnout-worker simulate", commands(worker())["simulate"]),
        ("turnout-worker drain", commands(worker())["drain"]),
    )
    lines = [_HEAD]
    for name, parser in services:
        lines += ["", f"## {name}", *table(parser)]
    return "\n".join(lines) + "\n"


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands below *parser*, by name."""
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    return dict(found.choices)


def main() -> int:
    """Write the page; with `--check` only say whether it is up to date."""
    text = page()
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(text)
        return 0
    if PAGE.is_file() and PAGE.read_text() == text:
        return 0
    sys.stderr.write(f"docs/reference/{PAGE.name} is stale: run `make settings`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
