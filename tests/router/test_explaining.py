"""Every choice can be explained: as a header, and afterwards on the admin port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.router_mock_backend import mock_worker
from support.router_running import LONG, MODEL, chat, config, pair, running_router
from turnout.routing import UNCONSTRAINED, Backend, LoadChooser, WorkerPair
from turnout.routing.load_tracker import Prompt
from turnout_router.errors import UpstreamError
from turnout_router.outcome import Outcome, TokenUsage
from turnout_router.request.decisions import Decisions, RouteDecision

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_request_that_asks_gets_an_explanation(tmp_path: Path) -> None:
    """`x-turnout-explain: 1` brings one line with both phases; without it there is none."""
    async with (
        mock_worker() as prefill,
        mock_worker() as decode,
        running_router(tmp_path, pair(prefill, decode, policy="LeastLoaded")) as r,
    ):
        silent = await r.chat(LONG)
        answer = await r.client.post(
            "/v1/chat/completions", json=chat(LONG), headers={"x-turnout-explain": "1"}
        )
        short = await r.client.post(
            "/v1/chat/completions", json=chat("hi"), headers={"x-turnout-explain": "1"}
        )
    assert "x-turnout-reason" not in silent.headers
    reason = answer.headers["x-turnout-reason"]
    assert f"decode on {decode.id}: " in reason
    assert f"prefill on {prefill.id}: " in reason
    assert "too short to be worth moving" in short.headers["x-turnout-reason"]


async def test_a_decision_can_be_looked_up_afterwards(tmp_path: Path) -> None:
    """By the request's id: the workers that were compared and their figures, the time of each step, and the usage."""
    async with (
        mock_worker() as prefill,
        mock_worker() as decode,
        running_router(tmp_path, pair(prefill, decode, policy="LeastLoaded")) as r,
    ):
        asked = {"stream": True, "max_tokens": 9}
        await r.client.post(
            "/v1/chat/completions", json=chat(LONG, **asked), headers={"x-request-id": "my-1"}
        )
        account = (await r.admin.get("/admin/decisions/my-1")).json()
        listed = (await r.admin.get("/admin/decisions", params={"limit": 5})).json()["decisions"]
        missing = await r.admin.get("/admin/decisions/none")
        wrong = await r.admin.get("/admin/decisions", params={"limit": "many"})
    assert (account["status"], account["model"], account["path"]) == (200, MODEL, "/v1/chat/completions")
    assert account["usage"] == {
        "promptTokens": 7,
        "cachedTokens": None,
        "outputTokens": 6,
        "countedBy": "engine",
    }
    assert account["ending"] == "finished"
    assert account["estimated"] == {"promptTokens": 500, "outputTokens": 9}
    (step,) = account["steps"]
    assert (step["decode"], step["prefill"]) == (decode.id, prefill.id)
    assert [(c["backend"], c["role"], c["chosen"]) for c in step["candidates"]] == [
        (decode.id, "decode", True),
        (prefill.id, "prefill", True),
    ]
    assert step["candidates"][0]["figures"]["tokensInFlight"] == 0
    times = [step["afterSeconds"], account["prefilledAfterSeconds"], account["firstTokenAfterSeconds"]]
    assert times == sorted(times)
    assert times[-1] <= account["seconds"]
    assert [entry["id"] for entry in listed] == ["my-1"]
    assert missing.status_code == 404
    assert wrong.status_code == 400


async def test_failures_are_part_of_the_account(tmp_path: Path) -> None:
    """A worker that failed is named with what went wrong, before the choice that served."""
    async with (
        mock_worker(behavior="status", status=500) as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        reasons = set()
        for number in range(2):
            fields = {"x-request-id": f"n-{number}", "x-turnout-explain": "1"}
            answer = await r.client.post("/v1/chat/completions", json=chat(), headers=fields)
            account = (await r.admin.get(f"/admin/decisions/n-{number}")).json()
            kinds = [step["kind"] for step in account["steps"]]
            if len(kinds) == 3:
                assert kinds == ["chosen", "failed", "chosen"]
                assert (account["steps"][1]["backend"], account["steps"][1]["fault"]) == (bad.id, "status")
                assert account["steps"][2]["decode"] == good.id
                reasons.add(answer.headers["x-turnout-reason"])
    assert len(reasons) == 1
    assert f"decode on {bad.id} failed before (status)" in reasons.pop()


async def test_a_refusal_is_explained_too(tmp_path: Path) -> None:
    """Where every worker fails, the error carries the reason, and so does the account."""
    async with (
        mock_worker(behavior="status", status=500) as bad,
        running_router(tmp_path, config([("aggregated", bad.url)])) as r,
    ):
        answer = await r.client.post(
            "/v1/chat/completions", json=chat(), headers={"x-request-id": "x", "x-turnout-explain": "1"}
        )
        account = (await r.admin.get("/admin/decisions/x")).json()
    assert answer.status_code == account["status"] == 502
    assert "failed before (status)" in answer.headers["x-turnout-reason"]


def choice_among(count: int) -> WorkerPair:
    backends = [Backend(f"b{n}", "d", "h", n, "aggregated", "r", ()) for n in range(count)]
    choice = LoadChooser({}, 256).choose(backends, Prompt(1000), UNCONSTRAINED, 0.0)
    assert choice is not None
    return choice


def outcome(status: int) -> Outcome:
    return Outcome("finished", status, TokenUsage(1, 1, None, "engine"), 0.0, 1.0, None, 0.0, 0, None)


def decision(name: str) -> RouteDecision:
    return RouteDecision(
        id=name,
        path="/p",
        model="m",
        deployment="d",
        stream=False,
        prompt_tokens=1,
        expected_output_tokens=1,
        began=0.0,
    )


@pytest.mark.parametrize(("most", "figures", "kept"), [(10, 10**6, 10), (10**6, 100, 20), (10**6, 1, 1)])
def test_the_ring_is_bounded(most: int, figures: int, kept: int) -> None:
    """Neither many requests nor many backends make it grow: the oldest are forgotten first."""
    ring = Decisions(lambda: 0.0, lambda: 0.0, most=most, most_figures=figures)
    for number in range(200):
        one = decision(f"r{number}")
        ring.begin(one)
        ring.chosen(one, choice_among(5))
    assert len(ring) == kept
    assert ring.find("r199") is not None
    assert [entry["id"] for entry in ring.recent(2)] == ["r199", "r198"][:kept]
    assert ring.find("r0") is None


def test_of_one_id_the_last_request_is_found() -> None:
    """Clients may use an id twice; the figures of the forgotten request are not counted any more."""
    ring = Decisions(lambda: 0.0, lambda: 0.0, most_figures=12)
    for number in range(50):
        one = decision("same")
        one.ended(outcome(number))
        ring.begin(one)
        ring.chosen(one, choice_among(5))
    other = decision("other")
    ring.begin(other)
    ring.chosen(other, choice_among(5))
    found = ring.find("same")
    assert found is not None
    assert found["status"] == 49


def test_a_reason_fits_into_a_header() -> None:
    """Whatever a worker is called and however often it failed: ASCII, one line, at most 2,000 characters."""
    one = decision("r")
    backend = Backend("pöd\n" * 100, "d", "h", 1, "aggregated", "r", ())
    for _ in range(100):
        one.failed(0.0, "decode", backend, UpstreamError("reset", "x"))
    value = one.header()
    assert len(value) <= 2000
    assert value.isascii()
    assert b"\n" not in value
