"""The prefill/decode exchange between real processes, and each of its traps."""

from __future__ import annotations

import time
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
    """Run the prefill half and return its kv_transfer_params."""
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
    """Nobody listens where the KV should be: 500 after five seconds, counted, and the worker lives on."""
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
    """Blocks that nobody fetches are pinned for the lease, in the engine's time, then freed and counted."""
    with running_worker(role="prefill", time_scale=10) as worker:
        prefilled(worker, "forgotten " * 50)
        assert worker.metric("turnout_simulated_pinned_requests") == 1
        until(worker, "vllm:nixl_num_kv_expired_reqs_total", 1)
        assert worker.metric("turnout_simulated_pinned_requests") == 0
        assert worker.metric("vllm:kv_cache_usage_perc") == 0
