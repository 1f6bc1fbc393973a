"""Logs of pods, read from the node's files: they can be had while the API server is dead.

The node agent keeps them in ``pods/NAMESPACE_POD_UID/containers/CONTAINER/ATTEMPT.log``; ATTEMPT counts restarts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout_devcluster.errors import DevClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from turnout_devcluster.layout import ClusterFiles

_FOLLOW_SECONDS: Final = 0.2
_CHUNK_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class PodFolder:
    """What the node keeps of one pod."""

    namespace: str
    name: str
    path: Path

    def containers(self) -> list[str]:
        """Return the containers that have run, sorted."""
        return sorted({path.parent.name for path in self.path.glob("containers/*/*.log")})

    def logs(self, container: str) -> list[Path]:
        """Return the logs of a container's kept runs, oldest first."""
        return sorted(self.path.glob(f"containers/{container}/*.log"), key=lambda path: _attempt(path) or 0)


def pod_folders(files: ClusterFiles) -> list[PodFolder]:
    """Return what the node keeps of all pods, the newest of each name last."""
    if not files.pods.is_dir():
        return []
    found = []
    for path in sorted(files.pods.iterdir(), key=lambda path: path.stat().st_mtime):
        parts = path.name.split("_")
        if len(parts) == 3 and path.is_dir():  # noqa: PLR2004 - namespace, name, uid
            found.append(PodFolder(parts[0], parts[1], path))
    return found


def find_log(
    files: ClusterFiles, pod: str, *, namespace: str | None, container: str | None, previous: bool
) -> Path:
    """Return the log file of a pod's current run, or of its *previous* one.

    :raises DevClusterError: when there is none, or more than one is meant; the message lists the choice.
    """
    folders = [folder for folder in pod_folders(files) if namespace in (None, folder.namespace)]
    named = [folder for folder in folders if folder.name == pod]
    if not named:
        there = ", ".join(sorted({f"{folder.namespace}/{folder.name}" for folder in folders})) or "none"
        raise DevClusterError(f"The node keeps no pod called {pod}; it keeps: {there}.")
    namespaces = sorted({folder.namespace for folder in named})
    if len(namespaces) > 1:
        raise DevClusterError(f"{pod} is in several namespaces ({', '.join(namespaces)}): say which with -n.")
    folder = named[-1]
    containers = folder.containers()
    if container is None:
        if len(containers) != 1:
            choice = ", ".join(containers) or "none that has run"
            raise DevClusterError(f"The containers of {pod} are: {choice}. Say which with -c.")
        container = containers[0]
    logs = folder.logs(container)
    if len(logs) <= previous:
        kind = "earlier run" if previous else "log"
        raise DevClusterError(
            f"The container {container} of {pod} has no {kind}; there are: {', '.join(containers)}."
        )
    return logs[-2 if previous else -1]


def read_log(path: Path, *, follow: bool) -> Iterator[bytes]:
    """Yield a log's content; with *follow* what is added as well, over restarts, until the pod is gone."""
    while True:
        yield from _read_run(path, follow=follow)
        if not follow or not path.exists():
            return
        path = _latest(path)


def _read_run(path: Path, *, follow: bool) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        while True:
            ended = not follow or not path.exists() or _latest(path) != path
            chunk = file.read(_CHUNK_BYTES)
            if chunk:
                yield chunk
                continue
            if ended:
                return
            if path.stat().st_size < file.tell():
                file.seek(0)  # it had grown over its bound and began anew
            time.sleep(_FOLLOW_SECONDS)


def _latest(path: Path) -> Path:
    runs = [other for other in path.parent.glob("*.log") if _attempt(other) is not None]
    return max(runs, key=lambda run: _attempt(run) or 0, default=path)


def _attempt(path: Path) -> int | None:
    return int(path.stem) if path.stem.isdigit() else None
