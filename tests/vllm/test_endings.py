"""How simulated and real workers end by SIGTERM, each with its own process."""

from __future__ import annotations

import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.worker_contract import Contract, contract_of, events_of, until
from support.worker_process import running_worker
from turnout_devcluster.vllm.server import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from turnout_devcluster.vllm.server import VllmServer

TOKENS = 1200
pytestmark = pytest.mark.timeout(600)


@contextmanager
def ending(
    kind: str, request: pytest.FixtureRequest, shutdown_timeout: int
) -> Iterator[tuple[Contract, Callable[[], None], Callable[[float], int]]]:
    """Give a worker of its own, what sends SIGTERM to it, and what waits for its exit status."""
    with ExitStack() as stack:
        if kind == "simulated":
            worker = stack.enter_context(running_worker(shutdown_timeout=shutdown_timeout, max_length=2048))
            process = worker.process
            yield (
                contract_of(worker.url, simulated=True),
                lambda: process.send_signal(signal.SIGTERM),
                worker.wait,
            )
            return
        start = request.getfixturevalue("start")
        tiny: Path = request.getfixturevalue("tiny")
        arguments = ("--shutdown-timeout", str(shutdown_timeout))
        server: VllmServer
        (server,) = start(ServerSettings(tiny, "tiny", arguments=arguments))
        stack.enter_context(server)
        yield contract_of(server.url, simulated=False), server.terminate, server.wait


def long_body(engine: Contract, **more: Any) -> dict[str, Any]:
    return engine.body("chat", ignore_eos=True, **more) | {"max_tokens": TOKENS}


def begun(engine: Contract, pool: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Send a request for a stream and one for a whole answer; return when both run."""
    sent = [pool.submit(engine.ask, "chat", long_body(engine, stream=stream)) for stream in (True, False)]
    until(lambda: engine.metric("vllm:num_requests_running") == len(sent))
    return sent


def test_without_a_timeout_answers_are_cut_silently(kind: str, request: pytest.FixtureRequest) -> None:
    """Status 200, `finish_reason: abort`, fewer tokens than asked for: a stream ends with [DONE] all the same."""
    with ending(kind, request, 0) as (engine, terminate, wait), ThreadPoolExecutor() as pool:
        streamed, whole = begun(engine, pool)
        terminate()
        *chunks, done = events_of(streamed.result(60).text)
        assert done == "[DONE]"
        assert chunks[-1]["choices"][0]["finish_reason"] == "abort"
        answer = whole.result(60)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["finish_reason"] == "abort"
        assert answer.json()["usage"]["completion_tokens"] < TOKENS
        assert wait(60) == 0


def test_with_a_timeout_answers_are_finished_and_new_requests_refused(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """What runs ends whole; a new request gets 500 while /health says 200: so routing has to stop first."""
    with ending(kind, request, 60) as (engine, terminate, wait), ThreadPoolExecutor() as pool:
        streamed, whole = begun(engine, pool)
        terminate()
        until(lambda: engine.ask("chat", engine.body("chat")).status_code == 500)
        assert engine.get("/health").status_code == 200
        *chunks, done = events_of(streamed.result(60).text)
        assert done == "[DONE]"
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert whole.result(60).json()["usage"]["completion_tokens"] == TOKENS
        assert wait(60) == 0
