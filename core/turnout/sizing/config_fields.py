"""Fields of a config.json, each checked before use: whoever made the model wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")

MAX_LAYERS: Final = 10_000
MAX_HEADS: Final = 100_000
MAX_WIDTH: Final = 10_000_000
"""Bounds, far above every model, that keep products small."""


class Unreadable(Exception):  # noqa: N818 - a result on its way up, caught in `config`
    """What is missing or odd, as a sentence that names the field."""


class Fields:
    """An object of a config.json. A field that is null counts as missing; the first of several names that is there is read."""

    def __init__(self, values: Mapping[object, object]) -> None:
        self._values = values

    @classmethod
    def of(cls, raw: object, name: str = "it") -> Self:
        """Return the fields of *raw*. Raise Unreadable where it is no object."""
        if not isinstance(raw, dict):
            raise Unreadable(f"{name} is not an object")
        return cls(raw)

    def has(self, *names: str) -> bool:
        """Whether one of *names* is there."""
        return any(self._values.get(name) is not None for name in names)

    def integer(self, *names: str, most: int, least: int = 1, default: int | None = None) -> int:
        """Return a whole number from *least* to *most*, *default* where it is missing. Raise Unreadable."""
        for name in names:
            value = self._values.get(name)
            if value is None:
                continue
            if type(value) is not int or not least <= value <= most:
                raise Unreadable(f"{name} is not a whole number from {least} to {most}")
            return value
        if default is None:
            raise Unreadable(f"{names[0]} is missing")
        return default

    def flag(self, name: str) -> bool | None:
        """Return a truth value, None where it is missing. Raise Unreadable."""
        value = self._values.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise Unreadable(f"{name} is neither true nor false")

    def text(self, *names: str) -> str:
        """Return a text, the empty one where it is missing or something else."""
        return next((value for name in names if isinstance(value := self._values.get(name), str)), "")

    def texts(self, name: str) -> list[str] | None:
        """Return a list of texts, None where it is missing. Raise Unreadable."""
        return self._items(name, str, "texts")

    def integers(self, name: str) -> list[int] | None:
        """Return a list of whole numbers, None where it is missing. Raise Unreadable."""
        return self._items(name, int, "whole numbers")

    def section(self, name: str) -> Fields:
        """Return an object within. Raise Unreadable where it is none."""
        return Fields.of(self._values.get(name), name)

    def sections(self, name: str) -> list[Fields]:
        """Return the objects within an object, none where it is missing. Raise Unreadable."""
        if not self.has(name):
            return []
        held = self.section(name)._values  # noqa: SLF001 - of this class
        return [Fields.of(value, name) for value in list(held.values())[:MAX_LAYERS]]

    def _items(self, name: str, kind: type[_T], what: str) -> list[_T] | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > MAX_LAYERS or any(type(v) is not kind for v in value):
            raise Unreadable(f"{name} is not a list of at most {MAX_LAYERS} {what}")
        return value
