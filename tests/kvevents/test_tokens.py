"""A prompt's tokens: which engine is used, what is kept, and what becomes of a prompt that no engine tokenizes."""

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
from turnout.routing.load_tracker import Prompt
from turnout.routing.tokens import Tokenized, chain
from turnout_router.api.endpoints import CHAT, RESPONSE, TEXT, Endpoint
from turnout_router.api.openai import Completion, parse
from turnout_router.api.prefixes import BLOCK_BYTES, BLOCK_TOKENS, prompt_blocks
from turnout_router.fleet.kvevents import tokens as module
from turnout_router.fleet.kvevents.tokens import Tokenizer
from turnout_router.settings import UpstreamLimits
from turnout_router.upstream.pools import ConnectionPools

if TYPE_CHECKING:
    from collections.abc import Iterator

STORY = "There once was a turnout that could not decide. " * 100
"""4,900 bytes."""
LONG_STORY = STORY * 4
SIZE = 16


@contextmanager
def tokenizer() -> Iterator[tuple[Tokenizer, list[str]]]:
    """Run a tokenizer; beside it, the outcomes that it counts."""
    noted: list[str] = []
    pools = ConnectionPools(UpstreamLimits())
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
    """The same again is known; a long one with another end shares what both have in common."""
    with tokenizer() as (tokens, noted):
        engines = [engine(worker.port)]
        first = await tokens.read(*asked(LONG_STORY), engines, [SIZE])
        again = await tokens.read(*asked(LONG_STORY), engines, [SIZE])
        other = await tokens.read(*asked(LONG_STORY + "The end?"), engines, [SIZE])
        assert noted == ["asked", "known", "known"]
        assert first is not None
        assert other is not None
        assert again == first
        numbers, shared = first.chains[SIZE], other.chains[SIZE]
        assert shared == numbers[: len(shared)]
        assert len(numbers) - len(shared) <= BLOCK_TOKENS // SIZE
        assert other.tokens == pytest.approx(first.tokens + 2, abs=2)


async def test_short_prompts_are_known_to_the_block(worker: WorkerProcess) -> None:
    """Below a block of text, and up to eight of them, each text has its own tokens: no end is taken for another."""
    with tokenizer() as (tokens, noted):
        engines = [engine(worker.port)]
        for text in ("Where does the railway end? " * 10, STORY):
            request, prompt = asked(text)
            found = await tokens.read(request, prompt, engines, [SIZE])
            longer = await tokens.read(*asked(text + "And where does it begin, by the way?"), engines, [SIZE])
            again = await tokens.read(*asked(text), engines, [SIZE])
            assert found is not None
            assert longer is not None
            assert again == found
            assert len(found.chains[SIZE]) == found.tokens // SIZE
            assert len(longer.chains[SIZE]) == longer.tokens // SIZE > len(found.chains[SIZE])
            assert longer.chains[SIZE][: len(found.chains[SIZE]) - 1] == found.chains[SIZE][:-1]
            text_bytes = len(request.prompt[0])
            assert found.block_tokens == found.tokens * BLOCK_BYTES // text_bytes
        assert noted == ["asked", "asked", "known"] * 2


async def test_salts_and_adapters_part_short_prompts(worker: WorkerProcess) -> None:
    """No block of text stands for them there: their numbers are kept apart all the same."""
    with tokenizer() as (tokens, noted):
        engines, found = [engine(worker.port)], []
        for adapter, more in ((None, {}), (None, {"cache_salt": "pepper"}), ("sql", {})):
            request, prompt = asked("Where does the railway end? " * 10, **more)
            under = Prompt(prompt.tokens, prompt.blocks, adapter=adapter)
            found.append(await tokens.read(request, under, engines, [SIZE]))
        assert noted == ["asked"] * 3
        assert len({each.chains[SIZE][0] for each in found if each is not None}) == 3


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


@pytest.mark.parametrize("behavior", ["status", "reset", "garbage", "hang", "ok", "endless_head"])
async def test_an_engine_that_does_not_answer_is_left_alone(behavior: str) -> None:
    """An error, a reset, garbage, silence, an answer without tokens: no tokens, in time, and no question for a while."""
    async with mock_worker(behavior=behavior) as deaf:
        with tokenizer() as (tokens, noted):
            loop = asyncio.get_running_loop()
            began = loop.time()
            for _ in range(3):
                assert await tokens.read(*asked(), [engine(deaf.port)], [SIZE]) is None
            assert loop.time() - began < 5
            assert noted == ["failed"] * 3
    assert len(deaf.received) == 1


