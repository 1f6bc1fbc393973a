"""Reading one YAML file that people write: bounded, and strict where a mistake would go unnoticed."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final

import yaml

from turnout_router.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES: Final = 8 * 1024 * 1024
_MAX_NODES: Final = 1_000_000
"""Values in the file, with every alias counted as what it stands for: ten thousand workers have fifty thousand."""
_MERGE: Final = "tag:yaml.org,2002:merge"
_UNREADABLE: Final = (
    yaml.YAMLError,
    # What PyYAML's constructors let through: an impossible date, a number of 5,000 digits, `!!bool x`, `!!int ""`.
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)

Stamp = tuple[int, int, int, int]


def read_yaml(path: Path) -> Any:
    """Return what *path* holds, None where there is nothing in it but white space and comments.

    Raise ConfigError where it is no regular file, too large, no YAML, or YAML with a duplicate key, contains
    itself, or stands for more than `_MAX_NODES` values.
    """
    text = _bytes_of(path)
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Walk(path).measure(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    except _UNREADABLE as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())[:500]}") from error


def stamp_of(path: Path) -> Stamp | None:
    """Return what changes when *path*, or what it links to, is written, replaced or made readable; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _bytes_of(path: Path) -> bytes:
    try:
        # Not blocking: to open a named pipe would wait for its writer, forever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path} is no regular file")
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"{path} has more than {_MAX_BYTES} bytes")
    return text


class _Walk:
    """Measures a document before it is constructed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[int, int | None] = {}

    def measure(self, node: yaml.Node) -> int:
        """Return how many values *node* stands for. Raise ConfigError where that is too many, or without end."""
        if id(node) in self._sizes:
            known = self._sizes[id(node)]
            if known is None:
                raise ConfigError(f"{self._path} contains itself{_where(node)}: leave that alias out")
            return known
        self._sizes[id(node)] = None
        size = 1
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            for key, value in node.value:
                size += self.measure(key) + self.measure(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                size += self.measure(value)
        if size > _MAX_NODES:
            raise ConfigError(f"{self._path} stands for more than {_MAX_NODES} values{_where(node)}")
        self._sizes[id(node)] = size
        return size

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                raise ConfigError(
                    f"{self._path} says {key.value[:100]!r} twice in one place{_where(key)}: only one would count"
                )
            seen.add((key.tag, key.value))


def _where(node: yaml.Node) -> str:
    return f", line {node.start_mark.line + 1}"
