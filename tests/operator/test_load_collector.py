"""The scraper over pages that are really served: what it makes of two readings, of silence and of a new start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from support.router_mock_backend import mock_worker
from support.router_running import DEPLOYMENT, config, eventually, eventually_async, running_router
from turnout.terms import ROUTER_ADMIN_PORT, WORKER_PORT
from turnout_operator.load import collector, pages
from turnout_operator.load.collector import Collector, Target
from turnout_operator.load.pages import RouterPage, RouterPages, router_page
from turnout_operator.observe.store import Key
from turnout_runtime.supervision import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from turnout.api import Role

KEY = Key("default", "llama")
SCALE = 10


@dataclass
class Source:
    """A pod's address, and what it says there; an empty page is an error."""

    address: str
    page: str = ""

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(text=self.page, status=200 if self.page else 500)


@asynccontextmanager
async def served(port: int) -> AsyncIterator[Source]:
    """Serve a page on *port* of a loopback address of its own."""
    octets = (random.randint(61, 120), random.randint(1, 250), random.randint(1, 250))  # noqa: S311 - no secret
    source = Source("127.{}.{}.{}".format(*octets))
    app = web.Application()
    app.router.add_get("/metrics", source.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, source.address, port).start()
        yield source
    finally:
        await runner.cleanup()


def worker(prefill_seconds: float) -> str:
    return (
        "vllm:num_requests_running 2\nvllm:num_requests_waiting 1\nvllm:kv_cache_usage_perc 0.5\n"
        f"vllm:request_queue_time_seconds_sum {prefill_seconds / 4}\n"
        f"vllm:request_prefill_time_seconds_sum {prefill_seconds * 3 / 4}\n"
    )


def router(prefill: float, held_prefill: int, held_decode: int) -> str:
    """Return a page of a router that has held requests for prefill so many seconds, and holds so many now."""
    return (
        f'turnout_router_held_seconds_total{{deployment="{KEY}",role="prefill"}} {prefill}\n'
        f'turnout_router_held_seconds_total{{deployment="{KEY}",role="decode"}} 1000.0\n'
        f'turnout_router_held{{deployment="{KEY}",role="prefill"}} {held_prefill}\n'
        f'turnout_router_held{{deployment="{KEY}",role="decode"}} {held_decode}\n'
        'turnout_router_held{deployment="default/other",role="decode"} 50\n'
    )


OF_BEFORE = f'turnout_router_finished_total{{deployment="{KEY}"}} 3\n'
"""A router that knows nothing of holding."""


@dataclass
class Scraped:
    """A worker and two routers, and the scraper, whose clock stands still but for `read`."""

    collector: Collector
    clock: SimpleNamespace
    worker: Source
    routers: tuple[Source, Source]
    role: Role = "prefill"
    now: float = 100.0

    async def read(self, worker_page: str, *router_pages: str, seconds: float = 2.0) -> float | None:
        """Read these pages *seconds* after the last ones; return the occupancy of the worker's pool."""
        self.now += seconds
        self.clock.monotonic = lambda: self.now
        self.worker.page = worker_page
        for source, page in zip(self.routers, router_pages, strict=True):
            source.page = page
        await self.collector.read_routers([Target(source.address, source.address) for source in self.routers])
        await self.collector.read(KEY, [Target("w", self.worker.address, self.role)], SCALE)
        return self.collector.occupancy(KEY).get(self.role)


@pytest.fixture
async def scraped(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scraped]:
    clock = SimpleNamespace(time=lambda: 1.79e9, monotonic=lambda: 0.0)
    monkeypatch.setattr(collector, "time", clock)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(served(WORKER_PORT))
        routers = [await stack.enter_async_context(served(ROUTER_ADMIN_PORT)) for _ in range(2)]
        tasks = Supervisor(lambda _: None, logging.getLogger(__name__))
        stack.push_async_callback(tasks.stop)
        yield Scraped(await stack.enter_async_context(Collector(tasks)), clock, one, (routers[0], routers[1]))


async def test_what_routers_hold_now_is_summed(scraped: Scraped) -> None:
    """Over the routers, of this deployment alone; those of before, and those that are silent, hold nothing."""
    await scraped.read(worker(0.0), router(0.0, 3, 1), router(0.0, 4, 0))
    assert scraped.collector.traffic(KEY).held == {"prefill": 7, "decode": 1}
    await scraped.read(worker(0.0), router(0.0, 3, 1), OF_BEFORE)
    assert scraped.collector.traffic(KEY).held == {"prefill": 3, "decode": 1}
    await scraped.read(worker(0.0), "", "")
    assert scraped.collector.traffic(KEY).held == {"prefill": 0, "decode": 0}


