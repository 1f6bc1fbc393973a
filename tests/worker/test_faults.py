"""Faults that tests can order, and bounds that hold without being ordered."""

from __future__ import annotations

import subprocess
import threading
import time
from typing import Any

import httpx
import pytest

from support.worker_contract import Contract, events_of
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


def streamed(worker: WorkerProcess, tokens: int, pieces: list[str]) -> None:
    """Ask for a stream and put what comes of it into *pieces*."""
    fields = {"model": NAME, "prompt": "work", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    url = f"{worker.url}/v1/completions"
    with httpx.stream("POST", url, json=fields, timeout=SECONDS) as answer:
        pieces.extend(answer.iter_text())


@pytest.mark.parametrize("tokens", [6, 100])
def test_reset_cuts_the_connection_in_mid_stream(tokens: int) -> None:
    """`reset` cuts one stream after just so many tokens, even if many are made at once; the next one is whole."""
    with running_worker(time_scale=1000) as worker:
        worker.fault("reset", afterTokens=5)
        pieces: list[str] = []
        with pytest.raises(httpx.TransportError):
            streamed(worker, tokens, pieces)
        events = events_of("".join(pieces))
        assert sum(len(event["choices"][0]["text"]) for event in events) == 5 * 4
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


def test_abort_ends_answers_as_if_they_were_whole() -> None:
    """`abort`: a stream ends with finish_reason abort and [DONE], a whole answer is 200 with the text so far."""
    with running_worker() as worker:
        worker.fault("abort", afterTokens=5, count=2)
        stream = ask(worker, 1000, stream=True, stream_options={"include_usage": True})
        *_, last, usage, done = events_of(stream.text)
        assert last["choices"][0]["finish_reason"] == "abort"
        assert done == "[DONE]"
        whole = ask(worker, 1000)
        assert whole.status_code == 200
        (choice,) = whole.json()["choices"]
        assert choice["finish_reason"] == "abort"
        for tokens in (usage["usage"]["completion_tokens"], whole.json()["usage"]["completion_tokens"]):
            assert 5 <= tokens < 1000
        assert len(choice["text"]) == 4 * whole.json()["usage"]["completion_tokens"]
        assert ask(worker, 10).json()["choices"][0]["finish_reason"] == "length"


def test_abort_in_the_other_apis() -> None:
    """A response ends `completed`, or is `cancelled`; a message's stop_reason is null, streamed or not."""
    with running_worker() as worker:
        response = {"input": "x", "max_output_tokens": 1000, "ignore_eos": True}
        message = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1000, "ignore_eos": True}
        answers = []
        for path, fields in (("/v1/responses", response), ("/v1/messages", message)):
            for stream in (True, False):
                worker.fault("abort", afterTokens=5)
                answers.append(httpx.post(f"{worker.url}{path}", json={**fields, "stream": stream}))
    assert [answer.status_code for answer in answers] == [200] * 4
    last = events_of(answers[0].text)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.completed", "completed")
    assert {item["status"] for item in last["response"]["output"]} == {"completed"}
    assert answers[1].json()["status"] == "cancelled"
    *_, delta, stop = events_of(answers[2].text)
    assert (delta["type"], delta["delta"]["stop_reason"]) == ("message_delta", None)
    assert stop["type"] == "message_stop"
    assert answers[3].json()["stop_reason"] is None


def test_a_full_queue_refuses_on_every_path() -> None:
    """Beyond --max-num-queued-reqs: 503 in JSON; in a chat's stream an event, in some text streams, too; see contracts."""
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
            _check_refusals(Contract(worker.url, NAME, 32768, simulated=True))
            assert worker.metric("vllm:admission_rejections_total") == 19
            worker.kill()
            second.join(SECONDS)


def _broken_off(url: str, stream: dict[str, Any]) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(url, json=stream, timeout=SECONDS)


def _check_refusals(engine: Contract) -> None:
    busy = "The engine is currently busy and cannot accept new requests"
    for kind in ("chat", "text", "response"):
        plain = engine.ask(kind, engine.body(kind))
        assert plain.status_code == 503
        assert "retry-after" not in plain.headers
        error = plain.json()["error"]
        assert (error["type"], error["code"]) == ("Service Unavailable", 503)
        assert error["message"].startswith(busy)
    assert engine.ask("message", engine.body("message")).status_code == 503
    chat = engine.ask("chat", engine.body("chat", stream=True))
    assert chat.status_code == 200
    refusal, done = events_of(chat.text)
    assert (refusal["error"]["code"], done) == (503, "[DONE]")
    texts = [engine.ask("text", engine.body("text", stream=True)) for _ in range(12)]
    assert {answer.status_code for answer in texts} == {200, 503}
    assert all(events_of(a.text)[0]["error"]["code"] == 503 for a in texts if a.status_code == 200)
    message = engine.ask("message", engine.body("message", stream=True))
    error = events_of(message.text)[0]["error"]
    assert message.text.startswith("event: error\n")
    assert error["type"] == "internal_error"
    assert "'code': 503" in error["message"]
    status, text, broke = engine.until_broken("response", engine.body("response", stream=True))
    assert (status, broke) == (200, True)
    assert [event["type"] for event in events_of(text)] == ["response.created", "response.in_progress"]


def test_the_port_refuses_until_the_model_is_loaded() -> None:
    """With --startup-seconds the port opens only after that long, in the engine's time."""
    started = time.monotonic()
    with running_worker(startup_seconds=10, time_scale=10) as worker:
        assert time.monotonic() - started >= 1
        assert ask(worker).status_code == 200


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"model": "hf://acme/unknown"}, "write spec.model.architecture in the LLMDeployment"),
        ({"architecture": "{"}, "--architecture: Expecting"),
        ({"architecture": '{"name": "m", "attention": [[1, 1, 1]]}'}, "--architecture: parameters must be"),
        ({"accelerator": "TPU"}, "known are A100-SXM-80GB, CPU, H100-SXM"),
        ({"accelerator": "CPU", "tensor_parallel": 3}, "write one of 1, 2, 4"),
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
