"""What can go wrong between a load client and a server.

ReplayError
├── TargetError        the address or the model to replay against cannot be used
└── RequestError       one request failed: counted, never raised beyond its request
    ├── ConnectError   no connection
    ├── BrokenError    the connection ended before the answer did
    └── LateError      no complete answer within the deadline
"""

from __future__ import annotations


class ReplayError(Exception):
    """Base of what a replay raises."""


class TargetError(ReplayError):
    """The address or the model to replay against cannot be used."""


class RequestError(ReplayError):
    """One request failed."""


class ConnectError(RequestError):
    """No connection could be made."""


class BrokenError(RequestError):
    """The connection ended before the answer did."""


class LateError(RequestError):
    """No complete answer within the deadline."""
