"""What a router learns from its workers' metrics: read cheaply, in turn, and never trusted blindly."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.router_mock_backend import mock_worker
from support.router_pages import page
from support.router_peers import knowing, routers
from support.router_running import (
    DEPLOYMENT,
    Running,
    config,
    eventually,
    eventually_async,
    running_router,
)
from support.worker_process import NAME, running_worker
from turnout_prom.search import PageError
from turnout_router.fleet.scrapes.adapters import LoadedAdapters, blocks_under
from turnout_router.fleet.scrapes.pace import SECONDS_PER_BYTE, SHARE, Looks, period
from turnout_router.fleet.scrapes.page import Page, read_page
from turnout_router.fleet.scrapes.pending import WINDOW_SECONDS, PendingTokens

if TYPE_CHECKING:
    from pathlib import Path

OFTEN = 0.05
BUSY = page(running=40, waiting=60, usage=0.99, queried=900_000)


async def scrapes(r: Running, outcome: str) -> float:
    return await r.metric("turnout_router_scrapes_total", deployment=DEPLOYMENT, outcome=outcome)


async def scraped(r: Running, outcome: str = "read", times: int = 4) -> None:
    """Wait until *times* more pages than now have ended in *outcome*."""
    before = await scrapes(r, outcome)

    async def enough() -> bool:
        return await scrapes(r, outcome) >= before + times

    await eventually_async(enough)


# The pace


@pytest.mark.parametrize(
    ("workers", "routers", "page_bytes", "fastest", "seconds"),
    [
        (8, 1, 0, 0.0, 0.25),
        (8, 1, 24_000, 0.003, 0.25),
        (8, 1, 74_000, 0.006, 0.25),
        (8, 1, 150_000, 0.0, 0.5),
        (8, 2, 24_000, 0.003, 0.5),
        (8, 8, 0, 0.0, 2.0),
        (8, 8, 74_000, 0.006, 2.0),
        (8, 8, 150_000, 0.0, 4.0),
        (50, 1, 74_000, 0.006, 0.5),
        (200, 2, 74_000, 0.006, 2.0),
        (8, 1, 60_000, 0.015, 0.5),
        (8, 1, 60_000, 1.5, 0.8),
    ],
    ids=[
        "no page yet",
        "a small page",
        "vLLM's page",
        "a large page",
        "two routers",
        "eight routers",
        "eight routers, vLLM's page",
        "eight routers, a large page",
        "many workers",
        "many workers, two routers",
        "a slow worker",
        "a busy worker",
    ],
)
def test_all_routers_together_take_little_of_a_workers_time(
    *, workers: int, routers: int, page_bytes: int, fastest: float, seconds: float
) -> None:
    """At 0.25 s for one router: 3 % of a worker's time at most, by the size of its pages and how long they take."""
    found = period(0.25, workers=workers, routers=routers, page_bytes=page_bytes, fastest=fastest)
    assert found == pytest.approx(seconds)
    assert routers * page_bytes * SECONDS_PER_BYTE / found <= SHARE * (1 + 1e-9)


def test_how_fast_a_worker_is_shows_while_it_is_not_busy() -> None:
    """The least of the last minute or two: a busy minute changes nothing, a slower machine does."""
    looks = Looks()
    assert looks.fastest == 0
    for second, took in enumerate([0.02, 0.005, 0.3, 0.2]):
        looks.answered(60_000, took, float(second))
    assert (looks.page_bytes, looks.fastest) == (60_000, 0.005)
    looks.answered(70_000, 0.5, 61.0)
    assert looks.fastest == 0.005
    looks.answered(70_000, 0.4, 122.0)
    assert (looks.page_bytes, looks.fastest) == (70_000, 0.4)


