"""Options that are said beside a settings' fields: parsed, filled in, and listed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import pytest

from turnout_router.options import parse_options, settings_of
from turnout_router.settings import Settings
from turnout_runtime.options import (
    Option,
    add_options,
    from_options,
    group,
    option,
    read_port,
    read_positive,
    read_some_seconds,
    table,
)


@dataclass(frozen=True)
class Bounds:
    """Of the core, say: without flags."""

    most: int = 3
    fixed: int = 7


@dataclass(frozen=True)
class Inner:
    pause_seconds: float = option(1.5, "--pause", "between two", form=read_some_seconds, metavar="SECONDS")


@dataclass(frozen=True)
class Outer:
    who: str
    names: tuple[str, ...] = option((), "--name", "may be repeated", repeated=True)
    host: str = option("all", "--host", "address", environment="HOST")
    mode: str = option("a", "--mode", "a|b", choices=("a", "b"))
    inner: Inner = field(default_factory=Inner)
    bounds: Bounds = group(Bounds, most=Option("--most", "at most", read_positive, "N"))


def parse(*arguments: str, environment: dict[str, str] | None = None) -> Outer:
    parser = argparse.ArgumentParser()
    add_options(parser, Outer, environment or {})
    return from_options(Outer, parser.parse_args(arguments), who="me")


def test_without_flags_the_defaults_hold() -> None:
    """Those of the fields, of what is nested, and of the group."""
    assert parse() == Outer("me")


def test_flags_reach_their_fields() -> None:
    """Also nested ones, repeated ones, and those of a class without flags, whose other fields stay."""
    found = parse("--name", "x", "--name", "y", "--pause", "2", "--most", "9", "--mode", "b")
    assert found == Outer("me", ("x", "y"), "all", "b", Inner(2.0), Bounds(9, 7))


def test_the_environment_stands_in_for_a_flag() -> None:
    """A flag goes before it; an empty variable is none."""
    assert parse(environment={"HOST": "::1"}).host == "::1"
    assert parse("--host", "h", environment={"HOST": "::1"}).host == "h"
    assert parse(environment={"HOST": ""}).host == "all"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--pause", "0"), "give a longer time"),
        (("--pause", "1e9"), "no sensible number"),
        (("--most", "0"), "less than 1"),
        (("--mode", "c"), "choose from"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a message that says what does."""
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert advice in capsys.readouterr().err


def test_a_port_is_one() -> None:
    """From 0, for any free one, to 65535."""
    assert (read_port("0"), read_port("65535")) == (0, 65535)
    with pytest.raises(argparse.ArgumentTypeError):
        read_port("65536")


def test_options_are_listed_as_a_table() -> None:
    """One line each, with default and meaning; what separates columns is escaped."""
    parser = argparse.ArgumentParser()
    add_options(parser, Outer, {})
    assert table(parser)[2:] == [
        "| `--name NAME` |  | may be repeated |",
        "| `--host HOST` | `all` | address (environment: HOST) |",
        "| `--mode a\\|b` | `a` | a\\|b |",
        "| `--pause SECONDS` | `1.5` | between two |",
        "| `--most N` | `3` | at most |",
    ]


def test_the_router_without_flags_has_its_settings_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """No option has a default of its own."""
    monkeypatch.delenv("TURNOUT_BIND_ADDRESS", raising=False)
    assert settings_of(parse_options([])) == Settings()
