"""The prefill/decode exchange between real processes, and each of its traps."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.worker_process import NAME, WorkerProcess, free_port, running_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

WANTED = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
SECONDS = 20.0


@pytest.fixture(scope="module")
def prefill() -> Iterator[WorkerProcess]:
    with running_worker(role="prefill") as running:
        yield running


@pytest.fixture(scope="module")
def decode() -> Iterator[WorkerProcess]:
    with running_worker(role="decode") as running:
        yield running


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 12, **more}


def ask(worker: WorkerProcess, fields: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{worker.url}/v1/chat/completions", json=fields, timeout=SECONDS)


def prefilled(worker: WorkerProcess, text: str) -> dict[str, Any]:
    """Run the prefill phase and return its kv_transfer_params."""
    answer = ask(worker, body(text, max_tokens=1, kv_transfer_params=WANTED))
    assert answer.status_code == 200
    params: dict[str, Any] = answer.json()["kv_transfer_params"]
    return params


def said(answer: httpx.Response) -> str:
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def until(worker: WorkerProcess, name: str, value: float, **labels: str) -> None:
    deadline = time.monotonic() + SECONDS
    while worker.metric(name, **labels) != value:
        assert time.monotonic() < deadline, f"{name} is {worker.metric(name, **labels)}, not {value}"
        time.sleep(0.02)


def test_a_pair_says_what_one_worker_says(prefill: WorkerProcess, decode: WorkerProcess) -> None:
    """Prefill here and decode there give the same text as one worker alone, and the KV came from afar."""
    text = "together " * 300
    pinned = prefill.metric("turnout_simulated_pinned_requests")
    params = prefilled(prefill, text)
    assert params["do_remote_prefill"] is True
    assert {"remote_block_ids", "remote_engine_id", "remote_request_id", "tp_size", "transfer_mode"} <= set(
        params
    )
    assert (params["remote_host"], params["remote_port"]) == (prefill.host, prefill.side_channel_port)
    assert prefill.metric("turnout_simulated_pinned_requests") == pinned + 1
    assert prefill.metric("vllm:kv_cache_usage_perc") > 0
    external = decode.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")
    answer = ask(decode, body(text, kv_transfer_params=params))
    arrived = decode.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer") - external
    assert arrived == params["remote_num_tokens"] - 1  # the last token is computed where the first is drawn
    assert prefill.metric("turnout_simulated_pinned_requests") == pinned
    with running_worker() as alone:
        assert said(ask(alone, body(text))) == said(answer)


def test_a_pair_streams(prefill: WorkerProcess, decode: WorkerProcess) -> None:
    """A stream from the decode worker carries the whole text."""
    params = prefilled(prefill, "streamed")
    whole = said(ask(decode, body("streamed")))
    answer = ask(decode, body("streamed", stream=True, kv_transfer_params=params))
    assert answer.text.rstrip().endswith("data: [DONE]")
    assert "".join(part.partition('"')[0] for part in answer.text.split('"content":"')[1:]) == whole


def test_a_streamed_prefill_returns_no_params(prefill: WorkerProcess) -> None:
    """A streamed prefill pins its blocks and does not say where they are."""
    before = prefill.metric("turnout_simulated_pinned_requests")
    answer = ask(prefill, body("s", max_tokens=1, stream=True, kv_transfer_params=WANTED))
    assert answer.status_code == 200
    assert "kv_transfer_params" not in answer.text
    assert prefill.metric("turnout_simulated_pinned_requests") == before + 1


def test_params_are_single_use(prefill: WorkerProcess, decode: WorkerProcess) -> None:
    """Params used twice answer 200 with another text, read from freed blocks, and the reuse is counted."""
    params = prefilled(prefill, "only once")
    right = said(ask(decode, body("only once", kv_transfer_params=params)))
    stale = decode.metric("turnout_simulated_stale_kv_reads_total")
    again = ask(decode, body("only once", kv_transfer_params=params))
    assert again.status_code == 200
    assert said(again) != right
    assert decode.metric("turnout_simulated_stale_kv_reads_total") == stale + 1


def test_remote_prefill_without_a_place_kills_the_engine() -> None:
    """`do_remote_prefill` alone is answered with 500, and then the process is dead."""
    with running_worker(role="decode") as worker:
        answer = ask(worker, body("x", kv_transfer_params={"do_remote_prefill": True}))
        assert answer.status_code == 500
        assert worker.wait() == 1


def test_without_a_connector_the_params_mean_nothing() -> None:
    """An aggregated worker ignores kv_transfer_params, whatever they say."""
    with running_worker() as worker:
        answer = ask(worker, body("x", kv_transfer_params={"do_remote_prefill": True}))
        assert answer.status_code == 200
        assert answer.json()["kv_transfer_params"] is None


def test_an_unreachable_prefill_worker_is_tried_for_five_seconds(
    prefill: WorkerProcess, decode: WorkerProcess
) -> None:
    """No worker listens where the KV should be: 500 after five seconds, counted, and the worker lives on."""
    params = {**prefilled(prefill, "away"), "remote_port": free_port()}
    failed = decode.metric("vllm:nixl_num_failed_transfers_total")
    started = time.monotonic()
    assert ask(decode, body("away", kv_transfer_params=params)).status_code == 500
    assert 4.5 < time.monotonic() - started < SECONDS
    assert decode.metric("vllm:nixl_num_failed_transfers_total") == failed + 1
    assert ask(decode, body("away")).status_code == 200


def test_a_prefill_worker_killed_after_the_handshake_fails_at_once(decode: WorkerProcess) -> None:
    """Its KV is gone with it: 500 without the five seconds, for every request that counted on it."""
    with running_worker(role="prefill") as dying:
        ask(decode, body("shake hands", kv_transfer_params=prefilled(dying, "shake hands")))
        lost = [prefilled(dying, "one"), prefilled(dying, "two")]
        dying.kill()
        for params in lost:
            started = time.monotonic()
            assert ask(decode, body("one", kv_transfer_params=params)).status_code == 500
            assert time.monotonic() - started < 4
    assert httpx.get(f"{decode.url}/health").status_code == 200


def test_another_engine_at_the_same_address_is_not_mistaken(decode: WorkerProcess) -> None:
    """A prefill worker that was restarted holds nothing of what the old one promised: 500."""
    with running_worker(role="prefill") as old:
        params = prefilled(old, "moved")
        port = old.side_channel_port
    with running_worker(role="prefill", side_channel_port=port):
        assert ask(decode, body("moved", kv_transfer_params=params)).status_code == 500


def test_an_abandoned_prefill_is_freed_after_its_lease() -> None:
    """Blocks that no worker fetches are pinned for the lease, in the engine's time, then freed and counted."""
    with running_worker(role="prefill", time_scale=10) as worker:
        prefilled(worker, "forgotten " * 50)
        assert worker.metric("turnout_simulated_pinned_requests") == 1
        until(worker, "vllm:nixl_num_kv_expired_reqs_total", 1)
        assert worker.metric("turnout_simulated_pinned_requests") == 0
        assert worker.metric("vllm:kv_cache_usage_perc") == 0


