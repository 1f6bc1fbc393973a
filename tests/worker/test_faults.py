"""Faults that tests can order, and bounds that hold without being ordered."""

from __future__ import annotations

import subprocess
import threading
import time
from typing import Any

import httpx
import pytest

from support.worker_process import NAME, WorkerProcess, running_worker, worker_command

SECONDS = 20.0


def ask(worker: WorkerProcess, tokens: int = 3, **more: Any) -> httpx.Response:
    fields = {"model": NAME, "prompt": "work", "max_tokens": tokens, "ignore_eos": True, **more}
    return httpx.post(f"{worker.url}/v1/completions", json=fields, timeout=SECONDS)


def test_error_strikes_so_many_requests() -> None:
    """`error` answers the next `count` completions with its status and no more."""
    with running_worker(time_scale=10) as worker:
        worker.fault("error", status=503, count=2)
        assert [ask(worker).status_code for _ in range(3)] == [503, 503, 200]


def test_slow_stretches_every_iteration() -> None:
    """`slow` multiplies the latencies that the engine reports by its factor; `none` ends it."""
    with running_worker() as worker:
        ask(worker, 11)
        usual = worker.metric("vllm:inter_token_latency_seconds_sum")
        worker.fault("slow", factor=4)
        ask(worker, 11)
        slow = worker.metric("vllm:inter_token_latency_seconds_sum") - usual
        assert slow / usual == pytest.approx(4, rel=0.05)
        worker.fault("none")
        ask(worker, 11)
        last = worker.metric("vllm:inter_token_latency_seconds_sum") - usual - slow
        assert last / usual == pytest.approx(1, rel=0.05)


def test_hang_stops_the_engine_until_it_is_lifted() -> None:
    """`hang` takes requests and gives nothing; when it is lifted they go on."""
    with running_worker(time_scale=10) as worker:
        worker.fault("hang")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{worker.url}/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=0.5)
        assert httpx.get(f"{worker.url}/health").status_code == 200
        worker.fault("none")
        assert ask(worker).status_code == 200


def test_crash_kills_the_process_in_mid_stream() -> None:
    """`crash` ends the process after so many tokens: the stream breaks off and the status is 1."""
    with running_worker() as worker:
        worker.fault("crash", afterTokens=10)
        with pytest.raises(httpx.RemoteProtocolError):
            ask(worker, 1000, stream=True)
        assert worker.wait() == 1


def test_reset_cuts_the_connection_in_mid_stream() -> None:
    """`reset` cuts one stream after so many tokens; the next one is whole."""
    with running_worker() as worker:
        worker.fault("reset", afterTokens=5)
        with pytest.raises(httpx.TransportError):
            ask(worker, 100, stream=True)
        assert ask(worker, 10, stream=True).text.endswith("data: [DONE]\n\n")
        assert worker.metric("vllm:num_requests_running") == 0


def test_garbage_is_not_http() -> None:
    """`garbage` answers with bytes that no HTTP client accepts."""
    with running_worker() as worker:
        worker.fault("garbage")
        with pytest.raises(httpx.RemoteProtocolError):
            ask(worker)
        assert ask(worker).status_code == 200


@pytest.mark.parametrize(
    "body", [b"{", b"{}", b'{"kind": "odd"}', b'{"kind": "slow", "factor": "x"}', b'{"kind": "none", "x": 1}']
)
def test_a_fault_that_is_none_is_refused(body: bytes) -> None:
    """What cannot be ordered is refused with 400 and a reason."""
    with running_worker() as worker:
        answer = httpx.post(f"{worker.url}/admin/faults", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_a_full_queue_answers_503() -> None:
    """Beyond --max-num-queued-reqs waiting requests are refused with 503 and counted."""
    with running_worker(max_num_seqs=1, max_num_queued_reqs=1) as worker:
        stream = {"prompt": "x", "max_tokens": 20000, "ignore_eos": True, "stream": True}
        url = f"{worker.url}/v1/completions"
        with httpx.Client(timeout=SECONDS) as client, client.stream("POST", url, json=stream) as running:
            pieces = running.iter_bytes()
            assert next(pieces)  # it runs
            second = threading.Thread(target=_broken_off, args=(url, stream))
            second.start()
            deadline = time.monotonic() + SECONDS
            while worker.metric("vllm:num_requests_waiting") != 1:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert ask(worker).status_code == 503
            assert worker.metric("vllm:admission_rejections_total") == 1
            worker.kill()
            second.join(SECONDS)


def _broken_off(url: str, stream: dict[str, Any]) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(url, json=stream, timeout=SECONDS)


def test_the_port_refuses_until_the_model_is_loaded() -> None:
    """With --startup-seconds the port opens only after that long, in the engine's time."""
    started = time.monotonic()
    with running_worker(startup_seconds=10, time_scale=10) as worker:
        assert time.monotonic() - started >= 1
        assert ask(worker).status_code == 200


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"model": "hf://nobody/knows"}, "known are"),
        ({"tensor_parallel": 3}, "write one of 1, 2, 4"),
        ({"model": "hf://meta-llama/Llama-3.1-70B"}, "accelerator.count: 4"),
        ({"kv_cache_tokens": 100}, "--max-length"),
        ({"max_num_batched_tokens": 10}, "max_num_seqs"),
        ({"role": "prefill", "host": "0.0.0.0"}, "POD_IP"),
        ({"time_scale": 0}, "above 0"),
    ],
)
def test_flags_that_cannot_work_say_why(flags: dict[str, Any], word: str) -> None:
    """Flags that cannot work end the worker with status 2 and a sentence that says what to write."""
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        worker_command(**flags), capture_output=True, timeout=SECONDS, env=environment, check=False
    )
    assert done.returncode == 2
    assert word in done.stderr.decode()
