"""What can go wrong at the node's edges.

NodeError
    ApiError              the API server answered with an error
        NotFoundError     404
        ConflictError     409: changed meanwhile, exists already, or another object of this name
    UnreachableError      the API server did not answer
    ConfigurationError    an option or a kubeconfig cannot be used
"""

from __future__ import annotations


class NodeError(Exception):
    """Root of this package's exceptions."""


class ApiError(NodeError):
    """The API server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class NotFoundError(ApiError):
    """The object does not exist (404)."""


class ConflictError(ApiError):
    """The object changed meanwhile, exists already, or is another one of this name (409)."""


class UnreachableError(NodeError):
    """The API server did not answer."""


class ConfigurationError(NodeError):
    """An option or a kubeconfig cannot be used; the message says what to do."""
