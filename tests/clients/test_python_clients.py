"""The Python clients that people use, streaming through the router to a pair of prefill and decode workers.

Each test asks with a prompt of its own that is worth moving, and sees that its cache was.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from support.clients_pair import Pair, running_pair
from support.router_running import DEPLOYMENT, Running, eventually_async, running_router
from support.worker_process import NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

TOKENS = 16
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Returns the weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as running:
        yield running


@asynccontextmanager
async def served(pair: Pair, path: Path) -> AsyncIterator[Running]:
    """Run a router before *pair*; see that a cache was moved, and that usage was counted."""
    moved = pair.moved_tokens
    async with running_router(path, pair.config) as r:
        yield r
        assert pair.moved_tokens > moved
        counted = "turnout_router_output_tokens_total"

        async def is_counted() -> bool:
            return await r.metric(counted, deployment=DEPLOYMENT) >= TOKENS

        await eventually_async(is_counted)
        assert await r.metric("turnout_router_prompt_tokens_total", deployment=DEPLOYMENT) > 256


def prompt(subject: str) -> str:
    return f"Tell me about {subject}. " * 100


def of_openai(r: Running) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=r.base_url, api_key="any", max_retries=0, timeout=60)


def of_anthropic(r: Running) -> anthropic.AsyncAnthropic:
    url = r.base_url.removesuffix("/v1")
    return anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0, timeout=60)


async def test_openai_chat(pair: Pair, tmp_path: Path) -> None:
    """Chat completions, with tools, streamed: the text of an answer that is not, and its usage."""
    ask: Any = {
        "model": NAME,
        "messages": [{"role": "user", "content": prompt("chats")}],
        "max_tokens": TOKENS,
        "tools": TOOLS,
    }
    async with served(pair, tmp_path) as r, of_openai(r) as client:
        stream = await client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        whole = await client.chat.completions.create(**ask)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == TOKENS


async def test_openai_completions(pair: Pair, tmp_path: Path) -> None:
    """Text completions, streamed and not."""
    ask: Any = {"model": NAME, "prompt": prompt("texts"), "max_tokens": TOKENS}
    async with served(pair, tmp_path) as r, of_openai(r) as client:
        stream = await client.completions.create(**ask, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
        whole = await client.completions.create(**ask)
    assert text == whole.choices[0].text
    assert len(text) == TOKENS * 4


async def test_openai_responses(pair: Pair, tmp_path: Path) -> None:
    """Responses: typed events through the client's own accumulator, the cache moved as for a chat."""
    ask: Any = {"model": NAME, "input": prompt("responses"), "max_output_tokens": TOKENS}
    async with served(pair, tmp_path) as r, of_openai(r) as client:
        async with client.responses.stream(**ask) as stream:
            async for _ in stream:
                pass
            streamed = await stream.get_final_response()
        whole = await client.responses.create(**ask)
    assert streamed.output_text == whole.output_text
    assert streamed.usage is not None
    assert streamed.usage.output_tokens == TOKENS


async def test_openai_embeddings(pair: Pair, tmp_path: Path) -> None:
    """Embeddings go to a worker that can answer; nothing is moved for them."""
    async with running_router(tmp_path, pair.config) as r, of_openai(r) as client:
        answer = await client.embeddings.create(model=NAME, input=[prompt("vectors"), "short"])
        assert await r.metric("turnout_router_local_prefills_total", reason="no_generation") == 1
    assert len(answer.data) == 2
    assert answer.usage.prompt_tokens > 256


async def test_anthropic_messages(pair: Pair, tmp_path: Path) -> None:
    """Anthropic's client: its key's field, its events, its request id, tokens counted beforehand."""
    ask: Any = {"model": NAME, "messages": [{"role": "user", "content": prompt("messages")}]}
    async with served(pair, tmp_path) as r, of_anthropic(r) as client:
        counted = await client.messages.count_tokens(**ask)
        async with client.messages.stream(**ask, max_tokens=TOKENS, system="Be brief.") as stream:
            text = "".join([piece async for piece in stream.text_stream])
            streamed = await stream.get_final_message()
            assert stream.request_id
        whole = await client.messages.create(**ask, max_tokens=TOKENS, system="Be brief.")
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text
    assert streamed.usage.output_tokens == TOKENS
    prompt_tokens = streamed.usage.input_tokens + (streamed.usage.cache_read_input_tokens or 0)
    assert prompt_tokens > counted.input_tokens


