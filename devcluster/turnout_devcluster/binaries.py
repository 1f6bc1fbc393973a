"""Which binaries a cluster runs: those of KUBEBUILDER_ASSETS where it is set, ours otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout_devcluster.build import ensure_built
from turnout_devcluster.components import API_SERVER, CLIENTS, ETCD, SERVERS
from turnout_devcluster.errors import ToolchainError

if TYPE_CHECKING:
    from turnout_devcluster.progress import Progress

ASSETS_VARIABLE: Final = "KUBEBUILDER_ASSETS"
"""Folder with etcd, kube-apiserver and kubectl, as envtest's setup leaves it."""

_ASSETS: Final = (ETCD, API_SERVER, "kubectl")


def find_binaries(progress: Progress) -> dict[str, Path]:
    """Return the path of every tool's binary, by tool.

    What KUBEBUILDER_ASSETS does not hold beyond its three (controller manager, scheduler, Helm) is ours.

    :raises ToolchainError: when KUBEBUILDER_ASSETS lacks one of its three.
    :raises BuildError: when ours cannot be built.
    """
    tools = (*SERVERS, *CLIENTS)
    given = os.environ.get(ASSETS_VARIABLE)
    found = _assets(Path(given).absolute(), tools) if given else {}
    if given:
        progress.line(f"using {', '.join(found)} of {ASSETS_VARIABLE}={given}")
    if len(found) < len(tools):
        built = ensure_built(progress)
        found = {tool: found.get(tool, built / tool) for tool in tools}
    return found


def _assets(folder: Path, tools: tuple[str, ...]) -> dict[str, Path]:
    missing = [tool for tool in _ASSETS if not os.access(folder / tool, os.X_OK)]
    if missing:
        raise ToolchainError(
            f"{ASSETS_VARIABLE} is {folder}, but these are missing there: {', '.join(missing)}. "
            f"Point it to a folder that has {', '.join(_ASSETS)}, or unset it to use Turnout's own build."
        )
    return {tool: folder / tool for tool in tools if os.access(folder / tool, os.X_OK)}
