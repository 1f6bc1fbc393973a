"""However a request ends, there is one outcome of it: what it was, with which status, and how many tokens were used."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.router_mock_backend import MockWorker, mock_worker
from support.router_running import Running, chat, config, eventually, eventually_async, running_router
from turnout.routing.admission import AdmissionLimits
from turnout_router.errors import UpstreamError
from turnout_router.http1.sink import CollectingSink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

PROMPT = "word " * 400
"""About 500 tokens, by the router's estimate; the mock's usage says 7."""
ESTIMATE = 500


async def ask(r: Running, stream: bool, **headers: str) -> None:  # noqa: FBT001 - of the table
    """Send the request; what becomes of it stands in its outcome."""
    with contextlib.suppress(httpx.HTTPError):
        await r.client.post(
            "/v1/chat/completions", json=chat(PROMPT, stream=stream), headers={"x-request-id": "it"} | headers
        )


async def ask_whole(r: Running, _worker: MockWorker) -> None:
    await ask(r, stream=False)


async def ask_streamed(r: Running, _worker: MockWorker) -> None:
    await ask(r, stream=True)


async def leave_before_the_first_token(r: Running, worker: MockWorker) -> None:
    asking = asyncio.create_task(ask(r, stream=True))
    await eventually(lambda: worker.running == 1)
    asking.cancel()
    await asyncio.wait({asking})


async def leave_after_the_first_token(r: Running, _worker: MockWorker) -> None:
    body, headers = chat(PROMPT, stream=True), {"x-request-id": "it"}
    async with r.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        async for line in answer.aiter_lines():
            if "tok" in line:
                break


async def ask_within_a_moment(r: Running, _worker: MockWorker) -> None:
    await ask(r, stream=True, **{"x-turnout-timeout": "0.2"})


async def ask_where_there_is_no_room(r: Running, worker: MockWorker) -> None:
    other = asyncio.create_task(r.client.post("/v1/chat/completions", json=chat(PROMPT, stream=True)))
    await eventually(lambda: worker.running == 1)
    await ask(r, stream=True)
    worker.gate.set()
    await other


async def be_cut_by_the_shutdown(r: Running, worker: MockWorker) -> None:
    asking = asyncio.create_task(ask(r, stream=True))
    await eventually(lambda: worker.running == 1)
    await r.router._listener.stop(0.05)
    await asking


@dataclass(frozen=True)
class Case:
    """How the worker behaves, what the client does, and what the outcome says. `tokens`: prompt and least output."""

    does: Callable[[Running, MockWorker], Awaitable[None]]
    ending: str
    status: int
    tokens: tuple[int, int] = (0, 0)
    counted_by: str = "router"
    worker: dict[str, Any] = field(default_factory=dict)
    retries: int = 0
    has_first_token: bool = False
    second_worker: bool = False
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)


CASES = {
    "finished, whole": Case(ask_whole, "finished", 200, (7, 6), "engine"),
    "finished, streamed": Case(ask_streamed, "finished", 200, (7, 6), "engine", has_first_token=True),
    "finished, whole, without usage": Case(
        ask_whole, "finished", 200, (ESTIMATE, 0), worker={"usage": False}
    ),
    "finished, streamed, without usage": Case(
        ask_streamed, "finished", 200, (ESTIMATE, 6), worker={"usage": False}, has_first_token=True
    ),
    "refused by the worker": Case(ask_streamed, "refused", 400, worker={"behavior": "status", "status": 400}),
    "failed": Case(ask_streamed, "failed", 502, worker={"behavior": "status"}, retries=2),
    "finished by another worker": Case(
        ask_streamed,
        "finished",
        200,
        (7, 6),
        "engine",
        worker={"behavior": "reset"},
        retries=1,
        has_first_token=True,
        second_worker=True,
    ),
    "a broken stream": Case(
        ask_streamed, "broken", 502, (ESTIMATE, 3), worker={"behavior": "cut"}, has_first_token=True
    ),
    "the client left before the first token": Case(
        leave_before_the_first_token, "client_left", 499, (ESTIMATE, 0), worker={"behavior": "gated"}
    ),
    "the client left after the first token": Case(
        leave_after_the_first_token,
        "client_left",
        499,
        (ESTIMATE, 1),
        worker={"behavior": "endless", "pause_seconds": 0.01},
        has_first_token=True,
    ),
    "the client's deadline": Case(
        ask_within_a_moment, "deadline", 504, (ESTIMATE, 0), worker={"behavior": "gated"}
    ),
    "shed": Case(
        ask_where_there_is_no_room,
        "shed",
        503,
        worker={"behavior": "gated"},
        admission=AdmissionLimits(requests_per_worker=1, waiting=0),
    ),
    "the router's shutdown": Case(
        be_cut_by_the_shutdown, "shutdown", 503, (ESTIMATE, 0), worker={"behavior": "gated"}
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_request_has_one_outcome_however_it_ends(tmp_path: Path, case: Case) -> None:
    """Nothing is left acquired, and the counts of requests and codes agree with it."""
    async with mock_worker(**case.worker) as worker, mock_worker() as other:
        workers = [("aggregated", worker.url)] + [("aggregated", other.url)] * case.second_worker
        content = config(workers, policy="LeastLoaded")
        async with running_router(tmp_path, content, admission=case.admission) as r:
            if (
                case.second_worker
            ):  # equals take turns: the second request is the one that meets the bad worker
                other_first = chat(PROMPT)
                worker.behavior = "ok"
                while not other.received:
                    await r.client.post("/v1/chat/completions", json=other_first)
                worker.behavior = case.worker["behavior"]
            await case.does(r, worker)

            async def has_ended() -> bool:
                found = await r.admin.get("/admin/decisions/it")
                return found.status_code == 200 and found.json()["ending"] is not None

            await eventually_async(has_ended)
            account = (await r.admin.get("/admin/decisions/it")).json()
            usage = account["usage"]
            assert (account["ending"], account["status"]) == (case.ending, case.status)
            assert account["retries"] == case.retries
            assert (usage["promptTokens"], usage["countedBy"]) == (case.tokens[0], case.counted_by)
            assert (
                case.tokens[1] <= usage["outputTokens"] <= max(case.tokens[1] + 1, 100 * case.has_first_token)
            )
            assert (account["firstTokenAfterSeconds"] is not None) == case.has_first_token
            worker.gate.set()
            deployment = r.router._backends.of("default/tiny")
            assert deployment is not None
            await eventually(lambda: deployment.metrics.in_flight == 0)
            assert deployment.admission._requests == deployment.admission._tokens == 0
            assert deployment.metrics.codes[case.status] >= 1
            assert deployment.metrics.waiting == 0


def test_a_collecting_sink_is_bounded() -> None:
    """Too large an answer is an error of the worker that it is not blamed for."""
    sink = CollectingSink(10)
    sink.begin(200, (), None)
    sink.send(b"12345")
    with pytest.raises(UpstreamError, match="more than 10 bytes") as error:
        sink.send(b"123456")
    assert not error.value.is_ill
    assert not sink.whole
    assert (sink.status, sink.body) == (200, b"12345")


def test_a_collecting_sink_keeps_a_whole_answer() -> None:
    """In one piece, or in several ones."""
    one, other = CollectingSink(10), CollectingSink(10)
    one.respond(200, ((b"a", b"b"),), b"answer")
    other.begin(200, ((b"a", b"b"),), None)
    for piece in (b"ans", b"wer"):
        other.send(piece)
    assert not other.whole
    other.end()
    for sink in (one, other):
        assert (sink.status, sink.fields, sink.body, sink.whole) == (200, ((b"a", b"b"),), b"answer", True)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_request_leaves_nothing_to_the_garbage_collector(tmp_path: Path, stream: bool) -> None:  # noqa: FBT001 - a parameter
    """What is made for a request refers to nothing that refers back: else it would lie about until the next collection."""
    async with mock_worker() as prefill, mock_worker() as decode:
        content = config([("prefill", prefill.url), ("decode", decode.url)])
        async with running_router(tmp_path, content, scrape_seconds=0) as r:
            await ask(r, stream)
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for _ in range(5):
                    await ask(r, stream)
                gc.collect()
                found = Counter(type(one).__name__ for one in gc.garbage if _is_ours(one))
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
            assert len(prefill.received) == len(decode.received) == 6
            assert found == {}


def _is_ours(value: object) -> bool:
    return type(value).__module__.startswith(("turnout.", "turnout_router."))
