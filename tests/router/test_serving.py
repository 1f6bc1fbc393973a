"""Requests that go well: through the official client, streamed and not, over a pair of workers and over one."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI

from support.router_mock_backend import mock_worker
from support.router_running import DEPLOYMENT, LONG, MODEL, chat, config, eventually, pair, running_router

if TYPE_CHECKING:
    from pathlib import Path


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_the_official_client_gets_a_completion(tmp_path: Path) -> None:
    """A completion that is not streamed arrives whole, with its usage."""
    async with (
        mock_worker() as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
        AsyncOpenAI(base_url=r.base_url, api_key="any", max_retries=0) as client,
    ):
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}]
        )
    assert answer.choices[0].message.content == "tok " * 6
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


async def test_the_official_client_gets_a_stream(tmp_path: Path) -> None:
    """A stream arrives token by token, and without a usage that was not asked for."""
    async with (
        mock_worker() as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
        AsyncOpenAI(base_url=r.base_url, api_key="any", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "tok " * 6
    assert all(c.usage is None for c in chunks)
    assert worker.received[0].body["stream_options"] == {"include_usage": True}


async def test_usage_is_passed_on_to_who_asked_for_it(tmp_path: Path) -> None:
    """`stream_options.include_usage` brings the chunk without choices through."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        answer = await r.chat(stream=True, stream_options={"include_usage": True})
    events = [e.removeprefix("data: ") for e in answer.text.split("\n\n") if e]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 6


async def test_a_long_prompt_is_prefilled_elsewhere(tmp_path: Path) -> None:
    """The prefill half gets one token to make, the decode half the client's request and the handed-out cache."""
    async with (
        mock_worker() as prefill,
        mock_worker() as decode,
        running_router(tmp_path, pair(prefill, decode)) as r,
    ):
        answer = await r.chat(LONG, stream=True, max_tokens=6, max_completion_tokens=6, min_tokens=2)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert answer.headers["x-turnout-backend"] == decode.id
    first, second = prefill.received[0], decode.received[0]
    assert first.body["max_tokens"] == first.body["max_completion_tokens"] == 1
    assert first.body["stream"] is False
    assert not {"stream_options", "min_tokens"} & first.body.keys()
    assert first.body["kv_transfer_params"] == {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
    assert second.body["kv_transfer_params"]["remote_host"] == prefill.host
    assert second.body["max_tokens"] == 6
    assert second.body["min_tokens"] == 2
    assert second.headers["x-request-id"] == first.headers["x-request-id"]


async def test_a_short_prompt_stays_with_the_decode_worker(tmp_path: Path) -> None:
    """Below the threshold no cache is moved, and the metric says why."""
    async with (
        mock_worker() as prefill,
        mock_worker() as decode,
        running_router(tmp_path, pair(prefill, decode)) as r,
    ):
        await r.chat("short")
        count = await r.metric(
            "turnout_router_local_prefills_total", deployment=DEPLOYMENT, reason="short_prompt"
        )
    assert not prefill.received
    assert len(decode.received) == 1
    assert count == 1


async def test_several_choices_are_computed_where_they_are_decoded(tmp_path: Path) -> None:
    """With n above 1 the exchange of one cache would not do."""
    async with (
        mock_worker() as prefill,
        mock_worker() as decode,
        running_router(tmp_path, pair(prefill, decode)) as r,
    ):
        await r.chat(LONG, n=2)
    assert not prefill.received
    assert decode.received[0].body["n"] == 2


@pytest.mark.parametrize(("policy", "shares"), [("LeastLoaded", {4}), ("PrefixAware", {3, 4, 5})])
async def test_concurrent_requests_spread_over_the_workers(
    tmp_path: Path, policy: str, shares: set[int]
) -> None:
    """Requests under way at once: all workers get the same share of them, by their number.

    By work one more or less, for how much of such a prompt's 20 us is done when the next one comes is a matter of time: see
    `test_prompts_of_little_work_are_shared_out`.
    """
    async with (
        mock_worker(behavior="gated") as a,
        mock_worker(behavior="gated") as b,
        running_router(tmp_path, config([("aggregated", a.url), ("aggregated", b.url)], policy=policy)) as r,
        asyncio.TaskGroup() as group,
    ):
        answers = [group.create_task(r.chat()) for _ in range(8)]
        await eventually(lambda: len(a.received) + len(b.received) == 8)
        a.gate.set()
        b.gate.set()
    assert {len(a.received), len(b.received)} <= shares
    assert {answer.result().status_code for answer in answers} == {200}


async def test_engine_fields_of_clients_are_taken_out(tmp_path: Path) -> None:
    """What engines say to each other never comes from a client: it could kill a worker."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        await r.chat(
            kv_transfer_params={"do_remote_prefill": True},
            vllm_xargs={"kv_transfer_params": "x"},
            request_id="mine",
            temperature=0,
        )
    assert not {"kv_transfer_params", "vllm_xargs", "request_id"} & worker.received[0].body.keys()
    assert worker.received[0].body["temperature"] == 0


async def test_the_workers_fields_stay_inside(tmp_path: Path) -> None:
    """Of a worker's header fields only content type and Retry-After reach a client; the client's key reaches no worker."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        answer = await r.client.post(
            "/v1/chat/completions",
            json=chat(),
            headers={"authorization": "Bearer sk-x", "x-request-id": "abc-1", "traceparent": TRACE},
        )
    assert "x-secret" not in answer.headers
    assert answer.headers["x-request-id"] == "abc-1"
    got = worker.received[0].headers
    assert "authorization" not in got
    assert got["x-request-id"].startswith("abc-1-")
    assert got["traceparent"] == TRACE


async def test_text_completions_and_namespaced_names(tmp_path: Path) -> None:
    """/v1/completions works, and NAMESPACE/NAME is a name that the router replaces by the worker's own."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        answer = await r.client.post("/v1/completions", json={"model": DEPLOYMENT, "prompt": "hi"})
    assert answer.status_code == 200
    assert worker.received[0].path == "/v1/completions"
    assert worker.received[0].body["model"] == MODEL


async def test_connections_are_kept_and_used_again(tmp_path: Path) -> None:
    """Ten requests, one after the other, need one connection to the worker."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        for _ in range(10):
            assert (await r.chat()).status_code == 200
        assert worker.open_connections == 1
    assert len(worker.received) == 10
