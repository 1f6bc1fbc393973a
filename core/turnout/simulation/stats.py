"""What an engine counts, in vLLM's meaning of the words."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from turnout.simulation.request import FinishReason  # noqa: TC001 - dataclass fields


@dataclass(slots=True)
class Counters:
    """Totals since the engine started. Tokens unless the name says otherwise."""

    prompt_tokens: int = 0
    """Of requests whose prefill is complete."""
    prompt_local_compute: int = 0
    prompt_local_cache_hit: int = 0
    prompt_external_transfer: int = 0
    """The three sources of prompt_tokens."""
    generation_tokens: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache, once per admission."""
    prefix_hits: int = 0
    external_queries: int = 0
    """Prompt tokens that were not cached here and had a prefill worker behind them."""
    external_hits: int = 0
    preemptions: int = 0
    """Number of preemptions."""
    leases_expired: int = 0
    """Number of pinned prompts that no worker fetched in time."""
    rejections: int = 0
    """Number of requests refused because the queue was full."""
    iterations: int = 0
    """Number of iterations."""
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "abort": 0, "error": 0}
    )
    """Number of requests by how they ended."""

    def copy(self) -> Counters:
        """Return a copy that does not change any more."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["finished"] = dict(self.finished)
        return Counters(**values)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine at one moment."""

    running: int
    """Requests in the batch."""
    waiting: int
    """Requests that wait for room (capacity) or for their KV to arrive (deferred)."""
    waiting_deferred: int
    pinned: int
    """Finished prompts that wait to be fetched."""
    kv_usage: float
    """Share of KV blocks in use, pinned ones included, 0 to 1. Blocks that are cached and unused count as free."""
    counters: Counters
