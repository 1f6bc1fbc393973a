"""The simulated worker over HTTP, as OpenAI's client and curl see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from support.worker_process import NAME, WorkerProcess, running_worker

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with running_worker(time_scale=10) as running:
        yield running


@pytest.fixture
def client(worker: WorkerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat_answers_with_usage(client: openai.OpenAI) -> None:
    """A chat completion has text, a finish reason, and usage that counts four bytes as a token."""
    answer = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "a" * 400}], max_tokens=7
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content is not None
    assert len(choice.message.content) == 7 * 4
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert 100 <= answer.usage.prompt_tokens <= 110


def test_stream_says_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    """Streamed and whole answers to one prompt are the same text; usage comes last when asked for."""
    ask = {"model": NAME, "messages": [{"role": "user", "content": "tell me"}], "max_tokens": 30}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-2].choices[0].finish_reason in {"length", "stop"}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(whole or "") // 4


def test_the_next_turn_hits_the_cache(client: openai.OpenAI) -> None:
    """The second turn of a conversation finds the first one, its answer included, in the prefix cache."""
    first = [{"role": "user", "content": "long " * 200}]
    said = client.chat.completions.create(
        model=NAME, messages=first, max_tokens=64, extra_body={"ignore_eos": True}
    )
    text = said.choices[0].message.content
    again = [*first, {"role": "assistant", "content": text}, {"role": "user", "content": "and then?"}]
    usage = client.chat.completions.create(model=NAME, messages=again, max_tokens=1).usage
    assert usage is not None
    assert said.usage is not None
    assert usage.prompt_tokens_details is not None
    cached = usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert cached >= said.usage.prompt_tokens + 64 - 2 * 16


def test_text_completion(client: openai.OpenAI) -> None:
    """Text completions answer, whole and streamed, with the same text."""
    whole = client.completions.create(model=NAME, prompt="once upon", max_tokens=5).choices[0].text
    stream = client.completions.create(model=NAME, prompt="once upon", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole


def test_length_is_fixed_by_max_tokens_and_ignore_eos(client: openai.OpenAI) -> None:
    """With ignore_eos the output has exactly max_tokens tokens, far beyond where the model would have stopped."""
    answer = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "go"}],
        max_tokens=600,
        extra_body={"ignore_eos": True},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 600
    assert answer.choices[0].finish_reason == "length"


def test_without_a_limit_the_model_stops_by_itself(client: openai.OpenAI) -> None:
    """Without max_tokens the output ends with `stop` after 20 to 400 tokens, or later where min_tokens says so."""
    ask = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
    natural = client.chat.completions.create(**ask)
    assert natural.usage is not None
    assert natural.choices[0].finish_reason == "stop"
    assert 20 <= natural.usage.completion_tokens <= 400
    longer = client.chat.completions.create(**ask, extra_body={"min_tokens": 450})
    assert longer.usage is not None
    assert longer.usage.completion_tokens == 450


def test_stop_strings_end_the_text(client: openai.OpenAI) -> None:
    """The text ends before a stop string, with finish_reason stop."""
    ask = {"model": NAME, "messages": [{"role": "user", "content": "stop it"}], "max_tokens": 20}
    words = (client.chat.completions.create(**ask).choices[0].message.content or "").split()
    answer = client.chat.completions.create(**ask, stop=[f" {words[3]} "])
    assert answer.choices[0].finish_reason == "stop"
    assert words[3] not in (answer.choices[0].message.content or "").split()


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b"{}", 400, "messages"),
        (b'{"messages": []}', 400, "messages"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400, "text only"),
        (b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404, "does not exist"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', 400, "max_tokens"),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999}',
            400,
            "cannot be greater than max_model_len=32768",
        ),
        (b'{"messages": [{"role": "user", "content": "x"}], "best_of": 2}', 400, "not supported"),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 65}', 400, "64 choices"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": "maybe"}', 400, "stream"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream_options": {}, "stop": 5}', 400, "stop"),
    ],
)
def test_what_cannot_be_served_says_why(worker: WorkerProcess, body: bytes, status: int, word: str) -> None:
    """Malformed, unknown and too long requests get the status and the wording of vLLM, as an error object."""
    answer = httpx.post(f"{worker.url}/v1/chat/completions", content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == status
    assert word in error["message"]


def test_a_prompt_beyond_the_maximum_is_refused(worker: WorkerProcess) -> None:
    """A prompt longer than max-length gets 400 that names both lengths."""
    body = {"messages": [{"role": "user", "content": "x" * 4 * 32768}]}
    answer = httpx.post(f"{worker.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "maximum context length is 32768 tokens" in answer.json()["error"]["message"]


def test_request_ids_come_back(worker: WorkerProcess) -> None:
    """X-Request-Id is honored, on errors too; without one there is a new one each time."""
    url = f"{worker.url}/v1/completions"
    answer = httpx.post(url, json={"prompt": "x", "max_tokens": 1}, headers={"X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json()["id"] == "cmpl-mine"
    assert httpx.post(url, json={}, headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"
    made = {httpx.post(url, json={"prompt": "x", "max_tokens": 1}).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2


def test_the_small_endpoints(worker: WorkerProcess) -> None:
    """Models, health, version, tokenize answer as vLLM's do; unknown paths and methods are refused."""
    models = httpx.get(f"{worker.url}/v1/models").json()["data"]
    assert [model["id"] for model in models] == [NAME]
    assert httpx.get(f"{worker.url}/health").status_code == 200
    assert "version" in httpx.get(f"{worker.url}/version").json()
    tokens = httpx.post(f"{worker.url}/tokenize", json={"prompt": "12345678"}).json()
    assert tokens["count"] == 2
    text = httpx.post(f"{worker.url}/detokenize", json={"tokens": tokens["tokens"]}).json()
    assert text == {"prompt": "12345678"}
    assert httpx.get(f"{worker.url}/nothing").status_code == 404
    assert httpx.get(f"{worker.url}/v1/completions").status_code == 405


def test_an_adapter_is_listed_with_its_path_and_base() -> None:
    """An adapter's root is its path, its parent the base model's name, and max_model_len is null, as in vLLM."""
    with running_worker(lora_modules="sql=hf://some/sql-lora") as worker:
        base, adapter = httpx.get(f"{worker.url}/v1/models").json()["data"]
    assert (base["id"], base["parent"], base["max_model_len"]) == (NAME, None, 32768)
    assert base["root"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert (adapter["id"], adapter["parent"], adapter["max_model_len"]) == ("sql", NAME, None)
    assert adapter["root"] == "hf://some/sql-lora"
