"""What is counted, and how the process begins and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml

from support.router_mock_backend import mock_worker
from support.router_running import (
    DEPLOYMENT,
    LONG,
    chat,
    config,
    eventually,
    eventually_async,
    pair,
    running_router,
)
from support.worker_process import die_with_parent, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX = "turnout_router_"


async def test_what_is_counted_for_a_streamed_request(tmp_path: Path) -> None:
    """Arrivals, tokens from usage, and latencies of a request, each once."""
    async with (
        mock_worker(tokens=5) as prefill,
        mock_worker(tokens=5) as decode,
        running_router(tmp_path, pair(prefill, decode)) as r,
    ):
        await r.chat(LONG, stream=True)
        values = {
            name: await r.metric(PREFIX + name, deployment=DEPLOYMENT)
            for name in (
                "arrivals_total",
                "finished_total",
                "good_total",
                "prompt_tokens_total",
                "output_tokens_total",
                "in_flight",
                "time_to_first_token_seconds_count",
                "inter_token_latency_seconds_count",
                "request_duration_seconds_count",
            )
        }
        answered = await r.metric(PREFIX + "requests_total", deployment=DEPLOYMENT, code="200")
    assert values == {
        "arrivals_total": 1,
        "finished_total": 1,
        "good_total": 1,
        "prompt_tokens_total": 7,
        "output_tokens_total": 5,
        "in_flight": 0,
        "time_to_first_token_seconds_count": 1,
        "inter_token_latency_seconds_count": 1,
        "request_duration_seconds_count": 1,
    }
    assert answered == 1


async def test_latencies_are_reported_in_the_deployments_time(tmp_path: Path) -> None:
    """At a time scale of 50, tokens 20 ms apart are a second apart, and miss an objective of 900 ms."""
    objectives = {"timeToFirstToken": "1h", "interTokenLatency": "900ms"}
    async with (
        mock_worker(tokens=5, pause_seconds=0.02) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)], timeScale=50, slo=objectives)) as r,
    ):
        await r.chat(stream=True)
        mean = await r.metric(PREFIX + "inter_token_latency_seconds_sum", deployment=DEPLOYMENT)
        finished = await r.metric(PREFIX + "finished_total", deployment=DEPLOYMENT)
        good = await r.metric(PREFIX + "good_total", deployment=DEPLOYMENT)
    assert mean >= 0.02 * 50
    assert (finished, good) == (1, 0)


async def test_requests_without_a_deployment_are_counted_apart(tmp_path: Path) -> None:
    """Unknown names and malformed bodies count as no deployment's arrivals."""
    async with running_router(tmp_path, config([])) as r:
        await r.chat(model="other")
        await r.client.post("/v1/chat/completions", content=b"{")
        assert await r.metric(PREFIX + "requests_total", deployment="", code="404") == 1
        assert await r.metric(PREFIX + "requests_total", deployment="", code="400") == 1
        assert await r.metric(PREFIX + "arrivals_total", deployment=DEPLOYMENT) == 0


async def test_series_of_deployments_that_are_gone_go_too(tmp_path: Path) -> None:
    """The number of series is bounded by the fleet."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        await r.chat(stream=True)
        (tmp_path / "router.yaml").write_text("{}")

        async def forgotten() -> bool:
            return DEPLOYMENT not in (await r.admin.get("/metrics")).text

        await eventually_async(forgotten)


async def test_the_public_port_says_whether_the_router_can_serve(tmp_path: Path) -> None:
    """/health and /ping, for load balancers and benchmarks: without a key and a body; 503 before a fleet and in a drain."""
    async with mock_worker() as worker:
        content = config([("aggregated", worker.url)])
        async with running_router(tmp_path, content, auth="required", shutdown_delay_seconds=1.0) as r:
            for path in ("/health", "/ping"):
                for method in ("GET", "HEAD"):
                    answer = await r.client.request(method, path)
                    assert (answer.status_code, answer.content) == (200, b"")
                answer = await r.client.options(path)
                assert (answer.status_code, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
                assert (await r.client.post(path)).status_code == 405
            r.router._gateway.ready = False
            assert (await r.client.get("/health")).status_code == 503
            r.router._gateway.ready = True
            r.router.stop()
            assert (await r.client.get("/health")).status_code == 503
            assert (await r.client.head("/ping")).status_code == 503
            assert not worker.received


async def test_a_drain_lets_streams_finish(tmp_path: Path) -> None:
    """After the stop: /readyz is 503, the stream ends with [DONE], new connections are refused."""
    async with (
        mock_worker(tokens=40, pause_seconds=0.03) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        async with r.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
            await eventually(lambda: worker.received)
            r.router.stop()
            await asyncio.sleep(0)
            assert (await r.admin.get("/readyz")).status_code == 503
            async with httpx.AsyncClient(base_url=r.client.base_url) as late:

                async def refused() -> bool:
                    try:
                        await late.get("/v1/models")
                    except httpx.ConnectError:
                        return True
                    return False

                await eventually_async(refused)
            assert "[DONE]" in (await answer.aread()).decode()
        await asyncio.wait_for(r.stopped, 5)


async def test_a_stream_that_outlives_the_grace_period_is_reported(tmp_path: Path) -> None:
    """It ends with an error event, not with a bare end."""
    async with (
        mock_worker(behavior="endless", pause_seconds=0.02) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)]), shutdown_grace_seconds=0.3) as r,
    ):
        seen = b""
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - what came before is looked at
            async with r.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
                async for data in answer.aiter_raw():
                    if not seen:
                        r.router.stop()
                    seen += data
        await eventually(lambda: worker.running == 0)
    assert b"shutting down" in seen
    assert b"[DONE]" not in seen


@contextmanager
def router_process(tmp_path: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    port, admin = free_port(), free_port()
    environment = os.environ | {"TURNOUT_BIND_ADDRESS": "127.0.0.1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from turnout_router.main import main; main()"),
                *("--port", str(port), "--admin-port", str(admin), *flags),
            ],
            stderr=log,
            env=environment,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no locks
        )
        try:
            yield process, port, admin
        finally:
            process.kill()
            process.wait()


async def test_the_process_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    """The console script reads its file, listens where TURNOUT_BIND_ADDRESS says, and exits 0."""
    async with mock_worker() as worker:
        file = tmp_path / "router.yaml"
        file.write_text(yaml.safe_dump(config([("aggregated", worker.url)])))
        with router_process(tmp_path, "--config", str(file), "--shutdown-delay", "0") as (
            process,
            port,
            admin,
        ):
            async with httpx.AsyncClient() as client:

                async def ready() -> bool:
                    try:
                        return (await client.get(f"http://127.0.0.1:{admin}/readyz")).status_code == 200
                    except httpx.ConnectError:
                        return False

                await eventually_async(ready, 30)
                answer = await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=chat())
                assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "/nowhere.yaml"], "turnout-router: /nowhere.yaml cannot be read"),
        (["--check"], "--check needs --config FILE"),
    ],
)
def test_the_process_explains_why_it_cannot_begin(tmp_path: Path, flags: list[str], message: str) -> None:
    """One line, no traceback, status not 0."""
    with router_process(tmp_path, *flags) as (process, _, _):
        assert process.wait(30) != 0
    log = (tmp_path / "log").read_text()
    assert message in log
    assert "Traceback" not in log


def test_without_a_kubernetes_the_process_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names KUBECONFIG and --config."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with router_process(tmp_path) as (process, _, _):
        assert process.wait(30) != 0
    assert "set KUBECONFIG" in (tmp_path / "log").read_text()