async def test_routers_that_know_each_other_ask_more_seldom(tmp_path: Path) -> None:
    """A worker is asked by both of them as often as by one that is alone."""
    async with mock_worker(page=page()) as one, mock_worker(page=page()) as other:
        content = config([("aggregated", one.url), ("aggregated", other.url)])
        async with routers(tmp_path, content, scrape_seconds=OFTEN) as both:
            await knowing(both, 1)
            before = await asyncio.gather(*(scrapes(r, "read") for r in both))
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(scraped(r, times=20) for r in both))
            after = await asyncio.gather(*(scrapes(r, "read") for r in both))
            seconds = asyncio.get_running_loop().time() - began
        # Two workers, each once in an interval by either router. Those first due when the routers met come on top.
        assert 40 <= sum(after) - sum(before) <= 2 * (seconds / OFTEN + 4)


# The page


def test_a_page_is_summed_over_its_engines() -> None:
    """Counts are added up, usage is the mean, and names that only begin alike are not mixed up."""
    text = page(running=3, waiting=2, usage=0.5, queried=1000, hit=300, computed=400, moved=100, engines=2)
    assert read_page(text) == Page(running=6, waiting=4, kv_usage=0.5, unfinished_tokens=400)


def test_a_page_without_a_word_about_its_series_is_read() -> None:
    """Whichever of two series with like names comes first."""
    lines = [line for line in page(running=1, waiting=2, deferred=1).splitlines() if b"waiting" in line]
    rest = b"\n".join(line for line in page(running=1).splitlines() if b"waiting" not in line)
    for order in (lines, lines[::-1]):
        assert read_page(b"\n".join([*order, rest])).waiting == 1


def test_who_waits_for_a_cache_to_arrive_has_no_prompt_to_compute() -> None:
    """A decode worker's deferred requests hold their blocks and will run; what is moved is no work of its own."""
    text = page(running=3, waiting=5, deferred=4, queried=8000, moved=8000)
    assert read_page(text) == Page(running=7, waiting=1, kv_usage=0.0, unfinished_tokens=0)


def test_a_page_without_the_cache_counters_still_reports_the_load() -> None:
    """An engine without prefix caching has no such counters: then the pending tokens are unknown."""
    lines = [line for line in page(running=1).splitlines(keepends=True) if b"_total" not in line]
    assert read_page(b"".join(lines)) == Page(1, 0, 0.0, None)


def test_the_latest_set_of_adapters_holds() -> None:
    """Every set that there was stays on the page; its value is the time."""
    info = (
        'vllm:lora_requests_info{{max_lora="2",running_lora_adapters="{}",waiting_lora_adapters="{}"}} {}\n'
    )
    more = info.format("old", "", "1.7e9") + info.format("sql,code", "law", "1.8e9") + info.format("", "", 0)
    read = read_page(page(more=more))
    assert (read.adapters, read.most_adapters) == ({"sql", "code", "law"}, 2)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>not found</html>",
        b"vllm:num_requests_running 1\nvllm:num_requests_waiting 1\n",
        page().replace(b"usage_perc{", b"usage_perc_other{"),
        page(running=float("nan")),
        page(waiting=float("inf")),
        page(running=1e9),
        page(queried=1e300),
        page(usage=-1),
        page().replace(b'running{engine="0",model_name="a} {b"} 0.0', b"running{} many"),
        page().replace(b'running{engine="0",model_name="a} {b"} 0.0', b'running{engine="0'),
    ],
)
def test_what_is_no_page_is_refused(text: bytes) -> None:
    """Figures that are none must not become load."""
    with pytest.raises(PageError):
        read_page(text)


@pytest.mark.parametrize(
    "text",
    [
        page(engines=2_000),
        page(more='vllm:lora_requests_info{max_lora="2"} 1\n' * 10_000),
        page(more=f'vllm:lora_requests_info{{running_lora_adapters="{"a," * 10_000}"}} 1\n'),
        page().replace(b"_running{", b"_running{" + b"x" * 20_000),
        page().replace(b"0.0", b"1" * 70),
        page(usage=1e308),
        page(queried=float("-inf")),
        b"vllm:num_requests_running{" * 40_000,
    ],
    ids=["engines", "adapter sets", "adapters", "labels", "digits", "large", "infinite", "no line ends"],
)
def test_a_page_of_absurd_size_is_refused(text: bytes) -> None:
    """It is looked at no further than what an engine could mean by it."""
    with pytest.raises(PageError):
        read_page(text)


