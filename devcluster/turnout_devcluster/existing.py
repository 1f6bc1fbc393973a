"""A cluster of the user's, used instead of a dev cluster."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from turnout_devcluster.build import ensure_built
from turnout_devcluster.client import ClusterClient
from turnout_devcluster.complaints import explained
from turnout_devcluster.errors import CommandError, DevClusterError

if TYPE_CHECKING:
    from turnout_devcluster.progress import Progress

KUBECONFIG_VARIABLE: Final = "TURNOUT_KUBECONFIG"
"""Names the kubeconfig of a cluster to use where ``--kubeconfig`` is not given."""


class ExistingCluster(ClusterClient):
    """Nothing of it is started or stopped here; its pods run on its own nodes."""

    @classmethod
    def of(cls, kubeconfig: Path, progress: Progress) -> Self:
        """Return the cluster of *kubeconfig* after asking its API server whether it is ready.

        kubectl and helm are those on PATH; where one is missing, Turnout's own are built.

        :raises DevClusterError: when the file or the API server is not there.
        """
        path = kubeconfig.expanduser().absolute()
        if not path.is_file():
            raise DevClusterError(f"There is no kubeconfig at {path}. Name one that exists, or leave it out.")
        on_path = shutil.which("kubectl") and shutil.which("helm")
        # An empty folder adds nothing to PATH: the user's own tools are meant.
        folder = Path(os.devnull) if on_path else ensure_built(progress)
        cluster = cls("existing", path, folder)
        try:
            cluster.kubectl("get", "--raw", "/readyz", timeout=30)
        except CommandError as error:
            raise DevClusterError(f"{path}: {explained(error.stderr, str(path))}.") from error
        return cluster


def given_kubeconfig(argument: Path | None) -> Path | None:
    """Return the kubeconfig that the user gave, by argument or by TURNOUT_KUBECONFIG; None: none."""
    variable = os.environ.get(KUBECONFIG_VARIABLE)
    return argument or (Path(variable) if variable else None)
