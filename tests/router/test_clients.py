"""Clients that leave, read slowly, send garbage or too much, take too long, or ask for what does not exist."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from support.router_mock_backend import mock_worker
from support.router_running import (
    DEPLOYMENT,
    LONG,
    MODEL,
    Running,
    chat,
    config,
    eventually,
    eventually_async,
    pair,
    running_router,
)
from turnout_router.settings import ClientLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.router_mock_backend import MockWorker


@pytest.fixture
async def worker() -> AsyncIterator[MockWorker]:
    async with mock_worker() as running:
        yield running


@pytest.fixture
async def r(tmp_path: Path, worker: MockWorker) -> AsyncIterator[Running]:
    limits = ClientLimits(
        head_seconds=0.5,
        body_seconds=0.5,
        idle_seconds=2,
        body_bytes=4096,
        head_bytes=4096,
        target_bytes=1024,
    )
    async with running_router(tmp_path, config([("aggregated", worker.url)]), client=limits) as running:
        yield running


def post(body: bytes, *fields: bytes) -> bytes:
    head = [b"POST /v1/chat/completions HTTP/1.1", b"host: x", b"content-length: %d" % len(body), *fields]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


async def raw(r: Running, data: bytes, *, pause: float = 0.0, rest: bytes = b"") -> bytes:
    """Send *data*, wait, send *rest*, and return all that comes until the router closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", r.router.port)
    try:
        writer.write(data)
        await asyncio.sleep(pause)
        writer.write(rest)
        return await asyncio.wait_for(reader.read(), 15)
    finally:
        writer.close()


