"""The commands that a demo which was left running prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer.main

from support.demo_values import deployment
from turnout_cli.demo.setup import Serving
from turnout_cli.demo.tries import things_to_try
from turnout_cli.main import app

if TYPE_CHECKING:
    import click

LINES = things_to_try(
    Serving(deployment(), "http://127.70.128.9:8080", "tiny-1"), program=Path("/a b/turnout"), cluster="demo"
)
COMMANDS = [shlex.split(line) for line in LINES if line.startswith("  ")]


def test_the_curl_command_asks_the_model() -> None:
    """Pasted into a shell, curl sends a chat completion for the served name to the router's address."""
    curl = next(words for words in COMMANDS if words[0] == "curl" and "-d" in words)
    assert "http://127.70.128.9:8080/v1/chat/completions" in curl
    assert json.loads(curl[curl.index("-d") + 1])["model"] == "tiny-1"


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] != "curl"], ids=" ".join)
def test_turnout_commands_are_understood(words: list[str]) -> None:
    """Each other line names this program by its path and a command and options that exist."""
    assert words[0] == "/a b/turnout"
    command: click.Command = typer.main.get_command(app)
    rest = words[1:]
    while (found := getattr(command, "commands", {}).get(rest[0] if rest else None)) is not None:
        command, rest = found, rest[1:]
    context = command.make_context("turnout", rest, resilient_parsing=False)
    assert command.name in words
    context.close()
