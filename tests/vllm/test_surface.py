"""What simulated and real workers show: paths, headers, models, metrics, and the form of streams."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.worker_contract import PATHS, events_of, until
from turnout_operator.load.pages import worker_page
from turnout_router.fleet.scrapes.page import read_page

if TYPE_CHECKING:
    from support.worker_contract import Contract

READ = {
    "vllm:num_requests_running": set(),
    "vllm:num_requests_waiting": set(),
    "vllm:num_requests_waiting_by_reason": {"reason"},
    "vllm:kv_cache_usage_perc": set(),
    "vllm:prefix_cache_queries_total": set(),
    "vllm:prefix_cache_hits_total": set(),
    "vllm:external_prefix_cache_queries_total": set(),
    "vllm:external_prefix_cache_hits_total": set(),
    "vllm:prompt_tokens_total": set(),
    "vllm:generation_tokens_total": set(),
    "vllm:prompt_tokens_by_source_total": {"source"},
    "vllm:num_preemptions_total": set(),
    "vllm:request_success_total": {"finished_reason"},
    "vllm:time_to_first_token_seconds_bucket": {"le"},
    "vllm:inter_token_latency_seconds_bucket": {"le"},
    "vllm:request_time_per_output_token_seconds_bucket": {"le"},
    "vllm:e2e_request_latency_seconds_bucket": {"le"},
    "vllm:request_queue_time_seconds_sum": set(),
    "vllm:request_prefill_time_seconds_sum": set(),
    "vllm:request_decode_time_seconds_sum": set(),
    "vllm:request_inference_time_seconds_sum": set(),
}
"""Series that Turnout, its alerts and its dashboards read, with their labels beside model_name and engine."""


def samples(engine: Contract) -> list[tuple[str, dict[str, str]]]:
    families = text_string_to_metric_families(engine.get("/metrics").text)
    return [(sample.name, sample.labels) for family in families for sample in family.samples]


def test_metrics_have_the_same_names_and_labels(engine: Contract) -> None:
    """Every series that is read is there from the beginning, under the labels that are expected."""
    found = {name: set(labels) for name, labels in samples(engine)}
    assert {name: found.get(name) for name in READ} == {
        name: {"model_name", "engine"} | more for name, more in READ.items()
    }
    assert found["vllm:admission_rejections_total"] == {"model_name", "reason"}
    assert {"block_size", "num_gpu_blocks", "engine"} <= found["vllm:cache_config_info"]
    reasons = {
        labels["finished_reason"] for name, labels in samples(engine) if name == "vllm:request_success_total"
    }
    assert reasons == {"stop", "length", "abort", "error", "repetition"}


def test_router_and_operator_read_the_page(engine: Contract) -> None:
    """Both find what they decide by."""
    page = engine.get("/metrics").content
    assert read_page(page).unfinished_tokens is not None
    found = worker_page(page.decode())
    assert found is not None
    assert found.prefill_seconds is not None


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/nothing", 404, "Not Found"),
        ("GET", "/v1/chat/completions", 405, "Method Not Allowed"),
        ("HEAD", "/health", 405, None),
        ("GET", "/health", 200, None),
    ],
)
def test_paths_and_methods(engine: Contract, method: str, path: str, status: int, detail: str | None) -> None:
    """What is not served is refused by vLLM's web framework, not in OpenAI's form."""
    answer = httpx.request(method, f"{engine.url}{path}")
    assert answer.status_code == status
    assert answer.text == ("" if detail is None else f'{{"detail":"{detail}"}}')


def test_an_unknown_model_is_not_found(engine: Contract) -> None:
    """404, in OpenAI's form, naming what is served."""
    error = engine.ask("chat", engine.body("chat") | {"model": "x"})
    assert error.status_code == 404
    assert error.json()["error"] == {
        "message": f"The model `x` does not exist. Valid aliases: {engine.model}.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (
            {"temperature": 3},
            "temperature",
            "temperature must be in [0, 2], got 3.0. (parameter=temperature, value=3.0)",
        ),
        ({"top_p": 2}, "top_p", "top_p must be in (0, 1], got 2.0. (parameter=top_p, value=2.0)"),
        ({"temperature": 0, "n": 2}, None, "n must be 1 when using greedy sampling, got 2."),
    ],
)
def test_sampling_parameters_have_bounds(
    engine: Contract, fields: dict[str, Any], param: str | None, words: str
) -> None:
    """400 in vLLM's words."""
    answer = engine.ask("chat", engine.body("chat", **fields))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["message"]) == ("BadRequestError", param, words)


