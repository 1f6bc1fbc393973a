"""What clients ask of the router itself: deadlines, and why a request went where it did."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from support.router_mock_backend import mock_worker
from support.router_running import (
    DEPLOYMENT,
    LONG,
    Running,
    chat,
    config,
    eventually,
    eventually_async,
    pair,
    running_router,
)
from turnout.routing.admission import AdmissionLimits

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

SOON = {"x-turnout-timeout": "0.3"}


async def ask(r: Running, body: dict[str, Any], **headers: str) -> httpx.Response:
    return await r.client.post("/v1/chat/completions", json=body, headers=headers)


def is_late(answer: httpx.Response) -> bool:
    return (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


# Deadlines


async def test_a_request_that_waits_past_its_deadline_is_sent_to_no_worker(tmp_path: Path) -> None:
    """It leaves the queue, is counted as shed, and who waits behind it goes on."""
    async with (
        mock_worker(behavior="gated") as worker,
        running_router(
            tmp_path,
            config([("aggregated", worker.url)]),
            admission=AdmissionLimits(requests_per_worker=1),
        ) as r,
    ):
        first = asyncio.create_task(ask(r, chat("first")))
        await eventually(lambda: worker.received)
        assert is_late(await ask(r, chat("late"), **SOON))
        assert await r.metric("turnout_router_waiting", deployment=DEPLOYMENT) == 0
        assert await r.metric("turnout_router_shed_total", deployment=DEPLOYMENT, reason="deadline") == 1
        worker.gate.set()
        assert (await first).status_code == 200
        assert (await ask(r, chat("third"), **SOON)).status_code == 200
        assert [each.body["messages"][0]["content"] for each in worker.received] == ["first", "third"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_worker_that_has_not_begun_by_the_deadline_is_let_off(
    tmp_path: Path, *, stream: bool
) -> None:
    """Its connection is closed, so that it computes no further; it is not blamed for the client's hurry."""
    async with (
        mock_worker(behavior="gated") as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        for count in range(4):
            assert is_late(await ask(r, chat(stream=stream), **SOON))
            await eventually(lambda count=count: worker.left == count + 1)
        assert await r.metric("turnout_router_requests_total", deployment=DEPLOYMENT, code="504") == 4
        assert await r.metric("turnout_router_in_flight", deployment=DEPLOYMENT) == 0
        fleet = (await r.admin.get("/admin/fleet")).json()["deployments"][DEPLOYMENT]
        assert [(b["failuresInARow"], b["inFlightRequests"], b["ejected"]) for b in fleet] == [(0, 0, False)]
        worker.gate.set()
        assert (await r.chat()).status_code == 200


async def test_a_prefill_that_takes_past_the_deadline_ends_both_halves(tmp_path: Path) -> None:
    """The decode worker never hears of the request."""
    async with (
        mock_worker(behavior="gated") as prefill,
        mock_worker() as decode,
        running_router(tmp_path, pair(prefill, decode, policy="LeastLoaded")) as r,
    ):
        assert is_late(await ask(r, chat(LONG), **SOON))
        await eventually(lambda: prefill.left == 1)
        assert not decode.received


async def test_a_stream_that_has_begun_runs_on(tmp_path: Path) -> None:
    """The deadline is about when the answer begins."""
    async with (
        mock_worker(pause_seconds=0.15) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        answer = await ask(r, chat(stream=True), **SOON)
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")


async def test_anthropics_clients_get_errors_in_their_form(tmp_path: Path) -> None:
    """A deadline that is over is a timeout_error there."""
    async with (
        mock_worker(behavior="hang") as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        answer = await r.client.post("/v1/messages", json=chat(max_tokens=5), headers=SOON)
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf", "1e9", "30s"])
async def test_a_deadline_that_is_no_time_is_refused(tmp_path: Path, value: str) -> None:
    """In words that say what to write."""
    async with (
        mock_worker() as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        answer = await ask(r, chat(), **{"x-turnout-timeout": value})
        assert answer.status_code == 400
        assert "number of seconds" in answer.json()["error"]["message"]
        assert not worker.received


# Why


def keyed(url: str) -> dict[str, Any]:
    """Return a fleet with two keys, of which `sk-curious` may ask why."""
    content = config([("aggregated", url)])
    content["budgets"] = [
        {
            "name": f"default/{name}",
            "explain": name == "curious",
            "keys": [{"name": "k", "sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest()}],
        }
        for name in ("curious", "other")
    ]
    return content


@pytest.mark.parametrize(
    ("auth", "explain", "expected"),
    [
        ("required", "keys", {"sk-curious"}),
        ("required", "all", {"sk-curious", "sk-other"}),
        ("required", "off", set()),
        ("open", "keys", {None, "sk-curious", "sk-other"}),
        ("open", "off", set()),
    ],
)
async def test_who_gets_an_explanation(
    tmp_path: Path, auth: str, explain: str, expected: set[str | None]
) -> None:
    """Where keys are required, those whose budget allows it; where not, all clients; or as the option says."""
    async with (
        mock_worker() as worker,
        running_router(tmp_path, keyed(worker.url), auth=auth, explain=explain) as r,
    ):
        explained = set()
        for key in (None, "sk-curious", "sk-other"):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            answer = await ask(r, chat(), **{"x-turnout-explain": "1"}, **headers)
            assert answer.status_code == (401 if key is None and auth == "required" else 200)
            if "x-turnout-reason" in answer.headers:
                explained.add(key)
            assert "x-turnout-reason" not in (await ask(r, chat(), **headers)).headers
        assert explained == expected


async def test_a_refused_explanation_costs_nothing_else(tmp_path: Path) -> None:
    """Who may not ask is served all the same, and people at the admin port still see why."""
    async with (
        mock_worker() as worker,
        running_router(tmp_path, keyed(worker.url), auth="required") as r,
    ):
        headers = {"authorization": "Bearer sk-other", "x-turnout-explain": "1", "x-request-id": "r1"}
        assert (await ask(r, chat(), **headers)).status_code == 200

        async def known() -> bool:
            return (await r.admin.get("/admin/decisions/r1")).status_code == 200

        await eventually_async(known)