def test_many_engines_and_adapters_are_read() -> None:
    """64 engines behind one page, a thousand sets of adapters that there have been."""
    info = 'vllm:lora_requests_info{{max_lora="8",running_lora_adapters="a{}"}} {}\n'
    read = read_page(page(engines=64, running=2, more="".join(info.format(n, n) for n in range(1_000))))
    assert (read.running, read.adapters, read.most_adapters) == (128, {"a999"}, 8)


@given(st.lists(st.sampled_from(page(more="}\n{ ").splitlines(keepends=True)) | st.binary(max_size=40)))
def test_whatever_a_worker_writes_is_a_page_or_refused(parts: list[bytes]) -> None:
    """Nothing but PageError ever comes out of reading."""
    try:
        read = read_page(b"".join(parts))
    except PageError:
        return
    assert read.running >= 0
    assert 0 <= read.kv_usage <= 1


# Pending tokens


def pages(*steps: tuple[float, int, int]) -> list[int]:
    """Return what is pending after each step of (seconds, running requests, unfinished tokens)."""
    pending = PendingTokens()
    return [pending.of(Page(running, 0, 0.0, tokens), at) for at, running, tokens in steps]


def test_what_was_aborted_is_not_pending() -> None:
    """While nothing runs nothing is pending, whatever the counters have gathered."""
    assert pages((0, 0, 5000), (1, 2, 8000), (2, 2, 6000), (3, 0, 6000), (4, 1, 6500)) == [
        0,
        3000,
        1000,
        0,
        500,
    ]


def test_a_restarted_engine_begins_anew() -> None:
    """Counters that fall are those of another life."""
    assert pages((0, 0, 90_000), (1, 1, 100), (2, 1, 400)) == [0, 0, 300]


def test_an_engine_that_is_never_idle_is_measured_from_its_least() -> None:
    """Of the last minute or two: what was lost before that no longer counts."""
    long = WINDOW_SECONDS
    assert pages((0, 5, 0), (1, 5, 9000), (long, 5, 9000), (2 * long, 5, 9500), (3 * long, 5, 9600)) == [
        0,
        9000,
        9000,
        500,
        100,
    ]


# Loaded adapters


def test_an_engine_keeps_the_adapters_used_last() -> None:
    """As many as it says that it has room for."""
    loaded = LoadedAdapters()
    assert loaded.used("a") == {"a"}
    assert loaded.used("b") == {"b"}
    assert loaded.seen(frozenset({"c"}), 2) == {"b", "c"}
    assert loaded.used("b") == {"b", "c"}
    assert loaded.used("d") == {"b", "d"}
    assert loaded.seen(frozenset(), 1) == {"d"}


def test_an_adapters_prompts_are_others_than_the_models() -> None:
    """Equal prompts begin alike under one adapter only."""
    assert blocks_under("sql", (1, 2)) == blocks_under("sql", (1, 2, 3))[:2]
    assert not set(blocks_under("sql", (1, 2))) & {1, 2, *blocks_under("law", (1, 2))}


# A router that asks


async def test_what_others_sent_to_a_worker_counts(tmp_path: Path) -> None:
    """A worker whose metrics show others' requests gets none while there is an idle one, and its share afterwards."""
    async with (
        mock_worker(page=page()) as busy,
        mock_worker(page=page()) as idle,
        running_router(
            tmp_path,
            config([("aggregated", busy.url), ("aggregated", idle.url)]),
            scrape_seconds=OFTEN,
        ) as r,
    ):
        busy.page = BUSY
        await scraped(r)
        for number in range(8):
            assert (await r.chat(f"{number}")).status_code == 200
        assert (len(busy.received), len(idle.received)) == (0, 8)
        busy.page = page(queried=900_000)
        await scraped(r)
        for number in range(8):
            assert (await r.chat(f"{number}")).status_code == 200
        assert busy.received