def test_a_prompt_that_is_too_long_is_refused(engine: Contract) -> None:
    """400; the parameter is called input_tokens."""
    count = engine.max_length + 1
    answer = engine.ask("text", {"model": engine.model, "prompt": [7] * count})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "BadRequestError", "input_tokens")
    assert error["message"].startswith(f"This model's maximum context length is {engine.max_length} tokens.")
    assert f"at least {count} input tokens" in error["message"]


@pytest.mark.parametrize("api", ["chat", "text"])
def test_a_stream_of_openai(engine: Contract, api: str) -> None:
    """Events of one data line each; the last choice's event says why it ended, then usage without choices, then [DONE]."""
    options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    answer = engine.ask(api, engine.body(api, **options))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("data: [DONE]\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in answer.text[:-2].split("\n\n"))
    *chunks, usage, done = events_of(answer.text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert {chunk["object"] for chunk in [*chunks, usage]} == {
        "chat.completion.chunk" if api == "chat" else "text_completion"
    }
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    if api == "chat":
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    plain = events_of(engine.ask(api, engine.body(api, stream=True)).text)
    assert all("usage" not in chunk or chunk["usage"] is None for chunk in plain[:-1])


def test_a_stream_of_responses(engine: Contract) -> None:
    """Named events with running numbers, from response.created to response.completed, no [DONE]."""
    answer = engine.ask("response", engine.body("response", stream=True))
    events = events_of(answer.text)
    names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] == "response.completed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["usage"]["output_tokens"] <= 3


def test_a_stream_of_messages(engine: Contract) -> None:
    """message_start with the prompt's tokens, deltas, message_delta with the reason and all usage, message_stop."""
    answer = engine.ask("message", engine.body("message", stream=True))
    events = [event for event in events_of(answer.text) if event != "[DONE]"]
    names = [event["type"] for event in events]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] in {"max_tokens", "end_turn"}
    assert events[-2]["usage"]["output_tokens"] <= 3
    assert events[0]["message"]["usage"]["input_tokens"] > 0


@pytest.mark.parametrize("api", list(PATHS))
@pytest.mark.parametrize("after_first", [False, True])
def test_a_client_that_leaves_ends_its_request(
    engine: Contract,
    api: str,
    after_first: bool,  # noqa: FBT001 - a case
) -> None:
    """Before and after the first token: nothing runs soon after, and no aborted request is counted as ended."""
    cap = "max_output_tokens" if api == "response" else "max_tokens"
    body = engine.body(api, stream=after_first, ignore_eos=True) | {cap: engine.max_length - 100}
    until(lambda: engine.metric("vllm:num_requests_running") == 0)
    request = httpx.Request("POST", f"{engine.url}{PATHS[api]}", json=body)
    with httpx.Client(timeout=60) as client:
        if after_first:
            answer = client.send(request, stream=True)
            next(answer.iter_bytes())
            answer.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(request.url, json=body, timeout=httpx.Timeout(60, read=0.3))
    left = time.monotonic()
    until(lambda: engine.metric("vllm:num_requests_running") == 0, 10)
    assert time.monotonic() - left < 10
    assert engine.metric("vllm:request_success_total", finished_reason="abort") == 0


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score"])
def test_vectors_of_a_generating_model(engine: Contract, path: str) -> None:
    """A difference that is meant: vLLM does not serve them, the simulated worker answers for every model (docs/limits.md)."""
    body = {
        "model": engine.model,
        "input": "x",
        "query": "x",
        "documents": ["x"],
        "text_1": "x",
        "text_2": "y",
    }
    answer = httpx.post(f"{engine.url}{path}", json=body)
    assert answer.status_code == (200 if engine.simulated else 404)


def test_request_ids(engine: Contract) -> None:
    """An answer's id holds the request's. A difference that is meant: the simulated worker says it in a header, too."""
    answer = httpx.post(
        f"{engine.url}{PATHS['chat']}", json=engine.body("chat"), headers={"x-request-id": "mine"}, timeout=60
    )
    assert answer.json()["id"] == "chatcmpl-mine"
    assert ("x-request-id" in answer.headers) == engine.simulated