def status_and_error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)["error"]["message"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_client_that_leaves_before_the_first_token_frees_the_worker(
    tmp_path: Path, role: str
) -> None:
    """Whichever worker is at work learns at once that the client has left."""
    async with mock_worker() as prefill, mock_worker() as decode:
        hanging = prefill if role == "prefill" else decode
        hanging.behavior = "hang"
        async with running_router(tmp_path, pair(prefill, decode)) as r:
            asking = asyncio.create_task(r.chat(LONG, stream=True))
            await eventually(lambda: hanging.received)
            asking.cancel()
            await eventually(lambda: hanging.left == 1)
            assert await r.metric("turnout_router_requests_total", deployment=DEPLOYMENT, code="499") == 1
            assert await r.metric("turnout_router_in_flight", deployment=DEPLOYMENT) == 0
            assert await r.metric("turnout_router_finished_total", deployment=DEPLOYMENT) == 0


async def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_the_worker(tmp_path: Path) -> None:
    """The worker stops generating."""
    async with (
        mock_worker(behavior="endless", pause_seconds=0.01) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        async with r.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
            async for _ in answer.aiter_bytes():
                break
        await eventually(lambda: worker.running == 0)


async def test_a_client_that_does_not_read_holds_the_worker_back(tmp_path: Path) -> None:
    """What lies between a fast worker and a client that reads nothing is bounded; in the end the client is dropped."""
    async with (
        mock_worker(behavior="endless", piece="x" * 8192) as worker,
        running_router(
            tmp_path, config([("aggregated", worker.url)]), client=ClientLimits(stall_seconds=1.5)
        ) as r,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", r.router.port, limit=1024)
        writer.write(post(json.dumps(chat(stream=True)).encode()))
        await reader.read(10)
        before = -1

        async def at_rest() -> bool:
            nonlocal before
            before, now = worker.sent_bytes, worker.sent_bytes
            await asyncio.sleep(0.3)
            return now == worker.sent_bytes

        await eventually_async(at_rest)
        assert worker.sent_bytes < 32 * 1024 * 1024
        await eventually(lambda: worker.running == 0, 8)
        writer.close()


async def test_a_client_that_reads_again_gets_all_of_it(tmp_path: Path) -> None:
    """Holding back loses nothing."""
    async with (
        mock_worker(tokens=3000, piece="z" * 4096) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        total = 0
        async with r.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
            await asyncio.sleep(0.5)
            async for data in answer.aiter_bytes():
                total += data.count(b"z")
        again = await r.chat()
    assert total == 3000 * 4096
    assert again.status_code == 200


async def test_pipelined_requests_are_answered_in_order(r: Running) -> None:
    """Requests that come early wait for their turn."""
    first = post(json.dumps(chat("one")).encode())
    second = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
    third = b"GET /v1/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await raw(r, first + second + third)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"404"]
    assert answer.index(b"chat.completion") < answer.index(b'"object":"list"') < answer.index(b"Invalid URL")


BAD_BODIES = {
    "no JSON": (b"{", 400, "could not parse"),
    "no object": (b"[1]", 400, "must be a JSON object"),
    "null": (b"null", 400, "must be a JSON object"),
    "empty": (b"", 400, "empty"),
    "not a number": (b'{"model":"m","messages":[{}],"temperature":NaN}', 400, "could not parse"),
    "too deep": (b'{"model":' + b"[" * 2000, 400, "could not parse"),
    "too deep to pass on": (
        b'{"model":"tiny-1b","messages":[{}],"metadata":%b%b}' % (b"[" * 500, b"]" * 500),
        400,
        "nested too deeply",
    ),
    "not UTF-8": (b'{"model":"\xff"}', 400, "could not parse"),
    "no model": (b'{"messages":[{}]}', 400, "model"),
    "model no text": (b'{"model":5,"messages":[{}]}', 400, "model"),
    "model too long": (b'{"model":"%b","messages":[{}]}' % (b"m" * 300), 400, "longer"),
    "no messages": (b'{"model":"tiny-1b"}', 400, "messages"),
    "messages no list": (b'{"model":"tiny-1b","messages":{}}', 400, "messages"),
    "stream no bool": (b'{"model":"tiny-1b","messages":[{}],"stream":"yes"}', 400, "stream"),
    "options no object": (b'{"model":"tiny-1b","messages":[{}],"stream_options":1}', 400, "stream_options"),
    "unknown model": (b'{"model":"other","messages":[{}]}', 404, "does not exist"),
    "too large": (b" " * 5000, 413, "too large"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
async def test_a_bad_body_is_refused_with_the_reason(r: Running, worker: MockWorker, case: str) -> None:
    """OpenAI's error object, the right status, and the next request is served."""
    body, status, reason = BAD_BODIES[case]
    answer = await r.client.post("/v1/chat/completions", content=body)
    assert answer.status_code == status
    assert reason in answer.json()["error"]["message"]
    assert not worker.received
    assert (await r.chat()).status_code == 200


BAD_HTTP = {
    "two lengths": (post(b"{}", b"content-length: 2"), 400),
    "length and chunks": (post(b"{}", b"transfer-encoding: chunked"), 400),
    "a NUL": (b"GET /v1/models HTTP/1.1\r\nhost: a\0b\r\n\r\n", 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", 400),
    "unknown transfer encoding": (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        501,
    ),
    "long target": (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    "large field": (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 5000 + b"\r\n\r\n", 431),
    "many fields": (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
    "endless field": (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 9000, 431),
    "announced too large": (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999\r\n\r\n",
        413,
    ),
    "head dribbled": (b"GET / HTTP/1.1\r\nhost: x\r\na: b", 408),
    "body dribbled": (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{", 408),
}


@pytest.mark.parametrize("case", BAD_HTTP)
async def test_bad_http_is_refused_and_the_connection_closed(r: Running, case: str) -> None:
    """What follows a message whose end is unknown is never taken for a request."""
    data, status = BAD_HTTP[case]
    answer = await raw(r, data)
    assert status_and_error(answer)[0] == status
    assert answer.count(b"\r\nconnection: close\r\n") == 1


async def test_a_large_body_sent_at_once_still_gets_its_413(r: Running) -> None:
    """The answer is not lost to a reset while the client is still sending."""
    answer = await raw(r, post(b" " * 400_000))
    assert status_and_error(answer)[0] == 413


async def test_an_idle_connection_is_closed_quietly(r: Running) -> None:
    """Nothing asked, nothing answered."""
    assert await raw(r, b"") == b""


async def test_expect_continue_is_answered_before_the_body(r: Running) -> None:
    """Curl waits for it with large bodies."""
    body = json.dumps(chat()).encode()
    request = post(body, b"expect: 100-continue", b"connection: close")
    answer = await raw(r, request[: -len(body)], pause=0.1, rest=body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_http_1_0_gets_an_answer_that_it_understands(r: Running) -> None:
    """No chunks, and the end of the connection ends the stream."""
    request = post(json.dumps(chat(stream=True)).encode()).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    answer = await raw(r, request)
    assert b"transfer-encoding" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")


async def test_a_chunked_request_body_is_understood(r: Running) -> None:
    """Clients that do not know their length beforehand are served."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in json.dumps(chat()).encode().split(b" "):
            yield piece

    assert (await r.client.post("/v1/chat/completions", content=pieces())).status_code == 200


async def test_a_post_without_a_body_is_asked_to_send_one(r: Running) -> None:
    """411: there is neither a length nor chunks."""
    answer = await raw(r, b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert status_and_error(answer)[0] == 411


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/healthz",
        "/admin/fleet",
        "/pause",
        "/v1/../metrics",
        "/v1%2f..%2fmetrics",
        "//v1/models",
    ],
)
async def test_nothing_else_is_reachable(r: Running, worker: MockWorker, path: str) -> None:
    """No spelling of a path leads to a worker's own endpoints or the router's admin port."""
    answer = await raw(r, b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path.encode())
    assert status_and_error(answer)[0] == 404
    assert not worker.received


async def test_methods_and_models(r: Running) -> None:
    """405 names what is allowed, HEAD has no body, OPTIONS answers, models are listed and looked up."""
    refused = await r.client.get("/v1/chat/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST, OPTIONS")
    assert (await r.client.options("/v1/models")).status_code == 204
    head = await r.client.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    listed = (await r.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [MODEL]
    assert (await r.client.get(f"/v1/models/{DEPLOYMENT}")).json()["id"] == DEPLOYMENT
    assert (await r.client.get("/v1/models/other")).status_code == 404
