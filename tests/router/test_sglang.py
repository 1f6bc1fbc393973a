"""SGLang's hand-off: both workers of a pair are sent the request at once, and a failure of one cancels the other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.router_running import (
    DEPLOYMENT,
    MODEL,
    Running,
    chat,
    eventually,
    eventually_async,
    running_router,
)
from support.router_sglang import SGLangWorker, sglang_workers
from turnout.routing import HealthPolicy
from turnout_router.settings import UpstreamLimits

if TYPE_CHECKING:
    from pathlib import Path

SOON = UpstreamLimits(health=HealthPolicy(first_seconds=0.05, longest_seconds=0.05, probe_seconds=5.0))


def fleet(workers: list[SGLangWorker], **more: Any) -> dict[str, Any]:
    backends = [{"role": one.role, "url": one.url, "bootstrapPort": one.bootstrap_port} for one in workers]
    deployment = {"name": DEPLOYMENT, "servedNames": [MODEL], "engine": "sglang", "backends": backends}
    return {"deployments": [deployment | more]}


async def decision(r: Running, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await r.admin.get(f"/admin/decisions/{name}")).json()
    return found


@pytest.mark.parametrize("policy", ["LeastLoaded", "PrefixAware"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_both_workers_meet_in_one_room(tmp_path: Path, policy: str, stream: bool) -> None:  # noqa: FBT001 - a parameter
    """However short the prompt; the client has the decode worker's answer, and none of its own bootstrap fields counts."""
    async with (
        sglang_workers("prefill", "decode") as (prefill, decode),
        running_router(tmp_path, fleet([prefill, decode], policy=policy)) as r,
    ):
        given = {"bootstrap_host": "1.1.1.1", "bootstrap_port": 1, "bootstrap_room": 1}
        answer = await r.client.post(
            "/v1/chat/completions",
            json=chat("short", stream=stream) | given,
            headers={"x-request-id": "one"},
        )
        assert answer.status_code == 200, answer.text
        assert "by decode" in answer.text
        assert "by prefill" not in answer.text
        assert answer.headers["x-turnout-backend"] == decode.id
        (one,), (other,) = prefill.received, decode.received
        assert one == other
        assert (one["bootstrap_host"], one["bootstrap_port"]) == (prefill.host, 9000)
        assert 0 <= one["bootstrap_room"] < 2**63
        account = await decision(r, "one")
        assert account["ending"] == "finished"
        assert account["usage"] | {"cachedTokens": None} == {
            "promptTokens": 7,
            "cachedTokens": None,
            "outputTokens": 3,
            "countedBy": "engine",
        }


async def test_several_choices_and_prompts_share_the_first_number_of_their_rooms(tmp_path: Path) -> None:
    """SGLang counts on from it; both workers get all of them."""
    async with (
        sglang_workers("prefill", "decode") as (prefill, decode),
        running_router(tmp_path, fleet([prefill, decode])) as r,
    ):
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", chat("Hi") | {"n": 2}),
            ("/v1/completions", {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 2}),
        ]
        for path, body in asked:
            assert (await r.client.post(path, json=body)).status_code == 200
        assert prefill.received == decode.received
        assert [one.get("n") for one in decode.received] == [2, None]
        assert all(isinstance(one["bootstrap_room"], int) for one in decode.received)


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("behavior", ["status", "full"])
async def test_a_worker_that_fails_is_replaced_in_a_new_room(
    tmp_path: Path, role: str, behavior: str
) -> None:
    """The other one, which waits for it, is cancelled; no client sees anything."""
    async with sglang_workers("prefill", "prefill", "decode", "decode") as workers:
        bad = next(one for one in workers if one.role == role)
        bad.behavior = behavior
        async with running_router(tmp_path, fleet(workers, policy="LeastLoaded")) as r:
            while not bad.received:
                answer = await r.client.post("/v1/chat/completions", json=chat("Hi", stream=True))
                assert answer.status_code == 200, answer.text
                assert "by decode" in answer.text
            waited = [one for one in workers if one.role != role]
            await eventually(lambda: sum(one.cancelled for one in waited) == 1)
            rooms = [one["bootstrap_room"] for worker in workers for one in worker.received]
            assert all(rooms.count(room) == 2 for room in rooms)


