"""The APIs beside completions: Responses, Messages, embeddings and scores, by their official clients where there are."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import openai
import pytest

from support.worker_process import NAME, WorkerProcess, running_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT = "Tell me about railways. " * 20


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with running_worker(time_scale=10) as running:
        yield running


@pytest.fixture
def client(worker: WorkerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(worker: WorkerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=worker.url, api_key="none", max_retries=0) as made:
        yield made


def said_in_chat(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": PROMPT}], max_tokens=30
    )
    return answer.choices[0].message.content or ""


def test_a_response_is_what_the_chat_would_say(client: openai.OpenAI) -> None:
    """/v1/responses: the same engine, the same text, usage in its own words, and why it is incomplete."""
    answer = client.responses.create(model=NAME, input=PROMPT, max_output_tokens=30)
    assert answer.output_text == said_in_chat(client)
    assert answer.usage is not None
    assert answer.usage.output_tokens == 30
    assert answer.usage.total_tokens == answer.usage.input_tokens + 30
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_a_response_streams_typed_events(client: openai.OpenAI) -> None:
    """Its events come in order, numbered, and the last one holds the whole response with its usage."""
    with client.responses.stream(model=NAME, input=PROMPT, max_output_tokens=30) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final: Any = events[-1]
    assert final.response.output_text == said_in_chat(client)
    assert final.response.usage.output_tokens == 30


def test_a_response_reads_items_and_results_of_tools(client: openai.OpenAI) -> None:
    """Instructions, messages of parts, calls of functions and their results all are part of the prompt."""
    bare = client.responses.create(model=NAME, input="hi", max_output_tokens=1)
    full = client.responses.create(
        model=NAME,
        instructions="Be brief. " * 10,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "What is the weather?"}]},
            {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "rain"},
        ],
        max_output_tokens=1,
    )
    assert bare.usage is not None
    assert full.usage is not None
    assert full.usage.input_tokens > bare.usage.input_tokens + 25


def test_a_message_is_what_the_chat_would_say(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """/v1/messages: the same engine, the same text, whole and streamed, with usage and the reason of its end."""
    ask: dict[str, Any] = {"model": NAME, "max_tokens": 30, "messages": [{"role": "user", "content": PROMPT}]}
    whole = claude.messages.create(**ask)
    assert whole.content[0].type == "text"
    assert whole.content[0].text == said_in_chat(client)
    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 30)
    with claude.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 30)
    assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) == (
        whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    )


def test_a_message_reads_blocks_and_stops_at_a_stop_sequence(claude: anthropic.Anthropic) -> None:
    """System blocks and results of tools are read; a stop sequence ends the text and is named."""
    ask: dict[str, Any] = {
        "model": NAME,
        "max_tokens": 20,
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": "What is the weather?"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "w", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "rain"}]},
        ],
    }
    whole = claude.messages.create(**ask)
    assert whole.content[0].type == "text"
    word = whole.content[0].text.split()[3]
    stopped = claude.messages.create(**ask, stop_sequences=[f" {word} "])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", f" {word} ")


def test_tokens_of_a_message_are_counted(claude: anthropic.Anthropic) -> None:
    """count_tokens says what usage will say."""
    messages: Any = [{"role": "user", "content": PROMPT}]
    counted = claude.messages.count_tokens(model=NAME, messages=messages).input_tokens
    usage = claude.messages.create(model=NAME, max_tokens=1, messages=messages).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_errors_of_messages_are_anthropics(claude: anthropic.Anthropic) -> None:
    """What cannot be served on Anthropic's paths is said in the form that its client reads."""
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        claude.messages.create(model=NAME, max_tokens=1, messages=[{"role": "user", "content": [image]}])
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        claude.messages.create(model="other", max_tokens=1, messages=[{"role": "user", "content": "x"}])


