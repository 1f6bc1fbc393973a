"""KV-cache utilization of the pools, as the workers' metrics have it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import httpx

from turnout_prom.search import PageError, search

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_USAGE: Final = b"vllm:kv_cache_usage_perc"
_TIMEOUT_SECONDS: Final = 2.0


def utilization(metrics: bytes) -> float | None:
    """Return the share of the KV cache in use, 0 to 1, from a worker's metrics, the mean of its engines; None where they lack it."""
    try:
        shares = [share for _, share in search(metrics, _USAGE)]
    except PageError:
        return None
    return sum(shares) / len(shares) if shares else None


async def pool_utilization(http: httpx.AsyncClient, workers: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Return the mean share in use by role, over the workers that answer. Roles without an answer are absent."""
    roles = {role: list(urls) for role, urls in workers.items()}
    answers = await asyncio.gather(
        *(asyncio.gather(*(_read(http, url) for url in urls)) for urls in roles.values())
    )
    means = {}
    for role, page in zip(roles, answers, strict=True):
        values = [value for value in page if value is not None]
        if values:
            means[role] = sum(values) / len(values)
    return means


async def _read(http: httpx.AsyncClient, url: str) -> float | None:
    """Return one worker's utilization; None where it does not answer, as one that leaves does not."""
    try:
        answer = await http.get(f"{url}/metrics", timeout=_TIMEOUT_SECONDS)
    except httpx.HTTPError:
        return None
    return utilization(answer.content) if answer.is_success else None
