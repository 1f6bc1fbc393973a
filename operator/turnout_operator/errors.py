"""Everything that can go wrong at the operator's edges.

OperatorError
├── ConfigurationError       what it was started with cannot work: it exits with status 2
├── LeadershipLost           another operator may act now: it exits with status 1
├── NotOurs                  another release acts in that namespace: nothing is written there
├── WatchesEnded             the watches ended without having been stopped: they are started again
├── ChildNameTaken           an object of another owner has the name of a child: it is left alone
└── ApiError                 the API server refused or did not answer
    ├── Unreachable          no answer: worth another attempt
    ├── NotFound             404
    ├── Conflict             409: another writer was faster
    ├── Forbidden            401 and 403: the service account lacks a right
    └── Rejected             any other 4xx: what was sent is wrong
"""

from __future__ import annotations


class OperatorError(Exception):
    """Base of all errors of the operator."""


class ConfigurationError(OperatorError):
    """What the operator was started with cannot work. The message says what to write instead."""


class LeadershipLost(OperatorError):  # noqa: N818 - it names what happened
    """The lease could not be renewed in time, so another operator may act now."""


class NotOurs(OperatorError):  # noqa: N818 - it names what happened
    """Another release of Turnout acts in the namespace, or may do so by now."""


class WatchesEnded(OperatorError):  # noqa: N818 - it names what happened
    """The watches ended without having been stopped."""


class ChildNameTaken(OperatorError):  # noqa: N818 - it names what happened
    """An object that the deployment does not own has a child's name. The message says which, and what to do."""


class ApiError(OperatorError):
    """The API server refused a request or did not answer it."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 where there was no answer."""


class Unreachable(ApiError):  # noqa: N818 - it names what happened
    """No answer, or one of the 5xx and 429 kind: worth another attempt."""


class NotFound(ApiError):  # noqa: N818 - it names what happened
    """There is no such object, or no such kind."""


class Conflict(ApiError):  # noqa: N818 - it names what happened
    """The object exists already, or has changed since it was read."""


class Forbidden(ApiError):  # noqa: N818 - it names what happened
    """The operator's service account lacks the right."""


class Rejected(ApiError):  # noqa: N818 - it names what happened
    """The API server finds what was sent wrong: it would refuse it again."""
