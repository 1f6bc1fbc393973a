"""How a worker leaves: SIGTERM, the preStop hook, clients that go first."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest

from support.worker_process import NAME, WorkerProcess, free_port, running_worker

SECONDS = 20.0


def body(tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "model": NAME,
        "messages": [{"role": "user", "content": "work"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        **more,
    }


class Asked:
    """A request under way in a thread of its own."""

    def __init__(self, worker: WorkerProcess, fields: dict[str, Any]) -> None:
        self.answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._ask, args=(worker, fields))
        self._thread.start()

    def _ask(self, worker: WorkerProcess, fields: dict[str, Any]) -> None:
        self.answer = httpx.post(f"{worker.url}/v1/chat/completions", json=fields, timeout=SECONDS)

    def result(self) -> httpx.Response:
        self._thread.join(SECONDS)
        assert self.answer is not None
        return self.answer


def until_running(worker: WorkerProcess, number: int) -> None:
    deadline = time.monotonic() + SECONDS
    while worker.metric("vllm:num_requests_running") != number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_generated(worker: WorkerProcess, number: int) -> None:
    deadline = time.monotonic() + SECONDS
    while worker.metric("vllm:generation_tokens_total") < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def drain(worker_port: int, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "turnout_worker.main", "drain", "--host", "127.0.0.1"]
    return subprocess.Popen([*command, "--port", str(worker_port), *flags])


def test_sigterm_lets_running_streams_finish() -> None:
    """With a --shutdown-timeout a running stream ends whole, new requests get 500, /health stays 200, the status is 0."""
    with running_worker(shutdown_timeout=20) as worker:
        stream = Asked(worker, body(100, stream=True, stream_options={"include_usage": True}))
        until_running(worker, 1)
        worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SECONDS
        while httpx.post(f"{worker.url}/v1/chat/completions", json=body(1)).status_code != 500:
            assert time.monotonic() < deadline
        assert httpx.get(f"{worker.url}/health").status_code == 200
        text = stream.result().text
        assert '"completion_tokens":100' in text
        assert text.endswith("data: [DONE]\n\n")
        assert worker.wait() == 0


@pytest.mark.parametrize("flags", [{}, {"shutdown_timeout": 0.2}])
def test_sigterm_beyond_the_timeout_cuts_silently(flags: dict[str, Any]) -> None:
    """What outlives --shutdown-timeout, by default at once, ends like a whole answer: `abort` with [DONE] or with 200."""
    with running_worker(**flags) as worker:
        stream = Asked(worker, body(20000, stream=True))
        whole = Asked(worker, body(20000))
        until_running(worker, 2)
        until_generated(worker, 3)
        worker.process.send_signal(signal.SIGTERM)
        answer = stream.result()
        assert answer.status_code == 200
        assert '"finish_reason":"abort"' in answer.text
        assert "error" not in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        part = whole.result()
        assert part.status_code == 200
        (choice,) = part.json()["choices"]
        assert choice["finish_reason"] == "abort"
        tokens = part.json()["usage"]["completion_tokens"]
        assert 0 < tokens < 20000
        assert len(choice["message"]["content"]) == 4 * tokens
        assert worker.wait() == 0


def test_sigterm_keeps_pinned_blocks_until_they_are_fetched() -> None:
    """A prefill worker that was asked to end hands out what it promised first, and only then ends."""
    with (
        running_worker(role="prefill", shutdown_timeout=20) as prefill,
        running_worker(role="decode") as decode,
    ):
        wanted = {"do_remote_decode": True, "do_remote_prefill": False}
        url = f"{prefill.url}/v1/chat/completions"
        params = httpx.post(url, json=body(1, kv_transfer_params=wanted)).json()["kv_transfer_params"]
        prefill.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SECONDS
        while httpx.post(url, json=body(1)).status_code != 500:
            assert time.monotonic() < deadline
        assert prefill.process.poll() is None
        answer = httpx.post(f"{decode.url}/v1/chat/completions", json=body(3, kv_transfer_params=params))
        assert answer.status_code == 200
        assert decode.metric("turnout_simulated_stale_kv_reads_total") == 0
        assert prefill.wait() == 0


def test_sigterm_gives_up_pinned_blocks_when_their_lease_ends() -> None:
    """Blocks that no worker fetches keep a leaving worker no longer than their lease."""
    with running_worker(role="prefill", kv_lease_seconds=0.5, shutdown_timeout=20) as worker:
        wanted = {"do_remote_decode": True}
        httpx.post(f"{worker.url}/v1/chat/completions", json=body(1, kv_transfer_params=wanted))
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_drain_returns_when_the_worker_is_idle() -> None:
    """The preStop hook waits for the running request and for the idle time after it."""
    with running_worker() as worker:
        request = Asked(worker, body(150))
        until_running(worker, 1)
        started = time.monotonic()
        hook = drain(worker.port, "--idle-seconds", "0.5")
        assert hook.wait(SECONDS) == 0
        assert request.result().status_code == 200
        assert time.monotonic() - started > 0.5
        assert worker.metric("vllm:num_requests_running") == 0


def test_drain_gives_up_at_its_deadline() -> None:
    """The preStop hook returns with 0 at its deadline although the worker is busy."""
    with running_worker() as worker:
        with httpx.stream("POST", f"{worker.url}/v1/chat/completions", json=body(20000, stream=True)):
            until_running(worker, 1)
            assert drain(worker.port, "--deadline", "0.5").wait(SECONDS) == 0
            assert worker.metric("vllm:num_requests_running") == 1
        until_running(worker, 0)


def test_drain_of_a_worker_that_is_gone_returns_at_once() -> None:
    """Where nothing listens there is nothing to drain."""
    assert drain(free_port()).wait(SECONDS) == 0


def test_a_client_that_leaves_aborts_its_request() -> None:
    """Closing the connection frees the request at once: while it streams, and before its first token."""
    with running_worker() as worker:
        with httpx.stream(
            "POST", f"{worker.url}/v1/chat/completions", json=body(20000, stream=True)
        ) as answer:
            pieces = answer.iter_bytes()
            assert next(pieces)
            until_running(worker, 1)
        until_running(worker, 0)
        worker.fault("slow", factor=1000)
        payload = httpx.Request("POST", worker.url, json=body(5)).content
        with socket.create_connection((worker.host, worker.port)) as raw:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\n\r\n"
            raw.sendall(head.encode() + payload)
            until_running(worker, 1)
        until_running(worker, 0)
        # vLLM counts neither.
        assert worker.metric("vllm:request_success_total", finished_reason="abort") == 0


def test_a_client_that_reads_slowly_is_not_buffered_for() -> None:
    """A reader that stops reading costs no memory: it gets the whole text once it reads again."""
    with (
        running_worker(time_scale=100) as worker,
        httpx.stream("POST", f"{worker.url}/v1/chat/completions", json=body(30000, stream=True)) as answer,
    ):
        deadline = time.monotonic() + 4 * SECONDS
        while worker.metric("vllm:request_success_total", finished_reason="length") != 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        text = answer.read().decode()
        assert text.endswith("data: [DONE]\n\n")
        assert sum(len(part.partition('"')[0]) for part in text.split('"content":"')[1:]) == 30000 * 4


def test_sigterm_waits_for_a_client_that_still_has_to_read() -> None:
    """A stream that the engine has finished and the client has not read to its end is not cut either."""
    with (
        running_worker(time_scale=100, shutdown_timeout=20) as worker,
        httpx.stream("POST", f"{worker.url}/v1/chat/completions", json=body(30000, stream=True)) as answer,
    ):
        deadline = time.monotonic() + 4 * SECONDS
        while worker.metric("vllm:request_success_total", finished_reason="length") != 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker.process.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert worker.wait() == 0
