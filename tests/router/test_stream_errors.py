"""What vLLM says within a stream, with status 200: mistakes of the client, a full queue, an answer that it cuts short."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from support.router_mock_backend import mock_worker
from support.router_recording_worker import EVENTS, recording_worker
from support.router_running import DEPLOYMENT, LONG, MODEL, chat, config, running_router
from turnout_router.api.usage import StreamTap
from turnout_router.settings import UpstreamLimits

if TYPE_CHECKING:
    from pathlib import Path

    from support.router_running import Running

DONE = b"data: [DONE]\n\n"


def event(value: Any, name: str | None = None) -> bytes:
    head = b"" if name is None else b"event: %b\n" % name.encode()
    return head + b"data: " + orjson.dumps(value) + b"\n\n"


def error_event(code: int, message: str = "bad schema") -> bytes:
    """Return an error as vLLM 0.32 reports it at the beginning of a stream."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": code}
    return event({"error": error}) + DONE


def chunk(text: str = "", finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})


ROLE = event({"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})


async def health(r: Running) -> list[dict[str, Any]]:
    fleet: list[dict[str, Any]] = (await r.admin.get("/admin/fleet")).json()["deployments"][DEPLOYMENT]
    return fleet


async def stream(
    r: Running, path: str = "/v1/chat/completions", **more: Any
) -> tuple[int, bytes, httpx.Headers]:
    """Return status, body as far as it came, and head of a streamed request."""
    seen = b""
    body = chat(stream=True, **more) if "input" not in more else {"model": MODEL, "stream": True, **more}
    async with r.client.stream("POST", path, json=body) as answer:
        try:
            async for data in answer.aiter_raw():
                seen += data
        except httpx.RemoteProtocolError:
            pass
        return answer.status_code, seen, answer.headers


@pytest.mark.parametrize("before", [b"", b": keep-alive\n\n", ROLE], ids=["first", "comment", "role"])
@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_clients_mistake_within_a_stream_is_its_status(
    tmp_path: Path, before: bytes, status: int
) -> None:
    """The client gets the status and the worker's error object; no worker is asked again, and none is blamed."""
    async with (
        recording_worker(answer=before + error_event(status), type=EVENTS) as one,
        recording_worker(answer=before + error_event(status), type=EVENTS) as other,
        running_router(tmp_path, config([("aggregated", one.url), ("aggregated", other.url)])) as r,
    ):
        for _ in range(4):
            got, body, head = await stream(r)
            assert got == status
            assert orjson.loads(body)["error"]["message"] == "bad schema"
            assert orjson.loads(body)["error"]["code"] == status
            assert head["content-type"] == "application/json"
        workers = await health(r)
        assert await r.metric("turnout_router_retries_total", deployment=DEPLOYMENT) == 0
    assert len(one.bodies) + len(other.bodies) == 4
    assert not any(worker["failuresInARow"] for worker in workers)


async def test_a_mistake_in_a_message_stream_is_anthropics_error(tmp_path: Path) -> None:
    """The Messages API of vLLM says the code within the text of an internal error alone."""
    payload = (
        "1 validation error ... input_value={'error': {'message': 'The...one, 'code': 400}}, input_type=dict]"
    )
    first = event({"type": "error", "error": {"type": "internal_error", "message": payload}}, "error")
    async with (
        recording_worker(answer=first, type=EVENTS) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        status, body, _ = await stream(r, "/v1/messages", max_tokens=3)
        workers = await health(r)
    assert status == 400
    assert orjson.loads(body)["type"] == "error"
    assert workers[0]["failuresInARow"] == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_full_queue_within_a_stream_is_overload(tmp_path: Path, path: str) -> None:
    """503 with Retry-After, the remaining worker takes it first, and no worker's health suffers."""
    chats = error_event(503, "The engine is currently busy")
    messages = event(
        {"type": "error", "error": {"type": "internal_error", "message": "... 'code': 503}}"}}, "error"
    )
    full = chats if path.endswith("completions") else messages
    async with (
        recording_worker(answer=full, type=EVENTS) as one,
        recording_worker(answer=full, type=EVENTS) as other,
        running_router(tmp_path, config([("aggregated", one.url), ("aggregated", other.url)])) as r,
    ):
        for _ in range(4):
            status, _, head = await stream(r, path, max_tokens=3)
            assert status == 503
            assert "retry-after" in head
        workers = await health(r)
    assert len(one.bodies) >= 4
    assert len(other.bodies) >= 4
    assert not any(worker["failuresInARow"] for worker in workers)


@pytest.mark.parametrize("reported", ["status", "stream"])
async def test_a_full_decode_worker_costs_no_second_prefill(tmp_path: Path, reported: str) -> None:
    """The next decode worker takes over the cache that was computed; with none left, no prefill is begun."""
    full: dict[str, Any] = (
        {"status": 503} if reported == "status" else {"answer": error_event(503), "type": EVENTS}
    )
    async with (
        mock_worker() as prefill,
        recording_worker(**full) as one,
        mock_worker() as good,
        running_router(
            tmp_path,
            config(
                [("prefill", prefill.url), ("decode", one.url), ("decode", good.url)], policy="LeastLoaded"
            ),
        ) as r,
    ):
        for _ in range(6):
            assert (await r.chat(LONG, stream=True)).status_code == 200
        assert one.bodies
        assert len(good.received) == 6
        assert len(prefill.received) == 6
        assert all(request.body["kv_transfer_params"] for request in good.received)
        local = await r.metric("turnout_router_local_prefills_total", deployment=DEPLOYMENT)
        assert local == 0
        good.behavior, good.status = "status", 503
        before = len(prefill.received)
        answer = await r.chat(LONG, stream=True)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert len(prefill.received) == before + 1
        workers = await health(r)
    assert not any(worker["failuresInARow"] for worker in workers)


async def test_a_cache_outlives_a_decode_worker_that_is_gone(tmp_path: Path) -> None:
    """A worker that refuses the connection has not fetched it either."""
    async with (
        mock_worker() as prefill,
        mock_worker() as gone,
        mock_worker() as good,
    ):
        fleet = config(
            [
                ("prefill", prefill.url),
                ("decode", gone.url.replace(str(gone.port), "1")),
                ("decode", good.url),
            ],
            policy="LeastLoaded",
        )
        async with running_router(tmp_path, fleet) as r:
            for _ in range(3):
                assert (await r.chat(LONG)).status_code == 200
    assert len(prefill.received) == len(good.received) == 3


ABORTED: dict[str, tuple[bytes, bytes]] = {
    "/v1/chat/completions": (
        ROLE + chunk("half") + chunk(finish="abort") + DONE,
        orjson.dumps(
            {
                "choices": [{"message": {"content": "half"}, "finish_reason": "abort"}],
                "usage": {"prompt_tokens": 3},
            }
        ),
    ),
    "/v1/messages": (
        event({"type": "message_start", "message": {"usage": {"input_tokens": 3}}}, "message_start")
        + event({"type": "content_block_delta", "delta": {"text": "half"}}, "content_block_delta")
        + event(
            {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 2}},
            "message_delta",
        )
        + event({"type": "message_stop"}, "message_stop"),
        b"",
    ),
}


@pytest.mark.parametrize("path", ABORTED)
async def test_a_stream_that_vllm_aborts_is_broken_and_never_good(tmp_path: Path, path: str) -> None:
    """What has been sent cannot be taken back: an error event, no end, and no good request."""
    async with (
        recording_worker(answer=ABORTED[path][0], type=EVENTS) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        status, seen, _ = await stream(r, path, max_tokens=9)
        good = await r.metric("turnout_router_good_total", deployment=DEPLOYMENT)
        finished = await r.metric("turnout_router_finished_total", deployment=DEPLOYMENT)
    assert status == 200
    assert b"half" in seen
    assert b"error" in seen.split(b"\n\n")[-2]
    assert b"[DONE]" not in seen
    assert b"message_stop" not in seen
    assert b'"abort"' not in seen
    assert (good, finished) == (0, 1)


async def test_an_aborted_answer_is_asked_for_again(tmp_path: Path) -> None:
    """200 with `abort` is no answer where nothing has been sent: another worker gives a whole one."""
    whole = ABORTED["/v1/chat/completions"][1].replace(b"abort", b"stop").replace(b"half", b"all of it")
    async with (
        recording_worker(answer=ABORTED["/v1/chat/completions"][1]) as bad,
        recording_worker(answer=whole) as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        answers = [await r.chat() for _ in range(4)]
    assert bad.bodies
    assert {a.json()["choices"][0]["message"]["content"] for a in answers} == {"all of it"}


async def test_an_abort_that_is_only_text_is_an_answer(tmp_path: Path) -> None:
    """A model may write the word, in quotes or in a tool's arguments."""
    text = 'say "abort" {"finish_reason":"abort"}'
    whole = orjson.dumps({"choices": [{"message": {"content": text, "x": "abort"}, "finish_reason": "stop"}]})
    streamed = (
        ROLE
        + chunk(text)
        + event({"choices": [{"index": 0, "delta": {"x": "abort"}}]})
        + chunk(finish="stop")
    )
    async with (
        recording_worker(answer=whole) as one,
        recording_worker(answer=streamed + DONE, type=EVENTS) as other,
    ):
        async with running_router(tmp_path, config([("aggregated", one.url)])) as r:
            assert (await r.chat()).content == whole
        async with running_router(tmp_path, config([("aggregated", other.url)])) as r:
            assert (await stream(r))[1] == streamed + DONE


async def test_the_same_5xx_from_two_workers_is_the_requests_fault(tmp_path: Path) -> None:
    """A poisonous request, sent again and again, takes no worker out of service."""
    async with (
        mock_worker(behavior="status") as one,
        mock_worker(behavior="status") as other,
        running_router(tmp_path, config([("aggregated", one.url), ("aggregated", other.url)])) as r,
    ):
        for _ in range(6):
            assert (await r.chat()).status_code == 502
        workers = await health(r)
    assert one.received
    assert other.received
    assert not any(worker["ejected"] or worker["failuresInARow"] for worker in workers)


async def test_a_stream_that_breaks_off_on_two_workers_is_the_requests_fault(tmp_path: Path) -> None:
    """So vLLM refuses what it should not be asked for in its Responses API: these two events, and the connection's end."""
    begun = event({"type": "response.created", "response": {}}, "response.created") + event(
        {"type": "response.in_progress", "response": {}}, "response.in_progress"
    )
    async with (
        recording_worker(answer=begun, type=EVENTS, cut=True) as one,
        recording_worker(answer=begun, type=EVENTS, cut=True) as other,
        running_router(tmp_path, config([("aggregated", one.url), ("aggregated", other.url)])) as r,
    ):
        for _ in range(5):
            status, seen, _ = await stream(r, "/v1/responses", input="hi")
            assert status == 502
            assert b"response.created" not in seen
        workers = await health(r)
    assert one.bodies
    assert other.bodies
    assert not any(worker["ejected"] or worker["failuresInARow"] for worker in workers)


async def test_a_worker_that_alone_answers_5xx_is_ejected(tmp_path: Path) -> None:
    """Where another worker answers the same request well, the first one is at fault."""
    async with (
        mock_worker(behavior="status") as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        for number in range(12):
            assert (await r.chat(f"{number}", stream=number % 2 == 0)).status_code == 200
    assert len(bad.received) == 3


async def test_an_ejected_prefill_worker_costs_no_time(tmp_path: Path) -> None:
    """Only the requests that found it out wait for it; then decode workers compute prompts at once."""
    async with (
        mock_worker(behavior="hang") as prefill,
        mock_worker() as one,
        mock_worker() as other,
    ):
        fleet = config(
            [("prefill", prefill.url), ("decode", one.url), ("decode", other.url)], policy="LeastLoaded"
        )
        async with running_router(tmp_path, fleet, upstream=UpstreamLimits(prefill_seconds=0.3)) as r:
            for _ in range(12):
                assert (await r.chat(LONG)).status_code == 200
            ejected = await r.metric(
                "turnout_router_local_prefills_total", deployment=DEPLOYMENT, reason="no_prefill"
            )
    assert len(prefill.received) == 3
    assert ejected == 9


@pytest.mark.parametrize("size", [100_000, 3_000_000])
async def test_a_long_error_is_cut_and_held_against_no_worker(tmp_path: Path, size: int) -> None:
    """The client gets its status and the beginning of the text; nothing is repeated."""
    payload = orjson.dumps({"error": {"message": "too long: " + "x" * size, "type": "BadRequestError"}})
    async with (
        recording_worker(answer=payload, status=400) as one,
        recording_worker(answer=payload, status=400) as other,
        running_router(tmp_path, config([("aggregated", one.url), ("aggregated", other.url)])) as r,
    ):
        for _ in range(4):
            answer = await r.chat()
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith("too long: xxx")
        workers = await health(r)
    assert len(one.bodies) + len(other.bodies) == 4
    assert not any(worker["failuresInARow"] for worker in workers)


async def test_a_large_event_passes_and_is_held_against_no_worker(tmp_path: Path) -> None:
    """Its response.created repeats `instructions`: a long prompt makes an event above the bound."""
    stream_ = (
        event({"type": "response.created", "response": {"instructions": "x" * 3_000_000}}, "response.created")
        + event({"type": "response.output_text.delta", "delta": "tok"}, "response.output_text.delta")
        + event(
            {"type": "response.completed", "response": {"usage": {"input_tokens": 7, "output_tokens": 1}}},
            "response.completed",
        )
    )
    async with (
        recording_worker(answer=stream_, type=EVENTS) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        for _ in range(3):
            status, seen, _ = await stream(r, "/v1/responses", input="hi")
            assert status == 200
            assert seen == stream_
        workers = await health(r)
        assert await r.metric("turnout_router_output_tokens_total", deployment=DEPLOYMENT) == 3
    assert workers[0]["failuresInARow"] == 0


async def test_a_large_prefill_answer_is_held_against_no_worker(tmp_path: Path) -> None:
    """It repeats what the client sent; beyond that the prompt is computed where it is decoded."""
    async with (
        recording_worker(
            prefilled=b'{"kv_transfer_params":{"a":1},"x":"' + b"x" * 5_000_000 + b'"}'
        ) as prefill,
        mock_worker() as decode,
        running_router(
            tmp_path, config([("prefill", prefill.url), ("decode", decode.url)], policy="LeastLoaded")
        ) as r,
    ):
        for _ in range(4):
            assert (await r.chat(LONG)).status_code == 200
        workers = await health(r)
    assert len(prefill.bodies) == 4
    assert not any(worker["failuresInARow"] for worker in workers)


ENDS = {
    "error after the end": ROLE + chunk("t") + chunk(finish="stop") + DONE + event({"error": {"code": 500}}),
    "more after the end": ROLE + chunk("t") + chunk(finish="stop") + DONE + chunk("more"),
}


@pytest.mark.parametrize("sent", ENDS.values(), ids=ENDS)
async def test_what_follows_the_last_event_is_dropped(tmp_path: Path, sent: bytes) -> None:
    """The answer was whole: the client gets it, and nothing behind it."""
    async with (
        recording_worker(answer=sent, type=EVENTS) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        status, seen, _ = await stream(r)
        good = await r.metric("turnout_router_good_total", deployment=DEPLOYMENT)
    assert status == 200
    assert seen.endswith(DONE)
    assert seen.count(b"[DONE]") == 1
    assert b"error" not in seen
    assert good == 1


async def test_a_connection_lost_after_the_last_event_changes_nothing(tmp_path: Path) -> None:
    """The client has all of the answer, and is not sent an error behind its end."""
    async with (
        recording_worker(answer=ROLE + chunk("t") + DONE, type=EVENTS, cut=True) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        status, seen, _ = await stream(r)
        good = await r.metric("turnout_router_good_total", deployment=DEPLOYMENT)
    assert status == 200
    assert seen.endswith(DONE)
    assert good == 1


async def test_the_end_within_a_text_is_no_end(tmp_path: Path) -> None:
    """A model that writes `[DONE]` has not finished its stream."""
    cut = ROLE + chunk("first") + event({"choices": [{"index": 0, "delta": {"content": "data: [DONE]"}}]})
    async with (
        recording_worker(answer=cut, type=EVENTS) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        _, seen, _ = await stream(r)
        good = await r.metric("turnout_router_good_total", deployment=DEPLOYMENT)
    assert b'"stream_broken"' in seen
    assert good == 0


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"max_tokens": 0}, "max_tokens"),
    ("/v1/chat/completions", {"max_tokens": -1}, "max_tokens"),
    ("/v1/chat/completions", {"max_tokens": "x"}, "max_tokens"),
    ("/v1/chat/completions", {"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ("/v1/chat/completions", {"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
    ("/v1/chat/completions", {"stream": True, "stream_options": {"include_usage": "?"}}, "stream_options"),
    ("/v1/completions", {"prompt": LONG, "min_tokens": 17}, "min_tokens"),
    ("/v1/chat/completions", {"min_tokens": -1}, "min_tokens"),
    ("/v1/chat/completions", {"min_tokens": "a"}, "min_tokens"),
    ("/v1/messages", {}, "max_tokens"),
    ("/v1/messages", {"max_tokens": 0}, "max_tokens"),
    ("/v1/responses", {"input": LONG, "max_output_tokens": 0}, "max_output_tokens"),
]


@pytest.mark.parametrize(("path", "more", "param"), REFUSED)
async def test_what_only_decode_would_refuse_costs_no_prefill(
    tmp_path: Path, path: str, more: dict[str, Any], param: str
) -> None:
    """The prefill worker is asked for one token and would never see the mistake: the router names it first."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": LONG}], **more}
    async with (
        recording_worker() as prefill,
        recording_worker() as decode,
        running_router(
            tmp_path, config([("prefill", prefill.url), ("decode", decode.url)], policy="LeastLoaded")
        ) as r,
    ):
        answer = await r.client.post(path, json=body)
    assert answer.status_code == 400
    assert param in answer.text
    assert not prefill.bodies
    assert not decode.bodies


async def test_prefill_sees_stream_options_that_it_can_refuse(tmp_path: Path) -> None:
    """Without `stream` they are a mistake, which the prefill worker names before it computes anything."""
    async with (
        recording_worker() as prefill,
        recording_worker() as decode,
        running_router(
            tmp_path, config([("prefill", prefill.url), ("decode", decode.url)], policy="LeastLoaded")
        ) as r,
    ):
        await r.chat(LONG, stream_options={"include_usage": True})
        await r.chat(LONG, stream_options={"include_usage": True}, stream=True)
    assert orjson.loads(prefill.bodies[0])["stream_options"] == {"include_usage": True}
    assert "stream_options" not in orjson.loads(prefill.bodies[1])


async def test_continuous_usage_is_not_asked_for_on_the_clients_behalf(tmp_path: Path) -> None:
    """Without `include_usage` vLLM sends no usage at all: the router's own request must not put it into every chunk."""
    async with (
        recording_worker(answer=DONE, type=EVENTS) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        await stream(r, stream_options={"continuous_usage_stats": True})
        await stream(r, stream_options={"continuous_usage_stats": True, "include_usage": True})
    first, second = (orjson.loads(body)["stream_options"] for body in worker.bodies)
    assert first == {"include_usage": True}
    assert second == {"continuous_usage_stats": True, "include_usage": True}


@pytest.mark.parametrize(
    ("path", "payload", "message"),
    [
        ("/v1/embeddings", b'{"detail":"Not Found"}', "Not Found"),
        ("/v1/messages", b'{"error":{"message":"no","type":"x","code":400}}', "no"),
        (
            "/v1/chat/completions",
            b'{"detail":[{"loc":["body","max_tokens"],"msg":"not a number","type":"int"}]}',
            "body.max_tokens: not a number",
        ),
        ("/v1/chat/completions", b"<html>no</html>", "<html>no</html>"),
    ],
)
async def test_refusals_have_the_form_of_the_api(
    tmp_path: Path, path: str, payload: bytes, message: str
) -> None:
    """FastAPI's `detail`, OpenAI's object on Anthropic's path, and plain text become the API's own error."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "input": "hi", "max_tokens": 1}
    async with (
        recording_worker(answer=payload, status=404, type="text/html") as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        answer = await r.client.post(path, json=body)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["message"] == message
    assert (answer.json().get("type") == "error") is (path == "/v1/messages")


@pytest.mark.parametrize(("status", "expected"), [(429, 503), (302, 502), (201, 502)])
async def test_statuses_that_are_no_answers_are_tried_elsewhere(
    tmp_path: Path, status: int, expected: int
) -> None:
    """A worker's 429 means that it is full, and a redirection leads nowhere."""
    async with (
        mock_worker(behavior="status", status=status) as bad,
        mock_worker() as good,
    ):
        async with running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r:
            assert {(await r.chat()).status_code for _ in range(4)} == {200}
        async with running_router(tmp_path, config([("aggregated", bad.url)])) as r:
            assert (await r.chat()).status_code == expected


async def test_a_compressed_answer_is_replaced(tmp_path: Path) -> None:
    """The router asks for no coding and could not read usage in it; without its field a client could not read it either."""
    async with (
        recording_worker(type="application/json\r\ncontent-encoding: gzip", answer=b"\x1f\x8bzip") as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        answers = [await r.chat() for _ in range(4)]
    assert bad.bodies
    assert {a.status_code for a in answers} == {200}
    assert all(a.json()["choices"] for a in answers)


async def test_prefill_workers_that_fail_alike_are_blamed_where_the_request_was_served(
    tmp_path: Path,
) -> None:
    """Both answer 500 to everything; a decode worker serves the requests, so these are not at fault."""
    async with (
        mock_worker(behavior="status") as one,
        mock_worker(behavior="status") as other,
        mock_worker() as decode,
        running_router(
            tmp_path,
            config(
                [("prefill", one.url), ("prefill", other.url), ("decode", decode.url)], policy="LeastLoaded"
            ),
        ) as r,
    ):
        for number in range(8):
            assert (await r.chat(LONG, stream=number % 2 == 0)).status_code == 200
    assert len(one.received) == len(other.received) == 3


@pytest.mark.parametrize(
    "dribbled",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b": ping\n\n" * 5000,
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + ROLE * 5000,
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + b" " * 50_000,
        b"HTTP/1.1 400 No\r\ncontent-type: application/json\r\n\r\n" + b" " * 50_000,
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: " + b"x" * 50_000,
    ],
    ids=["comments", "roles", "an answer that is no stream", "an error", "an event without end"],
)
async def test_what_brings_the_client_nothing_renews_no_deadline(tmp_path: Path, dribbled: bytes) -> None:
    """A worker that keeps sending has not begun before something has reached the client."""
    end = dribbled.index(b"\r\n\r\n") + 4
    limits = UpstreamLimits(first_byte_seconds=0.4, stream_idle_seconds=0.4)
    async with (
        recording_worker(dribble=(dribbled[:end], dribbled[end:])) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)]), upstream=limits) as r,
        asyncio.timeout(20),
    ):
        status, _, _ = await stream(r)
    assert status == (502 if b"200 OK\r\ncontent-type: application/json" in dribbled else 504)


@pytest.mark.parametrize("form", ["whole", "streamed"])
@pytest.mark.parametrize(
    "payload",
    [b"", b"<html>", b"null", b"[]", b'{"choices":[', b"\0\0", b'{"error":{"message":"full","code":503}}'],
)
async def test_a_200_that_is_no_answer_is_tried_elsewhere(tmp_path: Path, payload: bytes, form: str) -> None:
    """The client gets another worker's answer, not text that its library cannot read."""
    streamed = form == "streamed"
    async with (
        recording_worker(answer=payload) as bad,
        mock_worker() as good,
        running_router(tmp_path, config([("aggregated", bad.url), ("aggregated", good.url)])) as r,
    ):
        answers = [await r.chat(stream=streamed) for _ in range(4)]
    assert bad.bodies
    assert {a.status_code for a in answers} == {200}
    assert all(a.content.endswith(DONE) if streamed else a.json()["choices"] for a in answers)


CUT = [
    ("/v1/chat/completions", {"choices": [{"finish_reason": "error"}]}),
    ("/v1/chat/completions", {"n": 2, "choices": [{"finish_reason": "abort"}, {"finish_reason": "stop"}]}),
    ("/v1/messages", {"content": [], "stop_reason": None, "usage": {}}),
    ("/v1/responses", {"status": "failed", "output": []}),
    ("/v1/responses", {"status": "in_progress", "output": []}),
    ("/v1/responses", {"status": "cancelled", "output": []}),
]


@pytest.mark.parametrize(("path", "payload"), CUT)
async def test_whole_answers_that_say_they_are_cut_are_never_passed_on(
    tmp_path: Path, path: str, payload: dict[str, Any]
) -> None:
    """In each API's own words; without another worker it is the worker's failure."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "input": "hi", "max_tokens": 9}
    async with (
        recording_worker(answer=orjson.dumps(payload)) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        answer = await r.client.post(path, json=body | ({"n": 2} if "n" in payload else {}))
        good = await r.metric("turnout_router_good_total", deployment=DEPLOYMENT)
    assert answer.status_code == 502
    assert good == 0


@pytest.mark.parametrize("code", ["400", 400.0, 400])
async def test_a_code_is_read_however_it_is_written(tmp_path: Path, code: Any) -> None:
    """As a number or as text."""
    payload = event({"error": {"message": "m", "code": code}}) + DONE
    async with (
        recording_worker(answer=payload, type=EVENTS) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        assert (await stream(r))[0] == 400
    assert len(worker.bodies) == 1


def test_plain_chunks_do_not_hide_what_matters() -> None:
    """After many chunks that look alike: usage, an error, an abort and the end are seen, alone or between others."""
    plain = b"".join(chunk(f"token {n}") for n in range(50))
    usage = event({"id": "c", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 50}})
    for tail, whole in (
        (chunk(finish="stop") + usage + DONE, True),
        (chunk(finish="abort") + usage + DONE, False),
        (chunk("x") + error_event(500), False),
        (event({"choices": [], "error": {"message": "m"}}) + DONE, False),
        (event({"choices": [{"index": 0, "finish_reason": None}], "error": {"message": "m"}}), False),
    ):
        for size in (7, 200, 100_000):
            tap = StreamTap(drop_usage=True, max_event_bytes=1 << 20)
            sent = ROLE + plain + tail
            cuts = [sent[at : at + size] for at in range(0, len(sent), size)]
            if size == 200:
                cuts = [part + b"\n\n" for part in sent.split(b"\n\n") if part]
            for part in cuts:
                tap.feed(part, 1.0)
                if tap.over:
                    break
            assert tap.done is whole
            assert (tap.failure is not None or tap.aborted) is not whole
            assert tap.output_tokens == (50 if whole else 0)
