"""A model of an inference engine for simulation: KV cache, batching and latencies in virtual time."""

from turnout.engine.engine import Engine
from turnout.engine.errors import (
    DuplicateRequestError,
    EngineError,
    QueueFullError,
    RequestTooLargeError,
    SettingsError,
)
from turnout.engine.journal import BlocksCached, BlocksEvicted, CacheCleared, JournaledKvCache
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
    "BlocksCached",
    "BlocksEvicted",
    "CacheCleared",
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
    "JournaledKvCache",
    "LeaseExpired",
    "Preempted",
    "QueueFullError",
    "RequestTooLargeError",
    "SettingsError",
]
