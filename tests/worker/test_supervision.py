"""Whatever the worker's tasks raise is counted and survived, or ends the process, which says why."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import zmq

from support.faults import errors_of_awaiting
from support.worker_process import MODEL, NAME, die_with_parent, free_port, running_worker
from turnout_worker.driver import Driver
from turnout_worker.errors import EngineLoopError
from turnout_worker.generation import Choice
from turnout_worker.kvevents import END, AllBlocksCleared, KvEventPublisher
from turnout_worker.metrics import Metrics
from turnout_worker.serve import Worker
from turnout_worker.settings import KvEventsSettings, WorkerSettings, architecture, engine_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SECONDS = 20.0
ERRORS = errors_of_awaiting()
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def worker_settings(**more: Any) -> WorkerSettings:
    engine, latency = engine_settings(
        model=architecture(MODEL, None),
        accelerator="H100-SXM",
        tensor_parallel=1,
        max_length=4096,
        kv_cache_tokens=None,
        block_size=16,
        max_num_seqs=64,
        max_num_batched_tokens=8192,
        max_num_queued=None,
        kv_lease_seconds=30,
    )
    values: dict[str, Any] = {
        "model": MODEL, "architecture": architecture(MODEL, None), "served_names": (NAME,), "adapters": {}, "max_loras": 1, "role": "aggregated",
        "accelerator": "H100-SXM", "tensor_parallel": 1, "max_length": 4096, "seed": 0, "time_scale": 100.0,
        "startup_seconds": 0.0, "host": "127.0.0.1", "port": 0, "advertised_host": "127.0.0.1", "side_channel_port": 0,
        "shutdown_timeout": 0.0, "prompt_tokens_details": True, "engine": engine, "latency": latency,
    }  # fmt: skip
    return WorkerSettings(**values | more)


@asynccontextmanager
async def serving(**more: Any) -> AsyncIterator[tuple[Worker, httpx.AsyncClient]]:
    """Run a worker in this process, without what ends it."""
    worker = Worker(worker_settings(**more))
    port = await worker.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        try:
            yield worker, client
        finally:
            await worker.stop()


def body(tokens: int = 5, **more: Any) -> dict[str, Any]:
    return {"prompt": "work", "max_tokens": tokens, "ignore_eos": True, **more}


async def count_of(client: httpx.AsyncClient, task: str) -> float:
    page = (await client.get("/metrics")).text
    (line,) = (
        one
        for one in page.splitlines()
        if one.startswith(f'turnout_worker_task_failures_total{{task="{task}"}}')
    )
    return float(line.rpartition(" ")[2])


async def until_running(worker: Worker, number: int) -> None:
    async with asyncio.timeout(SECONDS):
        while worker.driver.stats().running != number:  # noqa: ASYNC110 - the engine's state changes on its own
            await asyncio.sleep(0.001)


def once(function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """Return *function*, raising *error* at its first call."""
    errors = [error]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if errors:
            raise errors.pop()
        return function(*arguments, **named)

    return wrapped


@each_error
@pytest.mark.parametrize(("method", "stream"), [("progress", True), ("finished", True), ("finished", False)])
async def test_what_one_request_raises_ends_that_request_only(
    error: BaseException,
    method: str,
    stream: bool,  # noqa: FBT001 - a case
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception while tokens are written ends one answer with an error; another one under way is whole."""
    async with serving() as (worker, client):
        other = asyncio.create_task(client.post("/v1/completions", json=body(3500)))
        await until_running(worker, 1)
        monkeypatch.setattr(Choice, method, once(getattr(Choice, method), error))
        struck = await client.post("/v1/completions", json=body(400, stream=stream))
        assert '"code":500' in struck.text
        assert struck.status_code == (500 if not struck.text.startswith("data: ") else 200)
        assert (await other).json()["usage"]["completion_tokens"] == 3500
        assert await count_of(client, "request") == 1
        assert worker.driver.stats().running == 0
        assert (await client.post("/v1/completions", json=body())).status_code == 200


