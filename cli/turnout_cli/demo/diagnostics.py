"""What a person needs to see when a demo failed, written down before its cluster goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout_devcluster.errors import DevClusterError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from turnout_devcluster.cluster import Cluster

_QUESTIONS: Final = (
    ("get", "nodes", "--output", "wide"),
    ("get", "llmdeployments", "--all-namespaces", "--output", "yaml"),
    ("get", "pods", "--all-namespaces", "--output", "wide"),
    ("get", "events", "--all-namespaces", "--sort-by", ".lastTimestamp"),
)

LOG_BYTES: Final = 20_000
"""Kept of each log, from its end."""


def write_diagnostics(cluster: Cluster, path: Path) -> None:
    """Write nodes, deployments, pods, events and the ends of all logs to *path*.

    What cannot be asked any more is written down as such: this runs when something is broken already.
    """
    parts = [_section("kubectl " + " ".join(question), _asker(cluster, question)) for question in _QUESTIONS]
    parts += [
        _section(str(log.relative_to(cluster.state_dir)), _tail(log))
        for log in sorted(cluster.state_dir.rglob("*.log"))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")


def _asker(cluster: Cluster, question: tuple[str, ...]) -> Callable[[], str]:
    return lambda: cluster.kubectl(*question, timeout=15)


def _tail(log: Path) -> Callable[[], str]:
    def read() -> str:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace")

    return read


def _section(title: str, read: Callable[[], str]) -> str:
    try:
        text = read()
    except (DevClusterError, OSError) as error:
        text = f"(not available: {error})"
    return f"==== {title}\n{text}\n"
