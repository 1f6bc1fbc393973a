"""The router over real vLLM servers that are killed, and over one that is drained."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from support.router_running import DEPLOYMENT, Running, chat, eventually_async, running_router
from support.worker_contract import contract_of, events_of
from turnout_devcluster.vllm.server import ServerSettings, VllmServer

if TYPE_CHECKING:
    from pathlib import Path

Start = Callable[..., list[VllmServer]]
REQUESTS = 6
pytestmark = pytest.mark.timeout(900)


def fleet(*servers: VllmServer) -> dict[str, Any]:
    backends = [{"role": server.settings.role, "url": server.url} for server in servers]
    deployment = {"name": DEPLOYMENT, "servedNames": ["tiny"], "engine": "vllm", "backends": backends}
    # By load alone, no prompt is computed by the decode worker for being cheaper there.
    return {"deployments": [deployment | {"localPrefillBelowTokens": 0, "policy": "LeastLoaded"}]}


async def ask(r: Running, number: int, tokens: int = 8, **more: Any) -> httpx.Response:
    words = f"{number} times over the hills " * 40
    body = chat(words, model="tiny", max_tokens=tokens, ignore_eos=True, **more)
    return await r.client.post("/v1/chat/completions", json=body, timeout=120)


async def metric(server: VllmServer, name: str) -> float:
    return await asyncio.to_thread(contract_of(server.url, simulated=False).metric, name)


@pytest.mark.parametrize("step", ["before", "prefill", "fetch"])
async def test_a_prefill_worker_is_killed(tmp_path: Path, start: Start, tiny: Path, step: str) -> None:
    """Before requests come, while it computes, and before its cache is fetched: every client gets its whole answer."""
    with ExitStack() as stack:
        prefill, decode = start(*[ServerSettings(tiny, "tiny", role=role) for role in ("prefill", "decode")])
        stack.enter_context(prefill)
        stack.enter_context(decode)
        async with running_router(tmp_path, fleet(prefill, decode)) as r:
            assert (await ask(r, 0)).status_code == 200  # they have met
            if step == "before":
                prefill.kill()
            if step == "fetch":
                os.killpg(decode.pid, signal.SIGSTOP)
            asked = [asyncio.create_task(ask(r, number)) for number in range(1, 1 + REQUESTS)]
            if step == "prefill":
                await eventually_async(lambda: in_flight(r))
                prefill.kill()
            if step == "fetch":
                await eventually_async(lambda: pinned(prefill), 60)
                prefill.kill()
                os.killpg(decode.pid, signal.SIGCONT)
            answers = await asyncio.gather(*asked)
            assert [answer.status_code for answer in answers] == [200] * REQUESTS
            assert all(answer.json()["usage"]["completion_tokens"] == 8 for answer in answers)
            assert decode.running


async def test_a_decode_worker_is_killed_while_it_streams(tmp_path: Path, start: Start, tiny: Path) -> None:
    """The stream ends with an error event and no [DONE]; the router serves on with the other decode worker."""
    with ExitStack() as stack:
        servers = start(
            *[ServerSettings(tiny, "tiny", role=role) for role in ("prefill", "decode", "decode")]
        )
        for server in servers:
            stack.enter_context(server)
        by_address = {f"{server.host}:{server.port}": server for server in servers}
        async with running_router(tmp_path, fleet(*servers)) as r:
            body = chat("Go on. " * 40, model="tiny", max_tokens=1500, ignore_eos=True, stream=True)
            text = await until_broken(r, body, lambda backend: by_address[backend].kill())
            events = events_of(text)
            assert "[DONE]" not in events
            assert events[-1]["error"]["code"] == "stream_broken"
            assert (await ask(r, 1)).status_code == 200


async def test_a_drain_loses_nothing(tmp_path: Path, start: Start, tiny: Path) -> None:
    """Out of the fleet, `turnout-worker drain`, SIGTERM: under steady traffic every stream ends whole."""
    timeout = ("--shutdown-timeout", "60")
    with ExitStack() as stack:
        leaving, staying = start(*[ServerSettings(tiny, "tiny", arguments=timeout) for _ in range(2)])
        stack.enter_context(leaving)
        stack.enter_context(staying)
        async with running_router(tmp_path, fleet(leaving, staying)) as r:
            over = asyncio.Event()
            reasons: list[str | None] = []

            async def client(number: int) -> None:
                while not over.is_set():
                    events = events_of((await ask(r, number, 60, stream=True)).text)
                    whole = events[-1] == "[DONE]"
                    reasons.append(events[-2]["choices"][0]["finish_reason"] if whole else None)

            clients = [asyncio.create_task(client(number)) for number in range(4)]
            await eventually_async(lambda: busy(leaving), 60)
            (tmp_path / "router.yaml").write_text(yaml.safe_dump(fleet(staying)))
            await eventually_async(lambda: gone(r, leaving))
            drain = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "turnout_worker.main", "drain", "--host", leaving.host),
                *("--port", str(leaving.port), "--idle-seconds", "1", "--deadline", "100"),
            )
            assert await drain.wait() == 0
            leaving.terminate()
            assert await asyncio.to_thread(leaving.wait, 60) == 0
            enough = len(reasons) + 4

            async def served_on() -> bool:
                return len(reasons) > enough

            await eventually_async(served_on, 60)
            over.set()
            await asyncio.gather(*clients)
            assert set(reasons) == {"length"}


async def until_broken(r: Running, body: dict[str, Any], on_first: Callable[[str], None]) -> str:
    """Return what comes of a stream until its connection breaks; *on_first* is called with the worker at the first piece."""
    text = ""
    async with r.client.stream("POST", "/v1/chat/completions", json=body, timeout=60) as answer:
        try:
            async for piece in answer.aiter_text():
                if not text:
                    on_first(answer.headers["x-turnout-backend"])
                text += piece
        except httpx.RemoteProtocolError:
            return text
    raise AssertionError(f"the stream ended as if it were whole: {text[-500:]}")


async def in_flight(r: Running) -> bool:
    return await r.metric("turnout_router_in_flight", deployment=DEPLOYMENT) >= REQUESTS


async def pinned(server: VllmServer) -> bool:
    running = await metric(server, "vllm:num_requests_running")
    return running == 0 and await metric(server, "vllm:kv_cache_usage_perc") > 0


async def busy(server: VllmServer) -> bool:
    return await metric(server, "vllm:num_requests_running") > 0


async def gone(r: Running, server: VllmServer) -> bool:
    described = (await r.admin.get("/admin/fleet")).json()["deployments"][DEPLOYMENT]
    return all(each["id"] != f"{server.host}:{server.port}" for each in described)
