"""A prefill and a decode worker, simulated and real: what they hand to each other, and how it fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from support.worker_contract import WANTED, events_of, until

if TYPE_CHECKING:
    from support.worker_contract import Pair

PARAMS = {
    "do_remote_prefill",
    "do_remote_decode",
    "remote_block_ids",
    "remote_engine_id",
    "remote_request_id",
    "remote_host",
    "remote_port",
    "tp_size",
    "dcp_size",
    "pp_size",
    "remote_num_tokens",
    "remote_blocks_expiry_time",
    "transfer_mode",
    "remote_prefill_cached_tokens",
}
FIRST_FETCH_SECONDS = 60.0
EVERY_API = pytest.mark.parametrize("api", ["chat", "text", "response", "message"])


def greedy(pair: Pair, api: str, words: str, **more: Any) -> dict[str, Any]:
    """Return a request for a prompt of some 300 tokens that begins with *words*, and ends as soon as its answer is sure."""
    text = f"{words} " + "and so it goes on " * 60
    fields: dict[str, Any] = {
        "chat": {"messages": [{"role": "user", "content": text}]},
        "text": {"prompt": text},
        "response": {"input": text},
        "message": {"messages": [{"role": "user", "content": text}]},
    }[api]
    cap = "max_output_tokens" if api == "response" else "max_tokens"
    return {"model": pair.prefill.model, **fields, cap: 8, "temperature": 0, **more}


def said(api: str, answer: dict[str, Any]) -> str:
    """Return the text of an answer that was not streamed."""
    if api == "response":
        return str(answer["output"][0]["content"][0]["text"])
    if api == "message":
        return str(answer["content"][0]["text"])
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if api == "chat" else choice["text"])


@EVERY_API
def test_a_pair_answers_as_one_worker_does(pair: Pair, api: str) -> None:
    """The parameters of the prefill answer, taken as they are, and the same request: the same text as from one worker alone."""
    body = greedy(pair, api, f"equal {api}")
    params = pair.prefilled(api, body)
    assert set(params) == PARAMS
    assert (params["do_remote_prefill"], params["do_remote_decode"]) == (True, False)
    assert all(type(block) is int for block in params["remote_block_ids"][0])
    assert params["transfer_mode"] == "pull"
    answer = pair.decode.ask(api, body | {"kv_transfer_params": params})
    assert answer.status_code == 200
    assert said(api, answer.json()) == said(api, pair.prefill.ask(api, body).json())


def test_the_prompt_is_not_computed_again(pair: Pair) -> None:
    """The decode worker counts the prompt's tokens as moved, the prefill worker as computed."""
    source = "vllm:prompt_tokens_by_source_total"

    def counted() -> tuple[float, float, float]:
        return (
            pair.prefill.metric(source, source="local_compute"),
            pair.decode.metric(source, source="local_compute"),
            pair.decode.metric(source, source="external_kv_transfer"),
        )

    body = greedy(pair, "text", "counted once")
    before = counted()
    params = pair.prefilled("text", body)
    assert pair.decode.ask("text", body | {"kv_transfer_params": params}).status_code == 200
    computed, again, moved = (now - then for now, then in zip(counted(), before, strict=True))
    tokens = params["remote_num_tokens"]
    assert computed == tokens
    # A difference that is meant: the simulated engine computes the last one anew, at which the first token is drawn.
    assert (again, moved) == ((1, tokens - 1) if pair.simulated else (0, tokens))


def test_usage_shows_what_the_prefill_worker_had_cached(pair: Pair) -> None:
    """cached_tokens of the decode worker: what the prefill worker did not have to compute, not what has been moved."""
    body = greedy(pair, "chat", "cached over there")
    for expected_some in (False, True):
        params = pair.prefilled("chat", body)
        cached = params["remote_prefill_cached_tokens"]
        assert (cached > 0) == expected_some
        usage = pair.decode.ask("chat", body | {"kv_transfer_params": params}).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == cached
        assert usage["prompt_tokens"] == params["remote_num_tokens"]


def test_a_stream_comes_from_the_decode_worker(pair: Pair) -> None:
    """A streamed answer carries the same text, and no parameters."""
    body = greedy(pair, "chat", "streamed")
    params = pair.prefilled("chat", body)
    answer = pair.decode.ask("chat", body | {"stream": True, "kv_transfer_params": params})
    events = events_of(answer.text)
    assert events[-1] == "[DONE]"
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events[:-1])
    assert text == said("chat", pair.prefill.ask("chat", body).json())
    assert "remote_engine_id" not in answer.text


def test_a_streamed_prefill_returns_no_params(pair: Pair) -> None:
    """So a prefill must not be streamed: its blocks would be pinned for nothing."""
    body = greedy(pair, "chat", "lost", max_tokens=1, stream=True, kv_transfer_params=WANTED)
    answer = pair.prefill.ask("chat", body)
    assert answer.status_code == 200
    assert "remote_engine_id" not in answer.text


def test_params_used_twice_are_answered(pair: Pair) -> None:
    """The second answer is 200 as well, whatever lies in those blocks by then: no error shows it."""
    body = greedy(pair, "text", "used twice")
    params = pair.prefilled("text", body)
    for _ in range(2):
        assert pair.decode.ask("text", body | {"kv_transfer_params": params}).status_code == 200


def test_what_is_not_fetched_expires(pair: Pair) -> None:
    """A prompt that no worker fetches takes KV room until its lease ends, and is counted then."""
    name = "vllm:nixl_num_kv_expired_reqs_total"
    until(lambda: pair.prefill.metric("vllm:kv_cache_usage_perc") == 0)
    before = pair.prefill.metric(name)
    pair.prefilled("text", greedy(pair, "text", "forgotten"))
    assert pair.prefill.metric("vllm:kv_cache_usage_perc") > 0
    until(lambda: pair.prefill.metric(name) == before + 1)
    until(lambda: pair.prefill.metric("vllm:kv_cache_usage_perc") == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_an_unreachable_prefill_worker_fails_the_request_after_five_seconds(
    pair: Pair,
    stream: bool,  # noqa: FBT001 - a case
) -> None:
    """500; streamed: 200 and an error event with code 500. The decode worker serves on."""
    body = greedy(pair, "text", "away")
    params = pair.prefilled("text", body) | {"remote_port": 1, "remote_engine_id": f"other-{stream}"}
    begun = time.monotonic()
    answer = pair.decode.ask("text", body | {"stream": stream, "kv_transfer_params": params})
    assert 4.5 < time.monotonic() - begun < FIRST_FETCH_SECONDS
    if stream:
        assert answer.status_code == 200
        error, done = events_of(answer.text)
        assert done == "[DONE]"
    else:
        assert answer.status_code == 500
        error = answer.json()
    assert (error["error"]["type"], error["error"]["code"]) == ("InternalServerError", 500)
    assert pair.decode.ask("text", body).status_code == 200


def test_metrics_of_a_transfer_are_there(pair: Pair) -> None:
    """What the dashboards show of transfers has the same names on both sides."""
    body = greedy(pair, "text", "measured")
    before = pair.decode.metric("vllm:nixl_xfer_time_seconds_count")
    params = pair.prefilled("text", body)
    pair.decode.ask("text", body | {"kv_transfer_params": params})
    until(lambda: pair.decode.metric("vllm:nixl_xfer_time_seconds_count") == before + 1)
    assert pair.decode.metric("vllm:nixl_bytes_transferred_sum") > 0
    assert pair.prefill.metric("vllm:nixl_num_failed_transfers_total") == 0