async def test_another_engine_is_asked_instead(worker: WorkerProcess) -> None:
    """One that is dead costs one request its exactness; the next one uses another engine."""
    async with mock_worker(behavior="reset") as dead:
        with tokenizer() as (tokens, noted):
            engines = [engine(dead.port), engine(worker.port)]
            await tokens.read(*asked(), engines, [SIZE])
            assert await tokens.read(*asked(), engines, [SIZE]) is not None
            assert await tokens.read(*asked("Again. " + STORY), engines, [SIZE]) is not None
            assert noted == ["failed", "asked", "asked"]


async def test_forms_that_cannot_be_compared_are_left_to_belief() -> None:
    """Images, several prompts, other APIs, and what /tokenize does not know; token ids need no question."""
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with tokenizer() as (tokens, noted):
        engines = [engine(1)]
        for request, prompt in (
            asked(messages=[*image, {"role": "user", "content": STORY}]),
            asked(endpoint=TEXT, prompt=[STORY, STORY]),
            asked(endpoint=RESPONSE),
            asked(truncate_prompt_tokens=100),
            asked(endpoint=TEXT, truncate_prompt_tokens=-1),
            asked(endpoint=TEXT, prompt=list(range(1000)), truncate_prompt_tokens=10),
            asked(documents=[{"text": STORY}]),
            asked(reasoning_effort="high"),
            asked(endpoint=TEXT, prompt=[1, -2]),
            asked(endpoint=TEXT, prompt=[1, 2**40]),
            asked(endpoint=TEXT, prompt=[1, 2.5]),
        ):
            assert await tokens.read(request, prompt, engines, [SIZE]) is None
        ids = list(range(1000))
        found = await tokens.read(*asked(endpoint=TEXT, prompt=ids), engines, [SIZE])
        size = 1000 * BLOCK_BYTES // len(orjson.dumps(ids))
        assert found == Tokenized("a", 1000, {SIZE: chain(ids, SIZE)}, size)
        assert noted == ["unfit"] * 11 + ["known"]


async def test_what_is_too_long_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text whose tokens could not be read at once, and ids beyond that; long chains are cut, not refused."""
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 10_000)
    monkeypatch.setattr(module, "MAX_CHAIN_BLOCKS", 64)
    monkeypatch.setattr(module, "LINKS_AT_ONCE", 16)
    with tokenizer() as (tokens, noted):
        assert await tokens.read(*asked("x" * 10_000), [engine(1)], [SIZE]) is None
        assert await tokens.read(*asked(endpoint=TEXT, prompt=[7] * 6000), [engine(1)], [SIZE]) is None
        ids = list(range(1800))
        found = await tokens.read(*asked(endpoint=TEXT, prompt=ids), [engine(1)], [SIZE])
        assert found is not None
        assert (found.tokens, found.chains[SIZE]) == (1800, chain(ids, SIZE)[:64])
        assert noted == ["unfit", "unfit", "known"]


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_prompt_that_an_engine_refuses_is_the_clients_fault(status: int) -> None:
    """Its engine is asked for the next prompt all the same: one client's mistakes cost others nothing."""
    async with mock_worker(behavior="status", status=status) as strict:
        with tokenizer() as (tokens, noted):
            for number in range(3):
                assert await tokens.read(*asked(f"{number}"), [engine(strict.port)], [SIZE]) is None
            assert noted == ["unfit"] * 3
    assert len(strict.received) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 50_000,
        b'{"tokens": [' + b"[]," * 20_000 + b"[]]}",
        b'{"tokens": {"1": 2}}',
        b'{"tokens": [1, 2.5]}',
        b'{"tokens": [-1]}',
        b'{"tokens": [' + b"9" * 5_000 + b"]}",
        b'{"tokens": [' + b"1," * 100_000 + b"1]}",
        b'{"tokens": "\xff"}',
        b'{"tokens": [1',
        b"null",
        b" ",
    ],
    ids=[
        "nested",
        "arrays",
        "map",
        "float",
        "negative",
        "huge",
        "too many",
        "no UTF-8",
        "cut",
        "null",
        "blank",
    ],
)
async def test_hostile_answers_are_no_tokens(body: bytes) -> None:
    """Whatever an engine answers: the prompt is routed by estimate, the engine is not used for a while, nothing raised or kept."""
    async with mock_worker(tokenized=body) as hostile:
        with tokenizer() as (tokens, noted):
            assert await tokens.read(*asked("Hello."), [engine(hostile.port)], [SIZE]) is None
            assert noted == ["failed"]
            assert not tokens._kept


async def test_what_is_kept_is_bounded(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many blocks the prompts longest unused are forgotten."""
    monkeypatch.setattr(module, "MAX_KEPT_BLOCKS", 220)
    with tokenizer() as (tokens, noted):
        for number in range(4):
            await tokens.read(*asked(f"{number} {STORY}"), [engine(worker.port)], [SIZE])
        assert tokens._kept_blocks <= 220
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