async def test_a_worker_that_does_not_answer_is_asked_once_at_a_time(tmp_path: Path) -> None:
    """One page that hangs keeps one connection busy, is given up in the end, and delays no other."""
    async with (
        mock_worker(page=page(), page_gate=asyncio.Event()) as hung,
        mock_worker(page=page()) as other,
        running_router(
            tmp_path,
            config([("aggregated", hung.url), ("aggregated", other.url)]),
            scrape_seconds=OFTEN,
        ) as r,
    ):
        await scraped(r, times=10)
        assert hung.scrapes == 1
        await scraped(r, "timeout", times=1)
        await eventually(lambda: hung.scrapes == 2)
        await scraped(r, times=4)
        assert hung.scrapes == 2


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (b"", "status"),
        (b"vllm:num_requests_running lots\n", "unreadable"),
        (b"#" * 2_000_000, "too_large"),
    ],
)
async def test_pages_that_cannot_be_read_are_counted(tmp_path: Path, text: bytes, outcome: str) -> None:
    """They change nothing: requests are served, and the worker's health is none of it."""
    async with (
        mock_worker(page=text) as odd,
        mock_worker(page=text) as other,
        running_router(
            tmp_path,
            config([("aggregated", odd.url), ("aggregated", other.url)]),
            scrape_seconds=OFTEN,
        ) as r,
    ):
        await scraped(r, outcome)
        for number in range(4):
            assert (await r.chat(f"{number}")).status_code == 200
        assert odd.received
        assert other.received
        workers = (await r.admin.get("/admin/fleet")).json()["deployments"][DEPLOYMENT]
        assert not any(worker["failuresInARow"] for worker in workers)


async def test_no_worker_is_asked_where_it_would_change_nothing(tmp_path: Path) -> None:
    """Not the only worker of a deployment, not where the policy is LeastLoaded, not at an interval of 0."""
    async with mock_worker(page=page()) as one, mock_worker(page=page()) as other, mock_worker() as asked:
        two = [("aggregated", one.url), ("aggregated", other.url)]
        witness = {**config([("aggregated", asked.url), ("aggregated", asked.url)])["deployments"][0]}
        witness |= {"name": "default/witness", "servedNames": ["witness"]}
        for index, fleet in enumerate((config(two[:1]), config(two, policy="LeastLoaded"))):
            fleet["deployments"].append(witness)
            (tmp_path / str(index)).mkdir()
            before = asked.scrapes
            async with running_router(tmp_path / str(index), fleet, scrape_seconds=OFTEN):
                await eventually(lambda before=before: asked.scrapes > before + 3)
        before = asked.scrapes
        async with running_router(tmp_path, config(two), scrape_seconds=0.0) as r:
            assert (await r.chat()).status_code == 200
        assert (one.scrapes, other.scrapes, asked.scrapes) == (0, 0, before)


async def test_workers_that_are_down_or_gone_are_not_asked(tmp_path: Path) -> None:
    """An ejected worker is known by its /health, one that left the fleet by nothing."""
    async with (
        mock_worker(page=page(), behavior="reset", healthy=False) as bad,
        mock_worker(page=page()) as gone,
        mock_worker(page=page()) as good,
        running_router(
            tmp_path,
            config([("aggregated", w.url) for w in (bad, gone, good)]),
            scrape_seconds=OFTEN,
        ) as r,
    ):

        async def ejected() -> bool:
            await r.chat()
            workers = (await r.admin.get("/admin/fleet")).json()["deployments"][DEPLOYMENT]
            return any(w["ejected"] for w in workers)

        await eventually_async(ejected)
        await scraped(r)
        asked = bad.scrapes
        await scraped(r, times=8)
        assert bad.scrapes == asked
        (tmp_path / "router.yaml").write_text(
            json.dumps(config([("aggregated", w.url) for w in (bad, good)]))
        )
        r.router.reload()
        await eventually_async(lambda: _is_gone(r, gone.id))
        asked = gone.scrapes
        await scraped(r, times=8)
        assert gone.scrapes <= asked + 1  # one may have been on its way


async def _is_gone(r: Running, id_: str) -> bool:
    workers = (await r.admin.get("/admin/fleet")).json()["deployments"][DEPLOYMENT]
    return id_ not in {worker["id"] for worker in workers}


