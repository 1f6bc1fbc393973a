"""Options of a command line, declared with the settings: flag, default, form and meaning stand beside a dataclass's field.

A field made by `option` becomes an argument (`add_options`) and is filled from what was parsed (`from_options`). A field made
by `group` holds a dataclass of the core, which knows no flags; its fields' options are given there. A field that holds a
dataclass of further options needs nothing but that class as its `default_factory`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from dataclasses import Field

T = TypeVar("T")

_OPTION: Final = "option"
_GROUP: Final = "group"


@dataclass(frozen=True, slots=True)
class Option:
    """One argument."""

    flag: str
    meaning: str
    form: Callable[[str], Any] = str
    """Reads its text. Raise ArgumentTypeError, saying what to write instead."""
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    environment: str | None = None
    """Variable that it is taken from where the flag is not given."""
    repeated: bool = False
    """Whether it may be given several times; the field is a tuple."""

    @property
    def name(self) -> str:
        """Its attribute in what was parsed."""
        return self.flag.removeprefix("--").replace("-", "_")

    def add_to(self, parser: argparse.ArgumentParser, default: Any, environment: Mapping[str, str]) -> None:
        """Add it to *parser*."""
        meaning = self.meaning
        if self.environment is not None:
            default = environment.get(self.environment) or default
            meaning += f" (environment: {self.environment})"
        form: dict[str, Any] = {"type": self.form, "metavar": self.metavar}
        if self.choices is not None:
            form = {"choices": self.choices}
        if self.repeated:
            form |= {"action": "append"}
            default = list(default)
        parser.add_argument(self.flag, default=default, help=meaning, **form)


def option(
    default: T,
    flag: str,
    meaning: str,
    *,
    form: Callable[[str], Any] = str,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    environment: str | None = None,
    repeated: bool = False,
) -> T:
    """Return a field that is an option of the command line; see `Option`."""
    what = Option(flag, meaning, form, metavar, choices, environment, repeated)
    return field(default=default, metadata={_OPTION: what})


def group(factory: Callable[[], T], **options: Option) -> T:
    """Return a field that holds what *factory* makes, the fields of which are *options* by their names."""
    return field(default_factory=factory, metadata={_GROUP: (factory, options)})


def add_options(parser: argparse.ArgumentParser, settings: type[Any], environment: Mapping[str, str]) -> None:
    """Add to *parser* an argument for every option of the dataclass *settings*, in the order of its fields."""
    for one, default in _options(settings):
        one.add_to(parser, default, environment)


def from_options(settings: type[T], parsed: argparse.Namespace, **given: Any) -> T:
    """Return *settings* as *parsed* has them; *given* are the fields that are no options."""
    values: dict[str, Any] = {}
    for one in _fields(settings):
        if one.name in given:
            values[one.name] = given[one.name]
        elif (own := one.metadata.get(_OPTION)) is not None:
            value = getattr(parsed, own.name)
            values[one.name] = tuple(value) if own.repeated else value
        elif _GROUP in one.metadata:
            factory, options = one.metadata[_GROUP]
            changes = {name: getattr(parsed, own.name) for name, own in options.items()}
            values[one.name] = replace(factory(), **changes)
        elif (inner := _inner(one)) is not None:
            values[one.name] = from_options(inner, parsed)
    return settings(**values)


def _options(settings: type[Any]) -> Iterator[tuple[Option, Any]]:
    """Yield every option with its default."""
    for one in _fields(settings):
        if (own := one.metadata.get(_OPTION)) is not None:
            yield own, one.default
        elif _GROUP in one.metadata:
            factory, options = one.metadata[_GROUP]
            default = factory()
            yield from ((own, getattr(default, name)) for name, own in options.items())
        elif (inner := _inner(one)) is not None:
            yield from _options(inner)


def _fields(settings: type[Any]) -> tuple[Field[Any], ...]:
    return fields(settings)


def _inner(one: Field[Any]) -> type[Any] | None:
    """Return the dataclass that a field holds by default."""
    factory: Any = one.default_factory
    return factory if isinstance(factory, type) and is_dataclass(factory) else None


def table(parser: argparse.ArgumentParser) -> list[str]:
    """Return the arguments of *parser* as the lines of a Markdown table."""
    lines = ["| Option | Default | Meaning |", "|---|---|---|"]
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to list them
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):  # noqa: SLF001
            continue
        value = action.metavar or (
            "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
        )
        flag = action.option_strings[0] if action.nargs == 0 else f"{action.option_strings[0]} {value}"
        nothing = (
            action.default is None or action.default is False or action.default in ("", [])
        )  # 0 is something
        default = "" if nothing else f"`{action.default}`"
        meaning = (action.help or "").replace("|", "\\|")
        escaped = flag.replace("|", "\\|")
        lines.append(f"| `{escaped}` | {default} | {meaning} |")
    return lines


def read_port(text: str) -> int:
    """Read a port, 0 for any free one."""
    value = int(text)
    if not 0 <= value <= 65535:  # noqa: PLR2004 - the range of ports
        raise argparse.ArgumentTypeError(f"{text} is no port: give 0 (any free one) to 65535")
    return value


def read_seconds(text: str) -> float:
    """Read seconds, 0 included."""
    value = float(text)
    if not 0 <= value < 1e6:  # noqa: PLR2004 - eleven days: anything longer is a mistake
        raise argparse.ArgumentTypeError(f"{text} is no sensible number of seconds")
    return value


def read_some_seconds(text: str) -> float:
    """Read seconds above 0."""
    value = read_seconds(text)
    if not value:
        raise argparse.ArgumentTypeError("0 would end everything before it has begun: give a longer time")
    return value


def read_positive(text: str) -> int:
    """Read a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