async def test_time_held_for_prefill_is_time_in_prefill(scraped: Scraped) -> None:
    """In the deployment's seconds: 2 s at scale 10 in which requests spent 40 s at workers and 30 + 10 s in routers."""
    assert await scraped.read(worker(100.0), router(500.0, 0, 0), router(7.0, 0, 0)) is None
    assert await scraped.read(worker(140.0), router(530.0, 0, 0), router(17.0, 0, 0)) == 4.0
    assert await scraped.read(worker(140.0), router(530.0, 0, 0), router(17.0, 0, 0)) == 0.0


async def test_routers_of_before_add_nothing(scraped: Scraped) -> None:
    """The occupancy is that of the workers; the first request held counts from zero."""
    assert await scraped.read(worker(0.0), OF_BEFORE, OF_BEFORE) is None
    assert await scraped.read(worker(20.0), OF_BEFORE, OF_BEFORE) == 1.0
    assert await scraped.read(worker(40.0), OF_BEFORE, router(20.0, 1, 0)) == 2.0


async def test_a_router_that_was_silent_or_starts_again_adds_nothing_once(scraped: Scraped) -> None:
    """What it held while it was not read belongs to no interval that is known."""
    assert await scraped.read(worker(0.0), router(0.0, 0, 0), router(100.0, 0, 0)) is None
    assert await scraped.read(worker(0.0), "", router(5.0, 0, 0)) == 0.0
    assert await scraped.read(worker(0.0), router(900.0, 0, 0), router(25.0, 0, 0)) == 1.0
    assert await scraped.read(worker(0.0), router(920.0, 0, 0), router(25.0, 0, 0)) == 1.0


async def test_held_time_without_workers_is_no_occupancy(scraped: Scraped) -> None:
    """Where no prefill worker has exposed its time twice, nothing is known; and a decode pool has none of prefill's."""
    assert await scraped.read(worker(0.0), router(0.0, 0, 0), router(0.0, 0, 0)) is None
    assert await scraped.read("", router(50.0, 9, 0), router(0.0, 0, 0)) is None
    scraped.role = "decode"
    await scraped.read(worker(0.0), router(50.0, 0, 0), router(0.0, 0, 0))
    assert await scraped.read(worker(20.0), router(90.0, 0, 0), router(0.0, 0, 0)) == 1.0


async def test_a_routers_own_page_has_it_in_the_deployments_seconds(tmp_path: Path) -> None:
    """One request held at time scale 2 adds 2 s in each real second, under the names that the operator reads."""
    scale, long = 2, "word " * 80_000  # which takes an H100 some 7 s
    async with mock_worker(behavior="gated") as busy:
        content = config([("aggregated", busy.url)], queueing="Router", timeScale=scale)
        async with running_router(tmp_path, content) as r:
            asking = [asyncio.create_task(r.chat(long, stream=True))]
            await eventually(lambda: len(busy.received) == 1)
            asking.append(asyncio.create_task(r.chat(long, stream=True)))

            async def page_now() -> RouterPage:
                return router_page((await r.admin.get("/metrics")).text).get(DEPLOYMENT, RouterPage())

            async def one_held() -> bool:
                return (await page_now()).held == {"prefill": 0, "decode": 1}

            await eventually_async(one_held)
            first = (await page_now()).held_seconds["decode"]
            earliest = time.monotonic()

            async def grown() -> bool:
                return (await page_now()).held_seconds["decode"] > first + 1.0

            await eventually_async(grown)
            least = scale * (time.monotonic() - earliest)
            page = await page_now()
            assert page.held_seconds["decode"] - first >= least
            assert page.held_seconds["prefill"] == 0.0
            busy.gate.set()
            assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}


WHOLE = "vllm:num_requests_running 2\nvllm:num_requests_waiting 1\nvllm:kv_cache_usage_perc 0.5\n"


def _with(**figures: str) -> str:
    page = WHOLE
    for name, value in figures.items():
        page = re.sub(rf"(vllm:{name}) .*", rf"\1 {value}", page)
    return page


