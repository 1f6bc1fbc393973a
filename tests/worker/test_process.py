"""The worker as a process: what it loads, and how it hears HTTP that is not what a client would send."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from support.worker_process import WorkerProcess, running_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 20.0


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with running_worker(time_scale=10) as running:
        yield running


def send(worker: WorkerProcess, data: bytes) -> bytes:
    """Send *data* and return what comes until the worker closes."""
    with socket.create_connection((worker.host, worker.port), timeout=SECONDS) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def test_a_worker_loads_no_framework() -> None:
    """Fifty workers share a laptop: neither pydantic nor kubernetes nor an HTTP framework is imported."""
    code = (
        "import sys, turnout_worker.main, turnout_worker.serve;"
        "print([m for m in ('pydantic', 'kubernetes', 'httpx', 'starlette', 'uvicorn', 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\x01garbage\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"200"),
        (b"HEAD /health HTTP/1.1\r\nconnection: close\r\n\r\n", b"405"),
    ],
)
def test_odd_http_is_answered_and_closed(worker: WorkerProcess, data: bytes, status: bytes) -> None:
    """Bytes that are no HTTP, heads without end and old versions get a status and the connection is closed."""
    assert send(worker, data).startswith(b"HTTP/1.1 " + status)


def test_a_body_beyond_the_bound_is_refused(worker: WorkerProcess) -> None:
    """More than 16 MiB are refused with 413 while they come, not after."""
    head = b"POST /v1/completions HTTP/1.1\r\ncontent-length: 50000000\r\n\r\n"
    with socket.create_connection((worker.host, worker.port), timeout=SECONDS) as connection:
        connection.sendall(head)
        try:
            for _ in range(48):
                connection.sendall(b"x" * 1_000_000)
        except (ConnectionResetError, BrokenPipeError):
            return  # it hung up in mid-body
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_pipelined_requests_are_answered_in_order(worker: WorkerProcess) -> None:
    """Requests sent together on one connection are answered one after the other."""
    slow = b'{"prompt": "x", "max_tokens": 30, "ignore_eos": true}'
    first = b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(slow), slow)
    answers = send(worker, first + b"GET /version HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert answers.index(b"text_completion") < answers.index(b'"version"')


def test_old_clients_get_streams_without_chunks(worker: WorkerProcess) -> None:
    """HTTP/1.0 knows no chunks: the stream ends with the connection."""
    body = b'{"prompt": "x", "max_tokens": 3, "stream": true}'
    answer = send(
        worker, b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert b"transfer-encoding" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")


def test_sigterm_while_the_model_loads_ends_the_process() -> None:
    """A worker that is still loading ends at once, with status 0."""
    command = [sys.executable, "-m", "turnout_worker.main", "simulate", "--model"]
    command += [
        "hf://meta-llama/Llama-3.1-8B",
        "--startup-seconds",
        "600",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        caught = f"/proc/{process.pid}/status"
        deadline = time.monotonic() + SECONDS
        while not _catches_sigterm(caught):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        assert process.wait(SECONDS) == 0


def _catches_sigterm(status: str) -> bool:
    with open(status, encoding="ascii") as lines:  # noqa: PTH123 - procfs
        mask = next(line for line in lines if line.startswith("SigCgt:")).split()[1]
    return bool(int(mask, 16) & 1 << 14)
