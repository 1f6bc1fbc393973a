"""Requests go where their prefix is cached: over real simulated workers, and in the explanation that clients ask for."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from support.router_mock_backend import mock_worker
from support.router_running import DEPLOYMENT, MODEL, Running, config, running_router
from support.worker_process import NAME, WorkerProcess, running_worker
from turnout.routing.policy import PrefixAware
from turnout_router.api.prefixes import BLOCK_BYTES, MAX_BLOCKS, prompt_blocks

if TYPE_CHECKING:
    from pathlib import Path

CONVERSATIONS, TURNS = 4, 4


def paragraph(conversation: int, turn: int) -> str:
    return f"conversation {conversation}, turn {turn}: " + f"{conversation} and {turn} " * 300


def fleet(*workers: tuple[str, WorkerProcess], policy: str = "PrefixAware") -> dict[str, Any]:
    backends = [{"role": role, "url": worker.url} for role, worker in workers]
    deployment = {"name": DEPLOYMENT, "servedNames": [NAME], "timeScale": 5, "policy": policy}
    return {"deployments": [deployment | {"backends": backends}]}


async def talk(r: Running, conversation: int, *, stream: bool) -> list[str]:
    """Hold one conversation; return the backend of each turn."""
    messages: list[dict[str, str]] = []
    backends = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": paragraph(conversation, turn)})
        body = {"model": NAME, "messages": messages, "max_tokens": 8, "stream": stream}
        answer = await r.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        backends.append(answer.headers["x-turnout-backend"])
        messages.append({"role": "assistant", "content": f"answer {turn}"})
    return backends


@pytest.mark.parametrize("stream", [True, False])
async def test_a_conversation_stays_with_its_worker(tmp_path: Path, stream: bool) -> None:  # noqa: FBT001 - a parameter
    """Every turn finds the ones before it cached: the same worker, and hits in the workers' own counters."""
    with ExitStack() as stack:
        workers = [stack.enter_context(running_worker(role="aggregated", time_scale=5)) for _ in range(2)]
        async with running_router(tmp_path, fleet(*(("aggregated", w) for w in workers))) as r:
            went = await asyncio.gather(*(talk(r, each, stream=stream) for each in range(CONVERSATIONS)))
        hits = sum(w.metric("vllm:prefix_cache_hits_total") for w in workers)
        queries = sum(w.metric("vllm:prefix_cache_queries_total") for w in workers)
    assert [len(set(backends)) for backends in went] == [1] * CONVERSATIONS
    # Of 1 + 2 + 3 + 4 paragraphs asked for, 0 + 1 + 2 + 3 had been computed before.
    assert hits / queries > 0.5


async def test_the_books_are_closed_when_all_is_done(tmp_path: Path) -> None:
    """Streams, whole answers, pairs, refusals and clients that leave: nothing stays in flight."""
    with ExitStack() as stack:
        prefill = stack.enter_context(running_worker(role="prefill", time_scale=5))
        decode = stack.enter_context(running_worker(role="decode", time_scale=5))
        async with running_router(tmp_path, fleet(("prefill", prefill), ("decode", decode))) as r:
            await asyncio.gather(*(talk(r, each, stream=bool(each % 2)) for each in range(3)))
            leaving = asyncio.create_task(talk(r, 9, stream=True))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            refused = await r.client.post(
                "/v1/chat/completions",
                json={"model": NAME, "messages": [{"role": "user", "content": "x " * 400_000}]},
            )
            policy = _policy(r)
            states = policy.tracker.states.values()
            deadline = asyncio.get_running_loop().time() + 10
            while any(s.in_flight or s.cache.held for s in states):
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.02)
    assert refused.status_code == 400
    assert len(states) == 2


async def test_the_explanation_names_what_is_cached(tmp_path: Path) -> None:
    """The second time a client asks the same, the reason says that about all of it is cached, and lists the costs."""
    async with (
        mock_worker() as one,
        mock_worker() as other,
        running_router(tmp_path, config([("aggregated", one.url), ("aggregated", other.url)])) as r,
    ):
        body = {"model": MODEL, "messages": [{"role": "user", "content": paragraph(1, 1)}]}
        reasons, backends = [], []
        for number in range(2):
            answer = await r.client.post(
                "/v1/chat/completions",
                json=body,
                headers={"x-turnout-explain": "1", "x-request-id": f"n{number}"},
            )
            reasons.append(answer.headers["x-turnout-reason"])
            backends.append(answer.headers["x-turnout-backend"])
        account = (await r.admin.get("/admin/decisions/n1")).json()
    assert backends[0] == backends[1]
    assert "about 0 tokens cached" in reasons[0]
    assert "about 512 tokens cached" in reasons[1]
    candidates = account["steps"][0]["candidates"]
    assert [each["figures"]["cachedTokens"] for each in candidates] == [512, 0]
    assert candidates[0]["chosen"]


async def test_least_loaded_ignores_prefixes(tmp_path: Path) -> None:
    """A deployment whose prompts have nothing in common says so: equals take turns."""
    async with mock_worker() as one, mock_worker() as other:
        content = config([("aggregated", one.url), ("aggregated", other.url)], policy="LeastLoaded")
        async with running_router(tmp_path, content) as r:
            body = {"model": MODEL, "messages": [{"role": "user", "content": paragraph(1, 1)}]}
            answers = [await r.client.post("/v1/chat/completions", json=body) for _ in range(4)]
    assert len({answer.headers["x-turnout-backend"] for answer in answers}) == 2


def _blocks(body: dict[str, Any], field: str) -> tuple[int, ...]:
    return prompt_blocks(body, [orjson.dumps(body[field])])


def test_equal_beginnings_have_equal_hashes() -> None:
    """A longer conversation begins with the blocks of a shorter one; what stands before the prompt changes them all."""
    messages = [{"role": "user", "content": letter * 6000} for letter in "ab"]
    short = _blocks({"messages": messages[:1]}, "messages")
    longer = _blocks({"messages": messages}, "messages")
    assert (len(short), len(longer), longer[:2]) == (2, 5, short)
    for before in ({"tools": [{"type": "function"}]}, {"cache_salt": "x"}):
        assert _blocks({"messages": messages, **before}, "messages")[0] != longer[0]
    assert _blocks({"prompt": "a" * (BLOCK_BYTES - 3)}, "prompt") == ()
    assert prompt_blocks({}, ()) == ()
    assert len(set(longer)) == len(longer)


def test_the_longest_prompt_is_bounded() -> None:
    """However long, no more than so many blocks are hashed and kept."""
    assert len(_blocks({"prompt": "a" * (MAX_BLOCKS + 10) * BLOCK_BYTES}, "prompt")) == MAX_BLOCKS


def _policy(r: Running) -> PrefixAware:
    policy = r.router._backends.of(DEPLOYMENT).policy
    assert isinstance(policy, PrefixAware)
    return policy
