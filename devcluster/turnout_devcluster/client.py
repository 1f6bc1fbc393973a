"""kubectl and Helm, pointed at one cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnout_devcluster.errors import CommandError, ToolchainError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Client:
    """Runs the command-line tools against the cluster of *kubeconfig*."""

    kubeconfig: Path
    bin: Path
    """Folder that is searched for the tools before PATH is."""

    def binary(self, tool: str) -> Path:
        """Return the path of *tool* (kubectl, helm, etcd, kube-apiserver, ...).

        :raises ToolchainError: when there is none.
        """
        found = shutil.which(tool, path=self.env()["PATH"])
        if found is None:
            raise ToolchainError(f"{tool} is neither in {self.bin} nor on PATH. Install it and try again.")
        return type(self.bin)(found)

    def env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return *base* (default: this process's environment) with KUBECONFIG, and our tools first on PATH."""
        environment = dict(os.environ if base is None else base)
        environment["KUBECONFIG"] = str(self.kubeconfig)
        environment["PATH"] = os.pathsep.join([str(self.bin), environment.get("PATH", os.defpath)])
        return environment

    def run(self, tool: str, *args: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run *tool* and return what it wrote to stdout; *timeout* in seconds.

        :raises CommandError: when it fails or takes longer; the message holds its stderr.
        """
        spoken = " ".join([tool, *args])
        try:
            done = subprocess.run(
                [str(self.binary(tool)), *args],
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=self.env(),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            wrote = (error.stderr or b"").decode(errors="replace").strip()
            raise CommandError(
                f"'{spoken}' did not end within {timeout:.0f} s: {wrote}", returncode=124, stderr=wrote
            ) from error
        if done.returncode != 0:
            raise CommandError(
                f"'{spoken}' ended with status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}",
                returncode=done.returncode,
                stderr=done.stderr,
            )
        return done.stdout
