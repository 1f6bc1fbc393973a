"""A prompt's tokens: who is asked, what is kept, and what becomes of a prompt that nobody tokenizes."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from support.faults import Behind, errors_of_awaiting
from support.router_mock_backend import mock_worker
from support.worker_process import NAME, WorkerProcess, running_worker
from turnout.routing import Backend
from turnout.routing.ledger import Prompt
from turnout.routing.tokens import Tokenized, chain
from turnout_router.endpoints import CHAT, RESPONSE, TEXT, Endpoint
from turnout_router.kvevents import tokens as module
from turnout_router.kvevents.tokens import Tokenizer
from turnout_router.openai import Completion, parse
from turnout_router.pools import Pools
from turnout_router.prefixes import BLOCK_TOKENS, prompt_blocks
from turnout_router.settings import UpstreamLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

STORY = "There once was a turnout that could not decide. " * 100
"""4,800 bytes."""
SIZE = 16


@contextmanager
def tokenizer() -> Iterator[tuple[Tokenizer, list[str]]]:
    """Run a tokenizer; beside it, the outcomes that it counts."""
    noted: list[str] = []
    pools = Pools(UpstreamLimits())
    pools.start()
    running = Tokenizer(pools, asyncio.get_running_loop().time, lambda _, outcome: noted.append(outcome))
    try:
        yield running, noted
    finally:
        running.stop()
        pools.stop()


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with running_worker(time_scale=20) as running:
        yield running


def engine(port: int) -> Backend:
    return Backend(f"127.0.0.1:{port}", "default/tiny", "127.0.0.1", port, "aggregated", "a", (NAME,))


def asked(text: str = STORY, endpoint: Endpoint = CHAT, **more: Any) -> tuple[Completion, Prompt]:
    """Return a request for *text* as the router has it."""
    body: dict[str, Any] = {"model": NAME, **more}
    if endpoint is CHAT:
        body.setdefault("messages", [{"role": "user", "content": text}])
    else:
        body.setdefault("prompt" if endpoint is TEXT else "input", text)
    request = parse(endpoint, orjson.dumps(body))
    blocks = prompt_blocks(request.body, request.prompt)
    return request, Prompt(max(1, len(blocks)) * BLOCK_TOKENS, blocks)


async def test_a_prompt_is_asked_for_once(worker: WorkerProcess) -> None:
    """The same again is known; another end behind the same blocks of text shares what both have in common."""
    with tokenizer() as (tokens, noted):
        engines = [engine(worker.port)]
        first = await tokens.read(*asked(), engines, [SIZE])
        again = await tokens.read(*asked(), engines, [SIZE])
        other = await tokens.read(*asked(STORY + "The end?"), engines, [SIZE])
        assert noted == ["asked", "known", "known"]
        assert first is not None
        assert other is not None
        assert again == first
        numbers, shared = first.chains[SIZE], other.chains[SIZE]
        assert shared == numbers[: len(shared)]
        assert len(numbers) - len(shared) <= BLOCK_TOKENS // SIZE
        assert other.tokens == pytest.approx(first.tokens + 2, abs=2)


async def test_what_changes_tokens_is_asked_for_anew(worker: WorkerProcess) -> None:
    """Another beginning, template, size of blocks, salt or adapter: nothing is taken for something else."""
    with tokenizer() as (tokens, noted):
        engines = [engine(worker.port)]
        found = [
            await tokens.read(request, prompt, engines, sizes)
            for (request, prompt), sizes in (
                (asked(), [SIZE]),
                (asked("No. " + STORY), [SIZE]),
                (asked(add_generation_prompt=False), [SIZE]),
                (asked(), [SIZE, 32]),
                (asked(cache_salt="pepper"), [SIZE]),
                (asked(endpoint=TEXT), [SIZE]),
            )
        ]
        assert noted == ["asked"] * 6
        chains = [each.chains[SIZE] for each in found if each is not None]
        assert len(chains) == 6
        assert chains[0] == chains[2] == chains[3], "the simulated worker knows one template"
        assert len({numbers[0] for numbers in chains}) == 4


async def test_those_who_ask_alike_at_once_ask_once(worker: WorkerProcess) -> None:
    """Ten requests for one document lead to one question, also where the first client leaves."""
    with tokenizer() as (tokens, noted):
        reading = [
            asyncio.create_task(tokens.read(*asked(), [engine(worker.port)], [SIZE])) for _ in range(10)
        ]
        await asyncio.sleep(0)
        reading[0].cancel()
        found = await asyncio.gather(*reading, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert all(isinstance(each, Tokenized) for each in found[1:])
        assert noted == ["asked"]


@pytest.mark.parametrize("behaviour", ["status", "reset", "garbage", "hang", "ok", "endless_head"])
async def test_an_engine_that_does_not_answer_is_left_alone(behaviour: str) -> None:
    """An error, a reset, garbage, silence, an answer without tokens: no tokens, in time, and no question for a while."""
    async with mock_worker(behaviour=behaviour) as deaf:
        with tokenizer() as (tokens, noted):
            loop = asyncio.get_running_loop()
            began = loop.time()
            for _ in range(3):
                assert await tokens.read(*asked(), [engine(deaf.port)], [SIZE]) is None
            assert loop.time() - began < 5
            assert noted == ["failed"] * 3
    assert len(deaf.received) == 1


async def test_another_engine_is_asked_instead(worker: WorkerProcess) -> None:
    """One that is dead costs one request its exactness; the next one asks somebody else."""
    async with mock_worker(behaviour="reset") as dead:
        with tokenizer() as (tokens, noted):
            engines = [engine(dead.port), engine(worker.port)]
            await tokens.read(*asked(), engines, [SIZE])
            assert await tokens.read(*asked(), engines, [SIZE]) is not None
            assert await tokens.read(*asked("Again. " + STORY), engines, [SIZE]) is not None
            assert noted == ["failed", "asked", "asked"]


async def test_forms_that_cannot_be_compared_are_left_to_belief() -> None:
    """Images, several prompts, other APIs, and prompts too short to matter; token ids need no question."""
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with tokenizer() as (tokens, noted):
        engines = [engine(1)]
        for request, prompt in (
            asked(messages=[*image, {"role": "user", "content": STORY}]),
            asked(endpoint=TEXT, prompt=[STORY, STORY]),
            asked(endpoint=RESPONSE),
            asked("Hello."),
        ):
            assert await tokens.read(request, prompt, engines, [SIZE]) is None
        ids = list(range(1000))
        found = await tokens.read(*asked(endpoint=TEXT, prompt=ids), engines, [SIZE])
        assert found == Tokenized("a", 1000, {SIZE: chain(ids, SIZE)})
        assert noted == ["unfit"] * 4 + ["known"]


async def test_what_is_kept_is_bounded(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many blocks the prompts longest unused are forgotten."""
    monkeypatch.setattr(module, "MAX_KEPT_BLOCKS", 200)
    with tokenizer() as (tokens, noted):
        for number in range(4):
            await tokens.read(*asked(f"{number} {STORY}"), [engine(worker.port)], [SIZE])
        assert tokens._kept_blocks <= 200
        assert len(tokens._kept) == 2
        await tokens.read(*asked(f"3 {STORY}"), [engine(worker.port)], [SIZE])
        await tokens.read(*asked(f"0 {STORY}"), [engine(worker.port)], [SIZE])
        assert noted == ["asked"] * 4 + ["known", "asked"]


async def test_whatever_asking_raises_belief_decides(worker: WorkerProcess) -> None:
    """Each kind of exception is noted and harms no request; the next one is asked for again."""
    with tokenizer() as (tokens, noted):
        faults: list[str] = []
        kinds = errors_of_awaiting()
        count = len(kinds)
        real: Any = tokens._pools

        async def exchange(*args: Any, **more: Any) -> None:
            if kinds:
                raise kinds.pop(0)
            await real.of(("127.0.0.1", worker.port)).exchange(*args, **more)

        def of(address: tuple[str, int]) -> Any:
            return Behind(real.of(address), exchange=exchange)

        tokens._pools = Behind(real, of=of, note=lambda name, _: faults.append(name))  # type: ignore[assignment]
        for _ in range(count):
            tokens._resting.clear()
            assert await tokens.read(*asked(), [engine(worker.port)], [SIZE]) is None
        tokens._resting.clear()
        assert await tokens.read(*asked(), [engine(worker.port)], [SIZE]) is not None
        assert noted == ["failed"] * count + ["asked"]
        assert faults == ["tokenize"] * (count - 1)  # one of them is the time-out that is expected
