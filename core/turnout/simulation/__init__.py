"""A model of an inference engine for simulation: KV cache, batching and latencies in virtual time."""

from turnout.simulation.engine import Engine
from turnout.simulation.errors import (
    DuplicateRequestError,
    EngineError,
    QueueFullError,
    RequestTooLargeError,
    SettingsError,
)
from turnout.simulation.journal import BlocksCached, BlocksEvicted, CacheCleared, JournaledKvCache
from turnout.simulation.request import (
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
from turnout.simulation.stats import Counters, EngineStats

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
