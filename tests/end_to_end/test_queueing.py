"""A user has requests wait in the router: no request is lost, the shortest goes first, and scaling sees what waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.installation import llmdeployment, wait_until

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster

LONG = 24_000
"""Tokens of a prompt that an H100 computes in 0.7 s."""
REQUESTS = 60


def test_what_no_worker_can_begin_with_waits_in_the_router(turnout: Installation, space: str) -> None:
    """``queueing: Router``: under more prompts than a worker can compute, and with a second one on its way, all are answered."""
    manifest = llmdeployment("queueing", prefill=None, decode=(1, 2))
    manifest["spec"]["routing"] = {"queueing": "Router"}
    turnout.apply(manifest, namespace=space)
    turnout.wait_condition("queueing", space, "Ready")
    pages = [f"http://{pod['status']['podIP']}:9090/metrics" for pod in turnout.router_pods()]
    statuses, most_held, most_seconds = asyncio.run(load(turnout.router_url(), pages, f"{space}/queueing"))
    assert statuses == [200] * REQUESTS
    assert most_held >= REQUESTS // 4
    assert most_seconds > 0

    def none_is_held() -> bool:
        return sum(held(httpx.get(page).text, f"{space}/queueing")[0] for page in pages) == 0

    wait_until("the line is empty", none_is_held, 20)


async def load(url: str, pages: list[str], deployment: str) -> tuple[list[int], float, float]:
    """Send all requests at once, and look at the routers meanwhile: the statuses, and the most that was seen held."""
    most_held = most_seconds = 0.0
    limits = httpx.Limits(max_connections=REQUESTS + len(pages))
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        asking = [asyncio.create_task(ask(client, url, deployment, number)) for number in range(REQUESTS)]
        while not all(task.done() for task in asking):
            found = [held((await client.get(page)).text, deployment) for page in pages]
            most_held = max(most_held, sum(number for number, _ in found))
            most_seconds = max(most_seconds, sum(seconds for _, seconds in found))
            await asyncio.sleep(0.05)
        return [task.result() for task in asking], most_held, most_seconds


async def ask(client: httpx.AsyncClient, url: str, model: str, number: int) -> int:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"{number} again " * (LONG // 3)}],
        "stream": True,
        "max_tokens": 4,
    }
    answer = await client.post(f"{url}/chat/completions", json=body)
    assert answer.status_code != 200 or answer.text.rstrip().endswith("[DONE]")
    return answer.status_code


def held(page: str, deployment: str) -> tuple[float, float]:
    """Return how many requests a router holds, and for how long in all."""
    found = {"turnout_router_held": 0.0, "turnout_router_held_seconds_total": 0.0}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in found and sample.labels["deployment"] == deployment:
                found[sample.name] += sample.value
    return found["turnout_router_held"], found["turnout_router_held_seconds_total"]
