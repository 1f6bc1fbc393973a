"""Requests and settings that an engine refuses.

EngineError
├── SettingsError        settings that contradict each other
├── DuplicateRequestError     an id that is already in the engine
├── RequestTooLargeError      more tokens than the whole KV cache holds
└── QueueFullError            as many requests wait as may
"""


class EngineError(Exception):
    """Base of all that an engine refuses."""


class SettingsError(EngineError):
    """Settings that contradict each other."""


class DuplicateRequestError(EngineError):
    """The id is already in the engine."""


class RequestTooLargeError(EngineError):
    """The request alone needs more tokens than the whole KV cache holds."""


class QueueFullError(EngineError):
    """As many requests wait as may."""
