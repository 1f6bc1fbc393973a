"""A cluster as its users see it: a kubeconfig, and kubectl and Helm that obey it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from turnout_devcluster.errors import CommandError, ToolchainError

if TYPE_CHECKING:
    from collections.abc import Mapping


class ClusterClient:
    """Runs the command-line tools against the cluster of *kubeconfig*; the tools of *folder* come first."""

    def __init__(self, name: str, kubeconfig: Path, folder: Path) -> None:
        self.name = name
        self.kubeconfig = kubeconfig
        """The administrator's kubeconfig."""
        self._folder = folder

    def binary(self, tool: str) -> Path:
        """Return the path of *tool* (kubectl, helm, etcd, kube-apiserver, ...).

        :raises ToolchainError: when there is none.
        """
        found = shutil.which(tool, path=self.env()["PATH"])
        if found is None:
            raise ToolchainError(
                f"{tool} is neither in {self._folder} nor on PATH. Install it and try again."
            )
        return Path(found)

    def env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return *base* (default: this process's environment) with KUBECONFIG, and the tools first on PATH."""
        environment = dict(os.environ if base is None else base)
        environment["KUBECONFIG"] = str(self.kubeconfig)
        environment["PATH"] = os.pathsep.join([str(self._folder), environment.get("PATH", os.defpath)])
        return environment

    def kubectl(self, *args: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run kubectl, *timeout* in seconds, and return what it wrote to stdout.

        :raises CommandError: when it fails or takes longer; the message holds its stderr.
        """
        return self._run("kubectl", args, stdin, timeout)

    def helm(self, *args: str, stdin: str | None = None, timeout: float = 300) -> str:
        """Run helm, *timeout* in seconds, and return what it wrote to stdout.

        :raises CommandError: when it fails or takes longer; the message holds its stderr.
        """
        return self._run("helm", args, stdin, timeout)

    def _run(self, tool: str, args: tuple[str, ...], stdin: str | None, timeout: float) -> str:
        spoken = " ".join([tool, *args])
        try:
            done = subprocess.run(
                [str(self.binary(tool)), *args],
                input="" if stdin is None else stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=self.env(),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            # Bytes although text was asked for: that is how the standard library reports a time-out.
            wrote = error.stderr.decode(errors="replace").strip() if isinstance(error.stderr, bytes) else ""
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
