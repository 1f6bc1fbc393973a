"""The model's folder: brought there, and looked at before an engine loads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout_worker.errors import WorkerError

if TYPE_CHECKING:
    from pathlib import Path

MAX_CONFIG_BYTES: Final = 16 * 1024 * 1024
_CONFIG: Final = "config.json"
_MISTRAL: Final = "params.json"
"""What Mistral's own format has in its place."""


class ModelError(WorkerError):
    """The model cannot be had, or is none. Its text is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where the files of a model and its adapters are."""

    model: str
    """Folder of the model."""
    adapters: dict[str, str]
    """Folders of the adapters by name."""


class NotPreparedError(ModelError):
    """They could not be had. `reason` is one of `turnout.reasons.SourceReason`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def prepared(answer: bytes) -> Prepared:
    """Return what ``turnout_worker.sources.prepare`` has written. Raise NotPreparedError, ModelError."""
    try:
        found = json.loads(answer)
        if "reason" in found:
            raise NotPreparedError(found["reason"], found["message"])
        return Prepared(found["model"], found["adapters"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "the process that fetches the model ended without an answer: see the log above"
        ) from error


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
