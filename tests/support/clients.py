"""Clients that keep asking, and remember every answer that was not what they were promised."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import openai

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine


@dataclass(slots=True)
class Tally:
    """What the clients have seen."""

    succeeded: int = 0
    failures: list[str] = field(default_factory=list)


async def ask(client: openai.AsyncOpenAI, model: str, prompt: str, tokens: int, tally: Tally) -> None:
    """Ask once, streaming; a stream that errs or ends short is a failure."""
    try:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=tokens,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        written = 0
        async with stream:  # a client that is cancelled hangs up
            async for chunk in stream:
                if chunk.usage is not None:
                    written = chunk.usage.completion_tokens
    except openai.OpenAIError as error:
        tally.failures.append(f"{type(error).__name__}: {error}")
        return
    if written == tokens:
        tally.succeeded += 1
    else:
        tally.failures.append(f"the stream ended after {written} of {tokens} tokens")


@contextlib.asynccontextmanager
async def asking(
    url: str, model: str, *, clients: int = 4, tokens: int = 200, prompt_words: int = 600
) -> AsyncIterator[Tally]:
    """Keep *clients* asking one request after the other, until the block ends; their last ones run to the end."""
    tally = Tally()

    async def run_clients(stop: threading.Event) -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:

            async def one(number: int) -> None:
                turn = 0
                while not stop.is_set():
                    prompt = f"Client {number}, turn {turn}. " + "Tell me more about railways. " * (
                        prompt_words // 5
                    )
                    await ask(client, model, prompt, tokens, tally)
                    turn += 1
                    if tally.failures:  # a client that is refused shall not spin
                        await asyncio.sleep(0.05)

            await asyncio.gather(*(one(number) for number in range(clients)))

    async with in_background(run_clients):
        yield tally


@contextlib.asynccontextmanager
async def in_background(
    work: Callable[[threading.Event], Coroutine[Any, Any, None]], seconds: float = 120
) -> AsyncIterator[None]:
    """Run *work* on an event loop in another thread until the block ends; it must end *seconds* after its event is set.

    A test that runs kubectl blocks its own loop. Clients on that loop would stop in the middle of a request,
    and the router would rightly answer 408.
    """
    stop = threading.Event()
    done = asyncio.create_task(asyncio.to_thread(asyncio.run, work(stop)))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(done, seconds)


async def until(what: str, condition: Any, seconds: float) -> Any:
    """Like ``wait_until`` for a test with tasks of its own: *condition* runs in a thread."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        value = await asyncio.to_thread(condition)
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain until {what}; last seen: {value!r}")
        await asyncio.sleep(0.2)
