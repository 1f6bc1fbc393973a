"""What can go wrong with a dev cluster.

::

    DevClusterError
    ├── ToolchainError        Go is missing and could not be fetched, or given binaries are incomplete
    ├── BuildError            the control plane could not be built
    ├── StartError            a cluster did not come up
    ├── StopError             something of a cluster could not be ended
    ├── UnknownClusterError   no cluster of that name
    └── CommandError          kubectl or helm ended with a failure

Each message says what happened and what to do about it; the command line prints it as it is.
"""

from __future__ import annotations


class DevClusterError(Exception):
    """Base of everything that this package raises on purpose."""


class ToolchainError(DevClusterError):
    """Go is missing and could not be fetched, or given binaries are incomplete."""


class BuildError(DevClusterError):
    """The control plane could not be built."""


class StartError(DevClusterError):
    """A cluster did not come up; the message ends with the failing component's last log lines."""


class StopError(DevClusterError):
    """Something of a cluster could not be ended in time."""


class UnknownClusterError(DevClusterError):
    """There is no cluster of that name; the message lists those that there are."""


class CommandError(DevClusterError):
    """kubectl or helm ended with a failure; the message holds what it wrote to stderr."""

    def __init__(self, message: str, *, returncode: int, stderr: str) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.stderr = stderr
