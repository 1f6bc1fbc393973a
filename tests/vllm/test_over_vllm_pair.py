"""The router over a real prefill and a real decode vLLM: the same words as from one worker, and clients that leave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.router_running import DEPLOYMENT, Running, chat, eventually_async, running_router
from support.worker_contract import contract_of

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_devcluster.vllm.server import VllmServer

PROMPTS = 50
TOKENS = 24
pytestmark = pytest.mark.timeout(900)


def fleet(servers: dict[str, VllmServer]) -> dict[str, Any]:
    backends = [{"role": role, "url": servers[role].url} for role in ("prefill", "decode")]
    deployment = {"name": DEPLOYMENT, "servedNames": ["tiny"], "engine": "vllm", "backends": backends}
    # By load alone, no prompt is computed by the decode worker for being cheaper there.
    return {"deployments": [deployment | {"localPrefillBelowTokens": 0, "policy": "LeastLoaded"}]}


def greedy(number: int, **more: Any) -> dict[str, Any]:
    """Return a request whose prompt has 60 to 1,400 tokens."""
    words = f"Story {number}: " + "once upon a time there was a railway " * (1 + number % 25)
    return chat(words, model="tiny", temperature=0, max_tokens=TOKENS, **more)


async def answers(client: httpx.AsyncClient, url: str) -> list[str]:
    """Return the answers to all prompts, four at a time."""
    room = asyncio.Semaphore(4)

    async def one(number: int) -> str:
        async with room:
            answer = await client.post(f"{url}/v1/chat/completions", json=greedy(number), timeout=120)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["choices"][0]["message"]["content"])

    return await asyncio.gather(*[one(number) for number in range(PROMPTS)])


async def test_a_pair_says_what_an_aggregated_server_says(
    tmp_path: Path, vllm_servers: dict[str, VllmServer]
) -> None:
    """Greedy answers to 50 prompts are equal, and the decode worker has computed none of them."""
    decode = contract_of(vllm_servers["decode"].url, simulated=False)
    source = "vllm:prompt_tokens_by_source_total"
    computed, moved = (
        decode.metric(source, source=name) for name in ("local_compute", "external_kv_transfer")
    )
    async with running_router(tmp_path, fleet(vllm_servers)) as r:
        paired = await answers(r.client, "")
        assert await r.metric("turnout_router_requests_total", deployment=DEPLOYMENT, code="200") == PROMPTS
    async with httpx.AsyncClient() as client:
        assert paired == await answers(client, vllm_servers["aggregated"].url)
    assert decode.metric(source, source="external_kv_transfer") > moved
    assert decode.metric(source, source="local_compute") == computed


@pytest.mark.parametrize("after_first", [False, True])
async def test_a_client_that_leaves_frees_both_workers(
    tmp_path: Path,
    vllm_servers: dict[str, VllmServer],
    after_first: bool,  # noqa: FBT001 - a case
) -> None:
    """Before and after the first token: nothing runs on either worker soon after."""
    workers = [contract_of(vllm_servers[role].url, simulated=False) for role in ("prefill", "decode")]

    async def idle() -> bool:
        running = [await asyncio.to_thread(worker.metric, "vllm:num_requests_running") for worker in workers]
        return sum(running) == 0

    async with running_router(tmp_path, fleet(vllm_servers)) as r:
        body = greedy(3, stream=True, ignore_eos=True) | {"max_tokens": 1500}
        await leave(r, body, after_first=after_first)
        await eventually_async(idle, 60)
        answer = await r.client.post("/v1/chat/completions", json=greedy(4), timeout=60)
        assert answer.status_code == 200


async def leave(r: Running, body: dict[str, Any], *, after_first: bool) -> None:
    """Send *body* and close the connection, after the first event or as soon as the router has sent it on."""
    if after_first:
        async with r.client.stream("POST", "/v1/chat/completions", json=body, timeout=60) as answer:
            await anext(answer.aiter_lines())
        return

    async def sent_on() -> bool:
        return await r.metric("turnout_router_in_flight", deployment=DEPLOYMENT) > 0

    request = asyncio.create_task(r.client.post("/v1/chat/completions", json=body, timeout=60))
    await eventually_async(sent_on)
    request.cancel()
    await asyncio.wait({request})
