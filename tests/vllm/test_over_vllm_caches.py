"""The router over two real vLLM servers that publish what they have cached: hits, exact knowledge, LoRA adapters."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.router_running import DEPLOYMENT, Running, chat, eventually_async, running_router
from support.worker_contract import Contract, contract_of
from turnout_devcluster.vllm.server import KvEvents, ServerSettings, VllmServer, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BLOCK = 128
"""Tokens of a KV block: vLLM's size on a CPU."""
ADAPTER = "sql"
STORY = "Once upon a time there was a railway with many turnouts, and each of them had a story. "
pytestmark = pytest.mark.timeout(900)


class Publishing:
    """A server that publishes KV events and can be started anew on the same ports."""

    def __init__(self, start: Callable[..., list[VllmServer]], server: VllmServer) -> None:
        self._start = start
        self.server = server

    @property
    def id(self) -> str:
        return f"{self.server.host}:{self.server.port}"

    @property
    def engine(self) -> Contract:
        return contract_of(self.server.url, simulated=False)

    def backend(self) -> dict[str, Any]:
        events = self.server.settings.kv_events
        assert events is not None
        ports = {"port": events.port, "replayPort": events.replay_port}
        return {"role": "aggregated", "url": self.server.url, "kvEvents": ports}

    async def ask(self, prompt: str) -> int:
        """Ask it past the router. Return how many of the prompt's tokens it had cached."""
        async with httpx.AsyncClient(timeout=120) as client:
            answer = await client.post(f"{self.server.url}/v1/chat/completions", json=body(prompt))
        return int(answer.raise_for_status().json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    async def reset(self) -> None:
        """Empty its cache; it publishes that with its next step."""
        async with httpx.AsyncClient(timeout=60) as client:
            (await client.post(f"{self.server.url}/reset_prefix_cache")).raise_for_status()

    def close(self) -> None:
        self.server.close()

    def start_again(self) -> None:
        """Kill it and start another one in its place."""
        self.server.close()
        (self.server,) = self._start(self.server.settings, host=self.server.host)


@pytest.fixture(scope="module")
def servers(start: Callable[..., list[VllmServer]], tiny: Path) -> Iterator[tuple[Publishing, Publishing]]:
    def settings(*ports: int) -> ServerSettings:
        return ServerSettings(
            tiny,
            "tiny",
            kv_events=KvEvents(*ports, topic="kv@tiny"),
            arguments=(
                "--enable-prompt-tokens-details",
                *("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"{ADAPTER}={tiny / 'adapter'}"),
            ),
            environment={"VLLM_SERVER_DEV_MODE": "1"},
        )

    ports: list[int] = []
    for _ in range(4):
        ports.append(free_port(*ports))
    one, other = (Publishing(start, server) for server in start(settings(*ports[:2]), settings(*ports[2:])))
    with ExitStack() as stack:
        stack.callback(one.close)
        stack.callback(other.close)
        yield one, other


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return chat(prompt, model="tiny", max_tokens=4, temperature=0) | more


def story(number: int, length: int = 20) -> str:
    return f"Number {number}. " + STORY * length


def fleet(*workers: Publishing, events: bool = True, **more: Any) -> dict[str, Any]:
    backends = [worker.backend() for worker in workers]
    for backend in backends:
        if not events:
            del backend["kvEvents"]
    deployment = {"name": DEPLOYMENT, "servedNames": ["tiny"], "engine": "vllm", "backends": backends}
    return {"deployments": [deployment | more]}


async def known(r: Running, worker: Publishing) -> dict[str, Any]:
    described = (await r.admin.get("/admin/fleet")).json()["deployments"][DEPLOYMENT]
    found: dict[str, Any] = next(each["kvEvents"] for each in described if each["id"] == worker.id)
    return found


async def cached_by(r: Running, prompt: str) -> tuple[str, int, dict[str, int]]:
    """Ask through the router. Return the worker, what it had cached, and what the router thought that each had."""
    answer = await r.client.post(
        "/v1/chat/completions", json=body(prompt), headers={"x-request-id": "asked"}, timeout=120
    )
    assert answer.status_code == 200, answer.text
    account = (await r.admin.get("/admin/decisions/asked")).json()
    figures = {one["backend"]: one["figures"]["cachedTokens"] for one in account["steps"][0]["candidates"]}
    used = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer.headers["x-turnout-backend"], used, figures


async def test_prefix_routing_raises_the_engines_hits(
    tmp_path: Path, servers: tuple[Publishing, Publishing]
) -> None:
    """Five conversations that grow over five turns: more of their tokens are found in the engines' caches than by load alone."""
    share: dict[str, float] = {}
    for number, policy in enumerate(("LeastLoaded", "PrefixAware")):
        names = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total")
        before = [sum(worker.engine.metric(name) for worker in servers) for name in names]
        (tmp_path / policy).mkdir()
        async with running_router(tmp_path / policy, fleet(*servers, events=False, policy=policy)) as r:
            for turn in range(5):
                # In another order each time: by load alone, a conversation changes its worker.
                order = [(turn + one) % 5 for one in range(5)]
                await asyncio.gather(
                    *[
                        r.client.post(
                            "/v1/chat/completions",
                            json=body(story(100 * number + one, 26 + 4 * turn)),
                            timeout=120,
                        )
                        for one in order
                    ]
                )
        after = [sum(worker.engine.metric(name) for worker in servers) for name in names]
        hits, queries = (now - then for now, then in zip(after, before, strict=True))
        share[policy] = hits / queries
    assert share["PrefixAware"] > share["LeastLoaded"] + 0.05, share


async def test_exact_mode_agrees_with_the_engine(
    tmp_path: Path, servers: tuple[Publishing, Publishing]
) -> None:
    """What a server computed past the router is found there, token for token; what neither has is found nowhere."""
    one, other = servers
    async with running_router(tmp_path, fleet(one, other)) as r:
        for worker in servers:
            await eventually_async(lambda w=worker: complete(r, w), 60)
        for number, holder in enumerate((other, one, other), 1000):
            blocks = (await known(r, holder))["blocks"]
            await holder.ask(story(number))
            await eventually_async(lambda w=holder, b=blocks: more_blocks(r, w, b), 60)
            chosen, used, figures = await cached_by(r, story(number))
            assert chosen == holder.id
            assert figures[holder.id] == used >= BLOCK
            assert all(tokens < BLOCK for worker, tokens in figures.items() if worker != holder.id)


async def test_exact_mode_follows_a_reset(tmp_path: Path, servers: tuple[Publishing, Publishing]) -> None:
    """An emptied cache is known to be empty once the engine has taken its next step: only then does it say so."""
    one, other = servers
    async with running_router(tmp_path, fleet(one, other)) as r:
        await eventually_async(lambda: complete(r, other), 60)
        blocks = (await known(r, other))["blocks"]
        await other.ask(story(2000))
        await eventually_async(lambda: more_blocks(r, other, blocks), 60)
        await other.reset()
        await other.ask("Say it.")

        async def emptied() -> bool:
            return bool((await known(r, other))["blocks"] <= 1)

        await eventually_async(emptied, 60)
        _, used, figures = await cached_by(r, story(2000))
        assert figures[other.id] == used == 0


async def test_exact_mode_follows_a_restart(tmp_path: Path, servers: tuple[Publishing, Publishing]) -> None:
    """A server that is killed and started again has nothing, and what it computes then is known."""
    one, other = servers
    async with running_router(tmp_path, fleet(one, other)) as r:
        await eventually_async(lambda: complete(r, one), 60)
        blocks = (await known(r, one))["blocks"]
        await one.ask(story(3000))
        await eventually_async(lambda: more_blocks(r, one, blocks), 60)
        await asyncio.to_thread(one.start_again)
        await one.ask(story(3001))

        async def anew() -> bool:
            state = await known(r, one)
            return state["state"] == "complete" and 0 < state["blocks"] < 20

        await eventually_async(anew, 90)
        chosen, used, figures = await cached_by(r, story(3001))
        assert chosen == one.id
        assert figures[one.id] == used >= BLOCK


async def test_adapters_are_served_and_unknown_ones_refused(
    tmp_path: Path, servers: tuple[Publishing, Publishing]
) -> None:
    """An adapter's answers differ from the base model's; a name that is served nowhere is 404 from router and engine."""
    prompt = story(4000)
    async with running_router(tmp_path, fleet(*servers, adapters=[ADAPTER])) as r:
        said = []
        for name in ("tiny", ADAPTER):
            answer = await r.client.post("/v1/chat/completions", json=body(prompt, model=name), timeout=120)
            assert answer.status_code == 200, answer.text
            said.append(answer.json()["choices"][0]["message"]["content"])
        assert said[0] != said[1]
        wrong = body(prompt, model="nowhere")
        assert (await r.client.post("/v1/chat/completions", json=wrong)).status_code == 404
        assert (
            await r.client.post(f"{servers[0].server.url}/v1/chat/completions", json=wrong)
        ).status_code == 404


async def complete(r: Running, worker: Publishing) -> bool:
    return bool((await known(r, worker))["state"] == "complete")


async def more_blocks(r: Running, worker: Publishing, blocks: int) -> bool:
    return bool((await known(r, worker))["blocks"] > blocks)