REFUSED_READING: list[dict[str, Any]] = [
    {"stream_options": {"include_usage": True}},
    {"min_tokens": 13},
    {"max_tokens": "x"},
    {"stream": True, "stream_options": {"include_usage": "x"}},
]
REFUSED_SERVING: list[dict[str, Any]] = [
    {"max_tokens": 40000},
    {"max_tokens": 0},
    {"max_completion_tokens": -1},
    {"model": "other"},
]


@pytest.mark.parametrize("fields", REFUSED_READING)
def test_what_decode_refuses_while_it_reads_stays_pinned(fields: dict[str, Any]) -> None:
    """A body that decode cannot read: 400, and the prefill worker holds the prompt until its lease ends."""
    with (
        running_worker(role="prefill", kv_lease_seconds=3) as prefill,
        running_worker(role="decode") as decode,
    ):
        params = prefilled(prefill, "kept")
        answer = ask(decode, body("kept", **{"kv_transfer_params": params, **fields}))
        assert answer.status_code == 400
        until(prefill, "vllm:nixl_num_kv_expired_reqs_total", 1)
        assert prefill.metric("turnout_simulated_pinned_requests") == 0


def test_a_message_without_a_cap_stays_pinned(prefill: WorkerProcess, decode: WorkerProcess) -> None:
    """`/v1/messages` without max_tokens, or with 0: refused while it is read, in OpenAI's form."""
    held = prefill.metric("turnout_simulated_pinned_requests")
    for fields in ({}, {"max_tokens": 0}):
        params = prefilled(prefill, "kept")
        message = {"model": NAME, "messages": [{"role": "user", "content": "kept"}], **fields}
        answer = httpx.post(f"{decode.url}/v1/messages", json={**message, "kv_transfer_params": params})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "Bad Request"
        held += 1
        assert prefill.metric("turnout_simulated_pinned_requests") == held


@pytest.mark.parametrize("fields", REFUSED_SERVING)
def test_what_decode_refuses_in_serving_code_is_freed(
    prefill: WorkerProcess, decode: WorkerProcess, fields: dict[str, Any]
) -> None:
    """Decode refuses what it has read: 400 or 404, and the prefill worker frees the prompt at once."""
    held = prefill.metric("turnout_simulated_pinned_requests")
    params = prefilled(prefill, "freed")
    answer = ask(decode, body("freed", **{"kv_transfer_params": params, **fields}))
    assert answer.status_code in {400, 404}
    until(prefill, "turnout_simulated_pinned_requests", held)


def test_an_aborted_prefill_promises_nothing() -> None:
    """An engine that gives up a prefill answers 200 with `abort`, without kv_transfer_params, and pins nothing."""
    with running_worker(role="prefill") as worker:
        worker.fault("abort")
        answer = ask(worker, body("aborted", max_tokens=1, kv_transfer_params=WANTED))
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["finish_reason"] == "abort"
        assert answer.json()["kv_transfer_params"] is None
        assert worker.metric("turnout_simulated_pinned_requests") == 0


def test_an_answer_of_the_side_channel_that_is_none_fails_the_request(decode: WorkerProcess) -> None:
    """Whatever a prefill worker's port answers, a request ends, and the decode worker serves on."""
    for answer in (b"[]", b"7", b"{}", b"no JSON", b"x" * 100_000):
        with _odd_side_channel(answer) as (host, port):
            params = {
                "do_remote_prefill": True, "remote_engine_id": "odd", "remote_request_id": "r", "remote_host": host,
                "remote_port": port, "remote_block_ids": [1], "remote_num_tokens": 10,
            }  # fmt: skip
            asked = ask(decode, body("odd " * 20, kv_transfer_params=params))
            assert asked.status_code == 500
    assert ask(decode, body("odd")).status_code == 200


@contextmanager
def _odd_side_channel(answer: bytes) -> Iterator[tuple[str, int]]:
    """Greet as the engine `odd`, and answer the first question with *answer*."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b'{"engine_id": "odd"}\n')
                connection.recv(1000)
                connection.sendall(answer + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()
        thread.join(SECONDS)