HOSTILE_PAGES = {
    "nothing": "\n",
    "garbage": "\x00\xff}{" * 1000,
    "NaN": _with(num_requests_running="NaN"),
    "infinite": _with(num_requests_waiting="+Inf"),
    "negative": _with(num_requests_waiting="-3"),
    "absurd": _with(num_requests_running="1e300"),
    "a share of NaN": _with(kv_cache_usage_perc="NaN"),
    "percent for a share": _with(kv_cache_usage_perc="73"),
    "a negative share": _with(kv_cache_usage_perc="-0.1"),
    "time that runs backwards": WHOLE + "vllm:request_prefill_time_seconds_sum -1\n",
    "too long": WHOLE + "#" + "x\n" * collector.MAX_WORKER_BYTES,
    "one line without end": WHOLE + "y" * (collector.MAX_WORKER_BYTES - len(WHOLE)),
    "too many samples": WHOLE * (collector.MAX_WORKER_SAMPLES // len(WHOLE) + 1),
}


@pytest.mark.parametrize("page", list(HOSTILE_PAGES.values()), ids=list(HOSTILE_PAGES))
async def test_a_page_that_cannot_be_true_counts_as_none(scraped: Scraped, page: str) -> None:
    """Its worker's load is unknown, and the scraper goes on: the next page is read as if nothing had been."""
    await scraped.read(page, OF_BEFORE, OF_BEFORE)
    assert scraped.collector.load(KEY, "w") is None
    await scraped.read(worker(1.0), OF_BEFORE, OF_BEFORE)
    load = scraped.collector.load(KEY, "w")
    assert load is not None
    assert (load.running, load.waiting, load.kv_utilization) == (2, 1, 0.5)


@pytest.mark.parametrize(
    "sample",
    [
        'turnout_router_finished_total{deployment="default/llama"} NaN',
        'turnout_router_finished_total{deployment="default/llama"} -5',
        'turnout_router_finished_total{deployment="default/llama"} +Inf',
        'turnout_router_finished_total{deployment="default/llama"} 1e308',
        'turnout_router_held{deployment="default/llama",role="prefill"} NaN',
        'turnout_router_time_to_first_token_seconds_bucket{deployment="default/llama",le="soon"} 3',
        'turnout_router_time_to_first_token_seconds_bucket{deployment="default/llama",le="NaN"} 3',
        'turnout_router_time_to_first_token_seconds_bucket{deployment="default/llama"} 3',
    ],
)
def test_a_sample_that_cannot_be_true_is_skipped(sample: str) -> None:
    """The others of a router's page count."""
    page = router_page(f"{sample}\n{OF_BEFORE}")["default/llama"]
    assert page.counters == {"turnout_router_finished_total": 3.0}
    assert not any(page.held.values())


@asynccontextmanager
async def speaking(answer: bytes, forever: bytes = b"") -> AsyncIterator[str]:
    """Serve raw bytes on a worker's port, then *forever* again and again; yield the address."""
    octets = (random.randint(121, 180), random.randint(1, 250), random.randint(1, 250))  # noqa: S311 - no secret
    address = "127.{}.{}.{}".format(*octets)
    talking: set[asyncio.Task[None] | None] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(asyncio.current_task())
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                while forever:
                    writer.write(forever)
                    await writer.drain()
                if not answer:
                    await reader.read()  # silence until the other end is gone
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(talk, address, WORKER_PORT)
    try:
        yield address
    finally:
        server.close()
        running = {task for task in talking if task is not None}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
HOSTILE_ANSWERS = {
    "silence": (b"", b""),
    "no HTTP": (b"SSH-2.0-worker\r\n", b""),
    "a body without end": (HEAD + b"\r\n", b"# nothing\n" * 1000),
    "a head without end": (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n" * 100),
    "chunks without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nabcd\n\r\n" * 100),
    "a packed page": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", b""),
    "half of what was promised": (HEAD + b"Content-Length: 100\r\n\r\n" + WHOLE.encode()[:20], b""),
    "a length that is none": (HEAD + b"Content-Length: -1\r\n\r\n", b""),
}


@pytest.mark.parametrize("kind", list(HOSTILE_ANSWERS))
async def test_an_answer_that_is_none_ends_within_the_deadline(kind: str) -> None:
    """Whatever a worker sends, reading it ends in time."""
    tasks = Supervisor(lambda _: None, logging.getLogger(__name__))
    async with (
        speaking(*HOSTILE_ANSWERS[kind]) as hostile,
        Collector(tasks, timeout_seconds=1.0) as reader,
        asyncio.timeout(30),
    ):
        bad = [Target(f"bad-{number}", hostile) for number in range(32)]
        await reader.read(KEY, bad, SCALE)
        assert all(reader.load(KEY, target.uid) is None for target in bad)
    await tasks.stop()


@pytest.mark.parametrize("kind", list(HOSTILE_ANSWERS))
async def test_an_answer_that_is_none_delays_no_other_deployment(kind: str) -> None:
    """The other deployment is read long before the deadline of the bad workers."""
    tasks = Supervisor(lambda _: None, logging.getLogger(__name__))
    other = Key("default", "other")
    async with (
        speaking(*HOSTILE_ANSWERS[kind]) as hostile,
        served(WORKER_PORT) as honest,
        Collector(tasks, timeout_seconds=60.0) as reader,
    ):
        honest.page = worker(1.0)
        bad = [Target(f"bad-{number}", hostile) for number in range(32)]
        reading = asyncio.create_task(reader.read(KEY, bad, SCALE))
        async with asyncio.timeout(30):
            await reader.read(other, [Target("w", honest.address)], SCALE)
        assert reader.load(other, "w") is not None
        reading.cancel()
        await asyncio.wait({reading})
    await tasks.stop()


async def test_a_worker_does_not_send_its_reader_elsewhere() -> None:
    """The operator reaches what a worker cannot: a redirection is an answer like any other error."""
    tasks = Supervisor(lambda _: None, logging.getLogger(__name__))
    async with served(WORKER_PORT) as secret, Collector(tasks) as reader:
        secret.page = worker(1.0)
        there = f"HTTP/1.1 302 Found\r\nLocation: http://{secret.address}:{WORKER_PORT}/metrics\r\n"
        async with speaking(there.encode() + b"Content-Length: 0\r\n\r\n") as hostile:
            await reader.read(KEY, [Target("w", hostile)], SCALE)
        assert reader.load(KEY, "w") is None
    await tasks.stop()


async def test_a_silent_router_delays_nothing() -> None:
    """What the others say is known at once, and they are asked again while it is still waited for."""
    octets = (random.randint(181, 250), random.randint(1, 250), random.randint(1, 250))  # noqa: S311 - no secret
    address = "127.{}.{}.{}".format(*octets)
    gone = asyncio.Event()
    tasks = Supervisor(lambda _: None, logging.getLogger(__name__))

    async def silence(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(silence, address, ROUTER_ADMIN_PORT)
    async with served(ROUTER_ADMIN_PORT) as answers, Collector(tasks, timeout_seconds=60.0) as reader:
        targets = [Target("silent", address), Target("answers", answers.address)]
        try:
            answers.page = router(0.0, 4, 0)
            first = asyncio.create_task(reader.read_routers(targets))

            async def held(number: int) -> bool:
                await reader.read(KEY, [], SCALE)
                return reader.traffic(KEY).held == {"prefill": number, "decode": 0}

            await eventually_async(lambda: held(4))
            answers.page = router(0.0, 7, 0)
            await reader.read_routers(targets)
            assert await held(7)
            assert not first.done()
        finally:
            gone.set()
            server.close()
    await first
    await tasks.stop()


def test_what_stands_still_is_parsed_once() -> None:
    """The page of a deployment is the same object until one of its lines changes; one without any count has none."""
    history = RouterPages()
    other = 'turnout_router_finished_total{deployment="default/other"} 0.0\n'
    first = history.read(OF_BEFORE + other)
    assert first[str(KEY)].counters == {"turnout_router_finished_total": 3.0}
    assert "default/other" not in first
    second = history.read(OF_BEFORE + other.replace("0.0", "2.0"))
    assert second[str(KEY)] is first[str(KEY)]
    assert second["default/other"].counters == {"turnout_router_finished_total": 2.0}
    third = history.read(other.replace("0.0", "2.0") + OF_BEFORE.replace("3", "4"))
    assert third[str(KEY)].counters == {"turnout_router_finished_total": 4.0}
    assert third["default/other"] is second["default/other"]
    assert set(history.read(OF_BEFORE)) == {str(KEY)}


async def test_what_comes_after_a_pause_is_counted_from_its_end(scraped: Scraped) -> None:
    """A deployment that was not read while routers reported nothing new: the idle time does not dilute its figures."""
    await scraped.read(worker(0.0), OF_BEFORE, OF_BEFORE)
    arrivals = f'{pages.ARRIVALS}{{deployment="{KEY}"}} 6\n'  # which have not ended yet
    for page in (OF_BEFORE, OF_BEFORE + arrivals):
        scraped.now += 20.0
        scraped.routers[0].page = scraped.routers[1].page = page
        await scraped.collector.read_routers(
            [Target(source.address, source.address) for source in scraped.routers]
        )
    assert KEY in scraped.collector.take_news()
    scraped.now += 1.0
    scraped.worker.page = worker(210.0)
    await scraped.collector.read(KEY, [Target("w", scraped.worker.address, "prefill")], SCALE)
    traffic = scraped.collector.traffic(KEY)
    assert traffic.increases == {pages.FINISHED: 0.0, pages.ARRIVALS: 12.0}
    assert not traffic.is_quiet
    assert traffic.span_seconds == 21.0
    assert scraped.collector.occupancy(KEY) == {"prefill": 1.0}
