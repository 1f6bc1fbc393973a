"""The router in front of real simulated workers: the P/D exchange as vLLM's likeness has it, and its faults."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from openai import APIError, AsyncOpenAI

from support.router_running import DEPLOYMENT, LONG, Running, eventually, running_router
from support.worker_process import NAME, WorkerProcess, running_worker

if TYPE_CHECKING:
    from pathlib import Path


def fleet(*workers: tuple[str, WorkerProcess]) -> dict[str, Any]:
    backends = [{"role": role, "url": worker.url} for role, worker in workers]
    return {
        "deployments": [{"name": DEPLOYMENT, "servedNames": [NAME], "timeScale": 5, "backends": backends}]
    }


def openai_client(r: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=r.base_url, api_key="any", max_retries=0, timeout=60)


async def ask(client: AsyncOpenAI, tokens: int = 24, prompt: str = LONG) -> tuple[str, int]:
    """Stream a completion; return its text and the output tokens of its usage."""
    stream = await client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        max_tokens=tokens,
        extra_body={"ignore_eos": True},
        stream_options={"include_usage": True},
    )
    text, count = "", 0
    async for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        if chunk.usage is not None:
            count = chunk.usage.completion_tokens
    return text, count


async def test_a_pair_answers_as_one_worker_would(tmp_path: Path) -> None:
    """The same text over a pair as over an aggregated worker; the cache has moved, and none is left pinned."""
    with ExitStack() as stack:
        prefill = stack.enter_context(running_worker(role="prefill", time_scale=5))
        decode = stack.enter_context(running_worker(role="decode", time_scale=5))
        whole = stack.enter_context(running_worker(role="aggregated", time_scale=5))
        async with running_router(tmp_path, fleet(("prefill", prefill), ("decode", decode))) as r:
            async with openai_client(r) as client:
                paired = await ask(client)
            assert await r.metric("turnout_router_output_tokens_total", deployment=DEPLOYMENT) == 24
        (tmp_path / "one").mkdir()
        async with (
            running_router(tmp_path / "one", fleet(("aggregated", whole))) as r,
            openai_client(r) as client,
        ):
            alone = await ask(client)
        moved = decode.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")
    assert paired == alone
    assert paired[1] == 24
    assert moved > 0


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_is_killed_under_load(tmp_path: Path, role: str) -> None:
    """Kill -9 of one of two workers of a role: only streams that it was writing may break, and they say so."""
    with ExitStack() as stack:
        prefills = [stack.enter_context(running_worker(role="prefill", time_scale=5)) for _ in range(2)]
        decodes = [stack.enter_context(running_worker(role="decode", time_scale=5)) for _ in range(2)]
        workers = [*(("prefill", w) for w in prefills), *(("decode", w) for w in decodes)]
        async with running_router(tmp_path, fleet(*workers)) as r, openai_client(r) as client:
            done = broken = 0

            async def one(number: int) -> None:
                nonlocal done, broken
                for turn in range(5):
                    try:
                        text, count = await ask(client, 60, f"{number} {turn} {LONG}")
                    except APIError as error:
                        assert "The stream broke" in str(error)  # noqa: PT017 - only this one is allowed
                        broken += 1
                    else:
                        assert (count, bool(text)) == (60, True)
                        done += 1

            asking = [asyncio.create_task(one(number)) for number in range(6)]
            await eventually(lambda: done >= 3, 60)
            (prefills if role == "prefill" else decodes)[0].kill()
            await asyncio.wait_for(asyncio.gather(*asking), 120)
    assert done + broken == 30
    assert broken == 0 if role == "prefill" else broken <= 6


async def test_a_client_that_leaves_frees_both_workers(tmp_path: Path) -> None:
    """Nothing runs on the decode worker any more."""
    with ExitStack() as stack:
        prefill = stack.enter_context(running_worker(role="prefill"))
        decode = stack.enter_context(running_worker(role="decode"))
        async with (
            running_router(tmp_path, fleet(("prefill", prefill), ("decode", decode))) as r,
            openai_client(r) as client,
        ):
            asking = asyncio.create_task(ask(client, 2000))
            await eventually(lambda: decode.metric("vllm:num_requests_running") == 1)
            asking.cancel()
            await eventually(lambda: decode.metric("vllm:num_requests_running") == 0)


async def test_an_over_long_prompt_is_the_clients_own_error(tmp_path: Path) -> None:
    """The worker's 400 comes through with its words."""
    with running_worker(role="aggregated", max_length=512, time_scale=5) as worker:
        async with running_router(tmp_path, fleet(("aggregated", worker))) as r:
            answer = await r.chat("word " * 4000, model=NAME)
    assert answer.status_code == 400
    assert "512" in answer.text