async def test_langchain_chat(pair: Pair, tmp_path: Path) -> None:
    """LangChain's OpenAI chat model, with tools bound to it, streamed."""
    async with served(pair, tmp_path) as r, httpx.AsyncClient() as http:
        model = ChatOpenAI(
            model=NAME,
            base_url=r.base_url,
            api_key=SecretStr("any"),
            http_async_client=http,
            max_retries=0,
            stream_usage=True,
            max_completion_tokens=TOKENS,
        ).bind_tools(TOOLS)
        chunks = [chunk async for chunk in model.astream(prompt("chains"))]
        whole = await model.ainvoke(prompt("chains"))
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content
    usages = [chunk.usage_metadata for chunk in chunks if getattr(chunk, "usage_metadata", None)]
    assert usages[-1]["output_tokens"] == TOKENS


async def test_langchain_responses_and_embeddings(pair: Pair, tmp_path: Path) -> None:
    """The same over the Responses API, and its embeddings."""
    async with served(pair, tmp_path) as r, httpx.AsyncClient() as http:
        model = ChatOpenAI(
            model=NAME,
            base_url=r.base_url,
            api_key=SecretStr("any"),
            http_async_client=http,
            max_retries=0,
            use_responses_api=True,
            max_completion_tokens=TOKENS,
        )
        text = "".join([str(chunk.text) async for chunk in model.astream(prompt("links"))])
        vectors = await OpenAIEmbeddings(
            model=NAME,
            base_url=r.base_url,
            api_key=SecretStr("any"),
            http_async_client=http,
            check_embedding_ctx_length=False,
        ).aembed_documents(["one", "two"])
    assert len(text) == TOKENS * 4
    assert len(vectors) == 2


async def test_errors_reach_each_client_in_its_own_form(pair: Pair, tmp_path: Path) -> None:
    """A model that does not exist is NotFoundError to both clients, with the router's words."""
    async with running_router(tmp_path, pair.config) as r:
        async with of_openai(r) as client:
            with pytest.raises(openai.NotFoundError, match="does not exist or you do not have access"):
                await client.responses.create(model="none", input="x")
            with pytest.raises(openai.BadRequestError, match="send the conversation in `input`"):
                await client.responses.create(model=NAME, input="x", previous_response_id="resp_1")
        async with of_anthropic(r) as claude:
            with pytest.raises(anthropic.NotFoundError, match="does not exist") as caught:
                await claude.messages.create(
                    model="none", max_tokens=1, messages=[{"role": "user", "content": "x"}]
                )
    assert caught.value.type == "not_found_error"


async def test_a_cut_stream_is_an_error_to_every_client(tmp_path: Path) -> None:
    """The decode worker is killed mid-stream: no client takes what it has for a whole answer."""
    with running_pair() as pair:
        for number, kind in enumerate(("chat", "response", "message")):
            pair.decode.fault("reset", afterTokens=10, count=1)
            (tmp_path / kind).mkdir()
            async with running_router(tmp_path / kind, pair.config) as r:
                with pytest.raises((openai.APIError, anthropic.APIError), match="The stream broke"):
                    await _read(r, kind, f"number {number}")


async def _read(r: Running, kind: str, subject: str) -> None:
    said: Any = [{"role": "user", "content": prompt(subject)}]
    if kind == "message":
        async with (
            of_anthropic(r) as claude,
            claude.messages.stream(model=NAME, max_tokens=400, messages=said) as stream,
        ):
            async for _ in stream:
                pass
        return
    async with of_openai(r) as client:
        if kind == "response":
            events = await client.responses.create(model=NAME, input=said[0]["content"], stream=True)
            async for _ in events:
                pass
        else:
            chunks = await client.chat.completions.create(model=NAME, messages=said, stream=True)
            async for _ in chunks:
                pass
