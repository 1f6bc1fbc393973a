"""The model's folder: brought there, and looked at before an engine loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from turnout_worker.errors import WorkerError

MAX_CONFIG_BYTES: Final = 16 * 1024 * 1024
_CONFIG: Final = "config.json"
_MISTRAL: Final = "params.json"
"""What Mistral's own format has in its place."""


class ModelError(WorkerError):
    """The model cannot be had, or is none. Its text is a sentence for the user."""


def prepare(source: str) -> Path:
    """Bring the model of *source* into a folder, and return that. May take long: called in a thread of its own.

    A folder, or file:///PATH. Raise ModelError.
    """
    if "://" not in source:
        folder = Path(source)
    else:
        parts = urlsplit(source)
        if parts.scheme != "file":
            raise ModelError(f"a model cannot be had from {parts.scheme}://: give a folder or file:///PATH")
        if parts.netloc or not parts.path.startswith("/"):
            raise ModelError(f"{source} names no folder of this machine: write file:///PATH")
        folder = Path(unquote(parts.path))
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}")
    return folder


def architectures(folder: Path) -> tuple[str, ...]:
    """Return what the model in *folder* says it is. Raise ModelError where its config.json cannot be read."""
    path = folder / _CONFIG
    if not path.exists() and (folder / _MISTRAL).exists():
        return ()
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise ModelError(
            f"{path} is no model's configuration: it is larger than {MAX_CONFIG_BYTES >> 20} MiB"
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no model's configuration: it holds no JSON object")
    names = config.get("architectures")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
