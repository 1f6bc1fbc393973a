"""What the node agent's tasks have raised: counted by task, in the Prometheus text format."""

from __future__ import annotations

from typing import Final

TASKS: Final = (
    "callback", "container", "events", "forward", "kubelet", "logs", "node", "pod", "pod_status", "probe", "splice",
    "start", "stop", "watch",
)  # fmt: skip
"""What the agent runs for as long as it, a pod or a container lives, by the names that failures are counted under."""
_NAME: Final = "turnout_node_task_failures_total"


class TaskFailures:
    """Counts."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(TASKS, 0)

    def count(self, task: str) -> None:
        """Count a failure of *task*."""
        self._counts[task] = self._counts.get(task, 0) + 1

    def exposition(self) -> str:
        """Return all counts in the Prometheus text format."""
        lines = [
            f"# HELP {_NAME} What the node agent's tasks have raised and it has survived, by task.",
            f"# TYPE {_NAME} counter",
            *(f'{_NAME}{{task="{task}"}} {number}' for task, number in self._counts.items()),
        ]
        return "\n".join(lines) + "\n"
