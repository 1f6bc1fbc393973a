"""Where a worker's life stands: one value, and the order in which its phases may follow each other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(StrEnum):
    """A step of a worker's life."""

    PREPARING = "Preparing"
    """The model is brought into a folder."""
    CHECKING = "Checking"
    """The folder and the accelerators are looked at, before the engine loads anything."""
    STARTING = "Starting"
    """The engine's process runs; its /health does not answer yet."""
    WARMING = "Warming"
    """/health answers; a completion of one token is under way."""
    SERVING = "Serving"
    DRAINING = "Draining"
    """The engine was asked to end and finishes its requests."""
    STOPPED = "Stopped"
    """The engine has ended because the worker was asked to end."""
    FAILED = "Failed"
    """A step failed, or the engine ended by itself."""


_LAST: Final = frozenset({Phase.DRAINING, Phase.STOPPED, Phase.FAILED})
FOLLOWING: Final[Mapping[Phase, frozenset[Phase]]] = MappingProxyType(
    {
        Phase.PREPARING: _LAST | {Phase.CHECKING},
        Phase.CHECKING: _LAST | {Phase.STARTING},
        Phase.STARTING: _LAST | {Phase.WARMING},
        Phase.WARMING: _LAST | {Phase.SERVING},
        Phase.SERVING: _LAST,
        Phase.DRAINING: frozenset({Phase.STOPPED, Phase.FAILED}),
        Phase.STOPPED: frozenset(),
        Phase.FAILED: frozenset(),
    }
)
"""The phases that may follow each phase."""

STARTED: Final = frozenset({Phase.SERVING, Phase.DRAINING, Phase.STOPPED})


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator, as its driver describes it."""

    name: str
    memory_bytes: int
    free_bytes: int
    """Memory that no process held when it was looked at."""
    compute_capability: tuple[int, int]

    @property
    def native_fp8(self) -> bool:
        """Whether its tensor cores compute with FP8 (compute capability 8.9 and above)."""
        return self.compute_capability >= (8, 9)

    @property
    def native_fp4(self) -> bool:
        """Whether its tensor cores compute with FP4 (compute capability 10.0 and above)."""
        return self.compute_capability >= (10, 0)

    def as_json(self) -> dict[str, Any]:
        """Return it as an object for /status."""
        major, minor = self.compute_capability
        return {
            "name": self.name,
            "memoryBytes": self.memory_bytes,
            "freeBytes": self.free_bytes,
            "computeCapability": f"{major}.{minor}",
            "nativeFp8": self.native_fp8,
            "nativeFp4": self.native_fp4,
        }


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of the engine's process."""

    name: str
    command: tuple[str, ...]
    """As it may be shown: secrets are replaced."""
    pid: int | None = None
    exit_status: int | None = None
    """128 plus the number of the signal where one ended it."""
    last_words: str = ""
    """Why it ended, as one sentence."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """Where the worker stands. Immutable: each change is a new value."""

    engine: EngineFacts
    since: float
    """When the phase began, in seconds since 1970."""
    phase: Phase = Phase.PREPARING
    message: str = ""
    """What the worker waits for, or why it failed, as one sentence."""
    progress: float | None = None
    """How much of the weights the engine has loaded (0 to 1); None where it does not say."""
    model_path: str = ""
    architectures: tuple[str, ...] = ()
    """From the model's config.json."""
    accelerators: tuple[Accelerator, ...] = field(default=())

    def enter(self, phase: Phase, now: float, message: str) -> WorkerState:
        """Return the state in *phase*, begun at *now*. Raise ValueError where it cannot follow this one's."""
        if phase not in FOLLOWING[self.phase]:
            raise ValueError(f"{phase.value} cannot follow {self.phase.value}")
        return replace(self, phase=phase, since=now, message=message, progress=None)

    @property
    def started(self) -> bool:
        """Whether the engine has answered its first completion."""
        return self.phase in STARTED

    def as_json(self) -> dict[str, Any]:
        """Return it as the object that /status shows."""
        return {
            "phase": self.phase.value,
            "since": datetime.fromtimestamp(self.since, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "message": self.message,
            "progress": self.progress,
            "model": {"path": self.model_path, "architectures": list(self.architectures)},
            "accelerators": [one.as_json() for one in self.accelerators],
            "engine": {
                "name": self.engine.name,
                "command": list(self.engine.command),
                "pid": self.engine.pid,
                "exitStatus": self.engine.exit_status,
                "lastWords": self.engine.last_words,
            },
        }