def test_several_choices_are_made(client: openai.OpenAI) -> None:
    """With n = 3 there are choices, the first of which is what n = 1 says; streamed, their index separates them."""
    ask: Any = {"model": NAME, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12}
    alone = client.chat.completions.create(**ask).choices[0].message.content
    whole = client.chat.completions.create(**ask, n=3)
    texts = [choice.message.content for choice in whole.choices]
    assert texts[0] == alone
    assert len(set(texts)) == 3
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 36
    streamed = ["", "", ""]
    ends = set()
    for chunk in client.chat.completions.create(**ask, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends.add(choice.index)
    assert streamed == texts
    assert ends == {0, 1, 2}


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_vocabulary(client: openai.OpenAI, stream: bool) -> None:  # noqa: FBT001 - a case
    """All 128 words are equally likely, and that is what the log probabilities say, for every token once."""
    ask: Any = {
        "model": NAME,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
    }
    tokens = []
    if stream:
        for chunk in client.chat.completions.create(**ask, stream=True):
            if chunk.choices and chunk.choices[0].logprobs:
                tokens += chunk.choices[0].logprobs.content or []
    else:
        logprobs = client.chat.completions.create(**ask).choices[0].logprobs
        assert logprobs is not None
        tokens = logprobs.content or []
    assert len(tokens) == 5
    assert all(math.isclose(token.logprob, -math.log(128)) for token in tokens)
    assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_text_completions_tell_log_probabilities(client: openai.OpenAI) -> None:
    """In their own shape, with the place of each token."""
    logprobs = (
        client.completions.create(model=NAME, prompt=PROMPT, max_tokens=3, logprobs=1).choices[0].logprobs
    )
    assert logprobs is not None
    assert logprobs.text_offset == [0, 4, 8]
    assert len(logprobs.token_logprobs or []) == 3


def test_embeddings_are_the_same_for_the_same_text(client: openai.OpenAI) -> None:
    """Vectors have length 1 and 256 dimensions, in both encodings; shared words make texts alike."""
    texts = ["the night train to Vienna", "the night train to Rome", "quantum chromodynamics on lattices"]
    coded = client.embeddings.create(model=NAME, input=texts)
    plain = client.embeddings.create(model=NAME, input=texts, encoding_format="float")
    vectors = [entry.embedding for entry in plain.data]
    for one, other in zip(vectors, coded.data, strict=True):
        assert one == pytest.approx(other.embedding, abs=1e-6)
        assert len(one) == 256
        assert math.isclose(sum(value * value for value in one), 1.0, rel_tol=1e-9)
    near = sum(a * b for a, b in zip(vectors[0], vectors[1], strict=True))
    far = sum(a * b for a, b in zip(vectors[0], vectors[2], strict=True))
    assert near > far
    assert plain.usage.prompt_tokens == sum(-(-len(text) // 4) for text in texts)
    assert plain.to_dict()["simulated"] is True


def test_scores_and_rankings_follow_the_words(worker: WorkerProcess) -> None:
    """The document that shares the query's words comes first; top_n cuts the list; score keeps the order asked."""
    documents = ["bread and butter", "the night train to Vienna", "a train"]
    body = {"model": NAME, "query": "night train", "documents": documents, "top_n": 2}
    ranked = httpx.post(f"{worker.url}/v1/rerank", json=body).json()
    assert ranked["results"][0]["index"] in {1, 2}
    assert len(ranked["results"]) == 2
    assert ranked["simulated"] is True
    scored = httpx.post(
        f"{worker.url}/v1/score", json={"model": NAME, "text_1": "night train", "text_2": documents}
    ).json()
    assert len(scored["data"]) == 3
    assert scored["data"][0]["score"] < scored["data"][1]["score"]


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": "x", "dimensions": 1000}, "dimensions"),
        ("/v1/embeddings", {"input": "x" * 4 * 40000}, "maximum context length"),
        ("/v1/rerank", {"query": ["a", "b"], "documents": ["c"]}, "query"),
        ("/v1/score", {"queries": ["a", "b"], "documents": ["c"]}, "queries"),
        ("/v1/responses", {"input": "x", "background": True}, "background"),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/responses", {"input": [{"type": "computer_call"}]}, "cannot read"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}]}, "max_tokens"),
    ],
)
def test_what_cannot_be_served_says_why(
    worker: WorkerProcess, path: str, body: dict[str, Any], word: str
) -> None:
    """400 with the field that is wrong."""
    answer = httpx.post(f"{worker.url}{path}", json=body)
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]


def test_nothing_is_left_of_requests_whose_client_leaves(worker: WorkerProcess) -> None:
    """Several choices and several texts are several sequences: all of them end when the client leaves."""
    asked: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"input": ["x" * 4000] * 50},
        "/v1/completions": {"prompt": PROMPT, "n": 8, "max_tokens": 4000, "ignore_eos": True},
    }
    worker.fault("slow", factor=1000)
    try:
        for path, body in asked.items():
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{worker.url}{path}", json=body, timeout=httpx.Timeout(5, read=0.2))
        deadline = time.monotonic() + 10
        while sum(worker.metric(f"vllm:num_requests_{state}") for state in ("running", "waiting")):
            assert time.monotonic() < deadline, "sequences go on without their client"
    finally:
        worker.fault("none")