# With simulated workers


def fleet(*urls: str, **more: Any) -> dict[str, Any]:
    backends = [{"role": "aggregated", "url": url} for url in urls]
    return {
        "deployments": [
            {"name": DEPLOYMENT, "servedNames": [NAME], "timeScale": 5, "backends": backends, **more}
        ]
    }


async def test_two_routers_in_front_of_the_same_workers_do_not_meet_on_one(tmp_path: Path) -> None:
    """What one router has sent to a worker, the other one learns from that worker's metrics, and goes elsewhere."""
    with ExitStack() as stack:
        workers = [stack.enter_context(running_worker(time_scale=5, seed=n)) for n in range(2)]
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        urls = [worker.url for worker in workers]
        async with (
            running_router(tmp_path / "one", fleet(*urls[:1])) as one,  # knows one worker only
            running_router(tmp_path / "two", fleet(*urls), scrape_seconds=OFTEN) as two,
        ):
            ask = {"model": NAME, "max_tokens": 4000, "ignore_eos": True}
            long = [
                asyncio.create_task(
                    one.client.post("/v1/completions", json=ask | {"prompt": f"{n} {'word ' * 3000}"})
                )
                for n in range(12)
            ]
            await eventually(lambda: workers[0].metric("vllm:num_requests_running") == 12)
            await scraped(two)
            for number in range(6):
                body = {"model": NAME, "max_tokens": 2, "prompt": f"{number}"}
                answer = await two.client.post("/v1/completions", json=body)
                assert answer.headers["x-turnout-backend"] == urls[1].removeprefix("http://")
            for task in long:
                task.cancel()
            await asyncio.gather(*long, return_exceptions=True)


async def test_an_adapters_requests_go_where_it_is_loaded(tmp_path: Path) -> None:
    """A router that has sent nothing yet learns it from the metrics, and later ones from where it sent them itself."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                running_worker(time_scale=5, lora_modules=["sql=/adapters/sql", "law=/adapters/law"])
            )
            for _ in range(3)
        ]
        loaded = workers[1]
        async with (
            httpx.AsyncClient(timeout=60) as direct,
            running_router(
                tmp_path, fleet(*(w.url for w in workers), adapters=["sql", "law"]), scrape_seconds=OFTEN
            ) as r,
        ):
            body = {"model": "sql", "prompt": "SELECT", "max_tokens": 20_000, "ignore_eos": True}
            other = asyncio.create_task(direct.post(f"{loaded.url}/v1/completions", json=body))
            await eventually(lambda: loaded.metric("vllm:num_requests_running") == 1)
            await scraped(r, times=2 * len(workers))
            for number in range(3):
                answer = await r.client.post(
                    "/v1/completions", json={"model": "sql", "prompt": f"{number}", "max_tokens": 2}
                )
                assert answer.json()["model"] == "sql"
                assert answer.headers["x-turnout-backend"] == f"{loaded.host}:{loaded.port}"
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
            homes = [
                (
                    await r.client.post(
                        "/v1/completions", json={"model": "law", "prompt": f"{number}", "max_tokens": 2}
                    )
                ).headers["x-turnout-backend"]
                for number in range(4)
            ]
            assert len(set(homes)) == 1
            listed = {model["id"] for model in (await r.client.get("/v1/models")).json()["data"]}
            assert listed == {NAME, "sql", "law"}


async def test_an_adapter_is_asked_only_of_workers_that_have_it(tmp_path: Path) -> None:
    """Its name reaches the worker as it is; the model's own requests are untouched by it."""
    async with mock_worker() as one, mock_worker() as other:
        content = config([("aggregated", one.url), ("aggregated", other.url)], adapters=["sql"])
        async with running_router(tmp_path, content) as r:
            assert (await r.chat(model="sql")).json()["model"] == "sql"
            assert (await r.chat()).json()["model"] == "tiny-1b"
            assert (await r.chat(model="default/tiny")).json()["model"] == "tiny-1b"
            assert (await r.chat(model="law")).status_code == 404