@each_error
async def test_what_a_request_raises_while_it_starts_is_a_500(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a handler raises is answered with 500, on a connection that serves on."""
    async with serving() as (worker, client):
        for owner, name, ask in (
            (worker.serving, "complete", lambda: client.post("/v1/completions", json=body())),
            (Metrics, "exposition", lambda: client.get("/metrics")),
            (Driver, "reset_prefix_cache", lambda: client.post("/reset_prefix_cache")),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, once(getattr(owner, name), error))
                assert (await ask()).status_code == 500
                assert (await ask()).status_code == 200
        assert await count_of(client, "request") == 3


@each_error
async def test_an_engine_that_raises_is_not_driven_on(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state is unknown: no further step, /health and new requests are 500, and the task that watches it says why."""
    async with serving() as (worker, client):
        stream = asyncio.create_task(client.post("/v1/completions", json=body(4000, stream=True)))
        await until_running(worker, 1)
        monkeypatch.setattr(worker.engine, "advance", once(worker.engine.advance, error))
        with pytest.raises(EngineLoopError, match=type(error).__name__):
            async with asyncio.timeout(SECONDS):
                await worker.driver.run()
        assert (await client.get("/health")).status_code == 500
        assert (await client.post("/v1/completions", json=body())).status_code == 500
        worker.application.break_off()
        answer = await stream
        assert answer.status_code in {200, 500}
        assert '"code":500' in answer.text
        assert "abort" not in answer.text


def test_a_worker_whose_engine_fails_ends_and_says_why() -> None:
    """The process ends with status 1, so that its pod starts anew; what ran ends with an error, and the log names it."""
    code = (
        "from turnout.simulation import Engine; from turnout_worker.main import main; advance = Engine.advance\n"
        "def broken(self, now):\n"
        "    if self.stats().counters.generation_tokens > 20: raise KeyError('a block that is not there')\n"
        "    return advance(self, now)\n"
        "Engine.advance = broken; raise SystemExit(main())"
    )
    port = free_port()
    command = [
        sys.executable,
        "-c",
        code,
        "simulate",
        "--model",
        MODEL,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=die_with_parent) as process:  # noqa: PLW1509
        url = f"http://127.0.0.1:{port}"
        until_answering(url)
        answer = httpx.post(f"{url}/v1/completions", json=body(1000, stream=True), timeout=SECONDS)
        _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert '"code":500' in answer.text
    assert "the engine cannot go on" in log.decode()
    assert "a block that is not there" in log.decode()


def until_answering(url: str) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            assert httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


@each_error
async def test_kv_events_that_cannot_be_published_are_forgotten_by_their_readers(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests are served on, the failure is logged once, and the next batch says first that nothing is cached."""
    async with serving(kv_events=events_on(free_port(), free_port())) as (worker, client):
        assert worker.publisher is not None
        published: list[Any] = []
        publish = worker.publisher.publish
        monkeypatch.setattr(
            worker.publisher, "publish", lambda events: (published.append(events), publish(events))
        )
        monkeypatch.setattr(worker.publisher, "publish", once(worker.publisher.publish, error))
        with caplog.at_level(logging.ERROR):
            for number in range(3):
                answer = await client.post("/v1/completions", json=body(40, prompt=f"{number} " * 200))
                assert answer.status_code == 200
        assert isinstance(published[0][0], AllBlocksCleared)
        assert not any(isinstance(event, AllBlocksCleared) for events in published[1:] for event in events)
        assert await count_of(client, "kv_events") == 1
    assert len(caplog.records) == 1


def events_on(port: int, replay: int) -> KvEventsSettings:
    return KvEventsSettings(endpoint=f"tcp://*:{port}", replay_endpoint=f"tcp://*:{replay}")


@each_error
async def test_a_replay_that_fails_does_not_end_replays(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket says only once that there is a question: after a failure it is looked at again."""
    port = free_port()
    async with serving(kv_events=events_on(free_port(), port)) as (_, client):
        monkeypatch.setattr(KvEventPublisher, "_answer_some", once(KvEventPublisher._answer_some, error))
        await client.post("/v1/completions", json=body(40, prompt="x " * 200))
        with zmq.Context() as context, context.socket(zmq.DEALER) as asking:
            asking.set(zmq.LINGER, 0)
            asking.connect(f"tcp://127.0.0.1:{port}")
            asking.send_multipart((b"", b"\0" * 8))
            frames = await asyncio.to_thread(replayed, asking)
        assert len(frames) > 1
        assert await count_of(client, "kv_replay") == 1


def replayed(asking: zmq.Socket[bytes]) -> list[list[bytes]]:
    found: list[list[bytes]] = []
    while asking.poll(int(1000 * SECONDS)):
        found.append(asking.recv_multipart())
        if found[-1][2] == END:
            return found
    raise AssertionError("the replay has no end")


async def test_a_question_for_a_replay_without_end_ends_its_connection_only() -> None:
    """A frame of a megabyte is not taken in; others are answered."""
    port = free_port()
    async with serving(kv_events=events_on(free_port(), port)) as (_, client):
        await client.post("/v1/completions", json=body(40, prompt="x " * 200))
        with (
            zmq.Context() as context,
            context.socket(zmq.DEALER) as odd,
            context.socket(zmq.DEALER) as asking,
        ):
            for one in (odd, asking):
                one.set(zmq.LINGER, 0)
                one.connect(f"tcp://127.0.0.1:{port}")
            odd.send_multipart((b"", b"x" * 1_000_000))
            asking.send_multipart((b"", b"\0" * 8))
            assert len(await asyncio.to_thread(replayed, asking)) > 1


@each_error
async def test_a_fetch_that_raises_fails_its_request(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the transfer raises, the request ends with 500 instead of waiting for ever, and others are served."""
    params = {
        "do_remote_prefill": True, "remote_engine_id": "e", "remote_request_id": "r", "remote_host": "127.0.0.1",
        "remote_port": 9, "remote_block_ids": [1], "remote_num_tokens": 100,
    }  # fmt: skip
    async with serving(role="decode") as (worker, client):

        async def fetch(_: object) -> bool:
            raise error

        monkeypatch.setattr(worker.fetcher, "fetch", fetch)
        answer = await client.post("/v1/completions", json=body(prompt="x " * 200, kv_transfer_params=params))
        assert answer.status_code == 500
        refused = body(prompt="x " * 200, kv_transfer_params=params, max_tokens=0)
        assert (await client.post("/v1/completions", json=refused)).status_code == 400
        async with asyncio.timeout(SECONDS):
            while await count_of(client, "kv_fetch") != 2:  # noqa: ASYNC110 - it is asked over HTTP
                await asyncio.sleep(0.001)
        assert (await client.post("/v1/completions", json=body())).status_code == 200


@each_error
async def test_what_the_side_channel_raises_ends_that_connection_only(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefill worker's side channel closes the one connection and takes the next."""
    async with serving(role="prefill") as (worker, client):
        release = once(lambda _: False, error)
        monkeypatch.setattr(worker.side_channel, "_release", release)
        for answered in (b"", b'{"held":false}\n'):
            reader, writer = await asyncio.open_connection("127.0.0.1", worker.serving.side_channel_port)
            async with asyncio.timeout(SECONDS):
                await reader.readline()
                writer.write(b'{"fetch": "r"}\n')
                assert await reader.readline() == answered
            writer.close()
        expected = isinstance(
            error, OSError | ValueError | RuntimeError
        )  # taken for a connection that is gone
        assert await count_of(client, "side_channel") == (0 if expected else 1)


def test_a_worker_without_descriptors_left_takes_connections_again() -> None:
    """Where no connection can be accepted for a while, the port stays open, and what comes later is served."""
    with running_worker() as worker:
        soft, hard = resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE)
        used = len(list_of_descriptors(worker.process.pid))
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (used + 3, hard))
        with ExitStack() as opened:
            for _ in range(40):
                opened.enter_context(socket.create_connection((worker.host, worker.port), timeout=SECONDS))
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{worker.url}/health", timeout=0.5)
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        until_answering(worker.url)
        answer = httpx.post(f"{worker.url}/v1/completions", json=body(), timeout=SECONDS)
        assert answer.status_code == 200


def list_of_descriptors(pid: int) -> list[str]:
    return [entry.name for entry in Path(f"/proc/{pid}/fd").iterdir()]