async def test_no_worker_left_is_an_error_of_the_api(tmp_path: Path) -> None:
    """Without prefill workers nothing is decoded; what needs no prefill has nowhere to go."""
    async with sglang_workers("prefill", "decode") as workers:
        prefill, decode = workers
        async with running_router(tmp_path, fleet([decode])) as r:
            assert (await r.chat("Hi")).status_code == 503
        async with running_router(tmp_path, fleet(workers), upstream=SOON) as r:
            answer = await r.client.post("/v1/embeddings", json={"model": MODEL, "input": "Hi"})
            assert answer.status_code == 400
            assert "not served by a model whose prefill and decode workers are separate" in answer.text
            prefill.behavior = "status"
            assert (await r.chat("Hi")).status_code in {502, 503}
        assert not decode.trials


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_refusal_of_either_worker_is_passed_on(tmp_path: Path, role: str) -> None:
    """In OpenAI's form, once, and held against neither."""
    async with sglang_workers("prefill", "decode") as workers:
        next(one for one in workers if one.role == role).behavior = "refuses"
        async with running_router(tmp_path, fleet(workers)) as r:
            answer = await r.chat("Hi")
            assert answer.status_code == 400
            assert (
                answer.json()["message"] == "too long"
            )  # an older form of vLLM's, which OpenAI's clients read
            await eventually(lambda: sum(one.cancelled for one in workers) == 1)
            assert [len(one.received) for one in workers] == [1, 1]
            groups = (await r.admin.get("/admin/fleet")).json()["deployments"]
            assert [one["failuresInARow"] for one in groups[DEPLOYMENT]] == [0, 0]


async def test_a_stream_that_breaks_ends_with_an_error(tmp_path: Path) -> None:
    """After the first token nothing is repeated, and the router has counted what came."""
    async with sglang_workers("prefill", "decode") as workers:
        workers[1].behavior = "breaks"
        async with running_router(tmp_path, fleet(workers)) as r:
            with pytest.raises(httpx.RemoteProtocolError):
                await r.client.post(
                    "/v1/chat/completions", json=chat("Hi", stream=True), headers={"x-request-id": "b"}
                )
            account = await decision(r, "b")
            assert (account["ending"], account["status"]) == ("broken", 502)
            assert account["usage"]["countedBy"] == "router"
            assert account["usage"]["outputTokens"] >= 1


async def test_a_client_that_leaves_cancels_both(tmp_path: Path) -> None:
    """Neither worker goes on."""
    async with sglang_workers("prefill", "decode") as workers:
        prefill, decode = workers
        prefill.rooms.arrived.clear()
        async with running_router(tmp_path, fleet(workers)) as r:
            decode.behavior = "endless"
            asking = asyncio.create_task(r.client.post("/v1/chat/completions", json=chat("Hi", stream=True)))
            await eventually(lambda: bool(decode.received and prefill.received))
            asking.cancel()
            await eventually(lambda: decode.cancelled == 1)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_repaired_worker_is_tried_alone(tmp_path: Path, role: str) -> None:
    """By the host that stands for no transfer; then it serves again."""
    async with sglang_workers("prefill", "decode") as workers:
        bad = next(one for one in workers if one.role == role)
        bad.behavior = "status"
        async with running_router(tmp_path, fleet(workers), upstream=SOON) as r:

            async def is_ejected() -> bool:
                await r.chat("Hi")
                groups = (await r.admin.get("/admin/fleet")).json()["deployments"]
                return any(one["ejected"] for one in groups[DEPLOYMENT])

            await eventually_async(is_ejected)
            await eventually(lambda: bad.trials > 0)
            bad.behavior = "ok"

            async def serves() -> bool:
                return (await r.chat("Hi")).status_code == 200

            await eventually_async(serves, 20)


async def test_what_a_worker_answers_is_known_after_a_client_has_left(tmp_path: Path) -> None:
    """The exception of a request that was cancelled is not taken for what stopped the parser in a later one."""
    async with sglang_workers("prefill", "decode") as workers:
        _, decode = workers
        async with running_router(tmp_path, fleet(workers)) as r:
            decode.behavior = "endless"
            asking = asyncio.create_task(r.client.post("/v1/chat/completions", json=chat("Hi", stream=True)))
            await eventually(lambda: bool(decode.received))
            asking.cancel()
            await eventually(lambda: decode.cancelled == 1)
            decode.behavior = "status"
            body, headers = chat("Hi"), {"x-request-id": "after"}
            answer = await r.client.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 502
            failed = [step for step in (await decision(r, "after"))["steps"] if step["kind"] == "failed"]
            assert [step["fault"] for step in failed] == ["status"]
