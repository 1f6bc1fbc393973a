"""What the node agent's tasks have raised: counted by task, in the Prometheus text format."""

from __future__ import annotations

from typing import Final

from turnout.metrics import NODE_TASK_FAILURES

TASKS: Final = (
    "callback", "container", "events", "forward", "kubelet", "logs", "node", "pod", "pod_status", "probe", "splice",
    "start", "stop", "watch",
)  # fmt: skip
"""What the agent runs for as long as it, a pod or a container lives, by the names that failures are counted under."""


class TaskFailures:
    """Counts."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(TASKS, 0)

    def count(self, task: str) -> None:
        """Count a failure of *task*."""
        self._counts[task] = self._counts.get(task, 0) + 1

    def exposition(self) -> str:
        """Return all counts in the Prometheus text format."""
        name = NODE_TASK_FAILURES.name
        lines = [
            f"# HELP {name} {NODE_TASK_FAILURES.help}",
            f"# TYPE {name} {NODE_TASK_FAILURES.kind}",
            *(f'{name}{{task="{task}"}} {number}' for task, number in self._counts.items()),
        ]
        return "\n".join(lines) + "\n"
