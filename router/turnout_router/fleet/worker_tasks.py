"""Tasks of one kind, each on one worker: at most one for each worker at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from turnout.routing import Backend
    from turnout_runtime.supervision import Supervisor


class WorkerTasks:
    """Starts the tasks called *name*. `running` are the ids of the workers for which one runs now."""

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        self.running: set[str] = set()
        self._supervisor = supervisor
        self._name = name

    def start(self, backend: Backend, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* on *backend*, for which no task may be running. What it raises is logged and counted."""
        self.running.add(backend.id)
        task = self._supervisor.once(self._name, work, detail=backend.id)
        task.add_done_callback(lambda _: self.running.discard(backend.id))
