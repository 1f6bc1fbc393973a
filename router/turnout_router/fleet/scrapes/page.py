"""A worker's metrics page: the few series that routing needs, found by name instead of parsing all of it.

A router reads one for every worker several times a second. vLLM's series all have labels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout_prom.search import MAX_SAMPLES, PageError, search

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUNNING: Final = b"vllm:num_requests_running"
_WAITING: Final = b"vllm:num_requests_waiting"
_BY_REASON: Final = b"vllm:num_requests_waiting_by_reason"
_KV_USAGE: Final = b"vllm:kv_cache_usage_perc"
_QUERIED: Final = b"vllm:prefix_cache_queries_total"
_HIT: Final = b"vllm:prefix_cache_hits_total"
_MOVED: Final = b"vllm:external_prefix_cache_hits_total"
_BY_SOURCE: Final = b"vllm:prompt_tokens_by_source_total"
_LORA: Final = b"vllm:lora_requests_info"

_MOST_REQUESTS: Final = 1_000_000
_MOST: Final = 1e15
"""Larger figures are invalid: a token counter gets there in 300 years. So computed values stay within bounds."""
MAX_SETS: Final = 8_192
"""Sets of LoRA adapters that there have been, each of which stays on the page."""
_COMPUTED: Final = b'source="local_compute"'
_DEFERRED: Final = b'reason="deferred"'
_ADAPTERS: Final = re.compile(rb'[{,](?:running|waiting)_lora_adapters="([^"]*)"')
_MOST_ADAPTERS: Final = re.compile(rb'[{,]max_lora="([0-9]{1,4})"')


@dataclass(frozen=True, slots=True)
class Page:
    """The figures of one page, over all engines behind it (data parallel ranks): counts are summed, usage is their mean."""

    running: int
    """Requests that hold KV blocks: those in the batch, and those whose cache is on its way from a prefill worker."""
    waiting: int
    """Requests that wait for room."""
    kv_usage: float
    unfinished_tokens: int | None
    """Prompt tokens to compute (neither cached nor moved) of prompts that have been admitted, less those whose first
    token has come, ever since the engine began. Requests that were aborted in between stay in it. None where a
    counter is missing."""
    adapters: frozenset[str] = frozenset()
    """LoRA adapters of running and waiting requests."""
    most_adapters: int = 1
    """Adapters that it holds at a time."""


def read_page(text: bytes) -> Page:
    """Return what *text*, in Prometheus' text format, says. Raise PageError."""
    usage = [value for _, value in _samples(text, _KV_USAGE)]
    running, waiting = _sum(text, _RUNNING), _sum(text, _WAITING)
    if not usage or running is None or waiting is None:
        raise PageError("it lacks running requests, waiting requests or the KV cache's usage")
    if running + waiting > _MOST_REQUESTS:
        raise PageError(f"it reports {running + waiting:g} requests")
    adapters, most_adapters = _adapters(text)
    deferred = min(waiting, sum(value for labels, value in _samples(text, _BY_REASON) if _DEFERRED in labels))
    return Page(
        running=int(running + deferred),
        waiting=int(waiting - deferred),
        kv_usage=min(1.0, sum(usage) / len(usage)),
        unfinished_tokens=_unfinished(text),
        adapters=adapters,
        most_adapters=most_adapters,
    )


def _unfinished(text: bytes) -> int | None:
    queried, hit, moved = _sum(text, _QUERIED), _sum(text, _HIT), _sum(text, _MOVED)
    computed = [value for labels, value in _samples(text, _BY_SOURCE) if _COMPUTED in labels]
    if queried is None or hit is None or not computed:
        return None
    return int(queried - hit - (moved or 0) - sum(computed))


def _adapters(text: bytes) -> tuple[frozenset[str], int]:
    """Return the adapters at work and how many there may be.

    Every set of adapters that there ever was is a series of its own, whose value is the time at which it was so: the
    latest one holds.
    """
    latest = max(_samples(text, _LORA, MAX_SETS), key=lambda sample: sample[1], default=None)
    if latest is None:
        return frozenset(), 1
    labels = latest[0]
    names = b",".join(_ADAPTERS.findall(labels)).decode(errors="replace")
    most = _MOST_ADAPTERS.search(labels)
    return frozenset(name for name in names.split(",") if name), max(1, int(most[1])) if most else 1


def _sum(text: bytes, name: bytes) -> float | None:
    values = [value for _, value in _samples(text, name)]
    return sum(values) if values else None


def _samples(text: bytes, name: bytes, most: int = MAX_SAMPLES) -> Iterator[tuple[bytes, float]]:
    """Yield labels and value of every sample of *name*. Raise PageError as `search` does, and for what no counter can be."""
    for labels, value in search(text, name, most):
        if not 0 <= value < _MOST:
            raise PageError(f"{name.decode()} is {value}")
        yield labels, value
