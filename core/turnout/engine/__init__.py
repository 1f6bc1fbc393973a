"""A model of an inference engine for simulation: KV cache, batching and latencies in virtual time."""

from turnout.engine.engine import Engine
from turnout.engine.errors import (
    DuplicateRequestError,
    EngineError,
    QueueFullError,
    RequestTooLargeError,
    SettingsError,
)
from turnout.engine.request import (
    Decoded,
    EngineRequest,
    EngineSettings,
    Event,
    Fetch,
    Finished,
    FinishReason,
    FirstToken,
    LeaseExpired,
    Preempted,
)
from turnout.engine.stats import Counters, EngineStats

__all__ = [
    "Counters",
    "Decoded",
    "DuplicateRequestError",
    "Engine",
    "EngineError",
    "EngineRequest",
    "EngineSettings",
    "EngineStats",
    "Event",
    "Fetch",
    "FinishReason",
    "Finished",
    "FirstToken",
    "LeaseExpired",
    "Preempted",
    "QueueFullError",
    "RequestTooLargeError",
    "SettingsError",
]
