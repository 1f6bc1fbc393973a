"""A user asks for exact knowledge of caches: what workers have computed for others is found by the router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from support.installation import llmdeployment, wait_until

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster

STORY = "There once was a turnout that knew exactly where every train had been before. " * 60


def test_a_prompt_goes_to_the_worker_that_has_computed_it_for_others(
    turnout: Installation, space: str
) -> None:
    """``cacheKnowledge: Exact``: what was sent to one worker behind the routers' backs leads them to that worker."""
    manifest = llmdeployment("knowing", prefill=None, decode=(2, 2))
    manifest["spec"]["routing"] = {"cacheKnowledge": "Exact"}
    turnout.apply(manifest, namespace=space)
    turnout.wait_condition("knowing", space, "Ready")
    pods = turnout.ready_pods("turnout.dev/deployment=knowing", space)
    assert len(pods) == 2
    blocks = 0
    for number, pod in enumerate(pods):
        worker = f"http://{pod['status']['podIP']}:8000"
        body = {"model": "knowing", "messages": question(number), "max_tokens": 4}
        httpx.post(f"{worker}/v1/chat/completions", json=body, timeout=30).raise_for_status()
        blocks += httpx.post(f"{worker}/tokenize", json=body).json()["count"] // 16
    for router in turnout.router_pods():
        wait_until("the router knows both caches", lambda at=router: known_blocks(at, space) >= blocks, 20)
    with openai.OpenAI(base_url=turnout.router_url(), api_key="none", max_retries=5, timeout=30) as client:
        for number, pod in enumerate(pods):
            answer = client.chat.completions.with_raw_response.create(
                model=f"{space}/knowing", messages=question(number), max_tokens=4
            )
            assert answer.headers["x-turnout-backend"] == f"{space}/{pod['metadata']['name']}"


def question(number: int) -> Any:
    return [{"role": "user", "content": f"{number}: {STORY}"}]


def known_blocks(router: dict[str, Any], space: str) -> float:
    """Return how many blocks a router knows to be cached."""
    page = httpx.get(f"http://{router['status']['podIP']}:9090/metrics").text
    name = f'turnout_router_kv_events_blocks{{deployment="{space}/knowing"}} '
    return sum(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))
