"""What is refused before it is complete is refused in the words of the API that was asked, once that is known."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from support.router_mock_backend import mock_worker
from support.router_running import config, running_router
from turnout_router.settings import ClientLimits

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = ClientLimits(head_bytes=2048, body_bytes=1000, head_seconds=0.5, body_seconds=0.5)
TOO_LARGE = b"content-length: 99999\r\n\r\n"
ENDLESS = b"a: " + b"b" * 5000
SLOW = b"content-length: 10\r\n\r\n{"


async def refused(port: int, data: bytes) -> tuple[int, dict[str, Any]]:
    """Send *data* and return status and body of the last answer, after which the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    payload = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = payload[payload.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("start", "rest", "status", "kind"),
    [
        (b"POST /v1/messages HTTP/1.1", TOO_LARGE, 413, "request_too_large"),
        (b"POST /v1/messages HTTP/1.1", ENDLESS, 431, "invalid_request_error"),
        (b"POST /v1/messages HTTP/1.1", SLOW, 408, "timeout_error"),
        (b"POST /v1/messages?beta=true HTTP/1.1", SLOW, 408, "timeout_error"),
        (b"POST http://host/v1/messages HTTP/1.1", SLOW, 408, "timeout_error"),
        (b"POST /v1/messages/count_tokens HTTP/1.1", TOO_LARGE, 413, "request_too_large"),
        (
            b"POST /v1/messages HTTP/1.1",
            b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
            "invalid_request_error",
        ),
        (b"GET /v1/models HTTP/1.1\r\nanthropic-version: 2023-06-01", ENDLESS, 431, "invalid_request_error"),
        (b"POST /v1/chat/completions HTTP/1.1", TOO_LARGE, 413, None),
        (b"POST /v1/chat/completions HTTP/1.1", SLOW, 408, None),
        (b"GET /v1/models HTTP/1.1", ENDLESS, 431, None),
        (b"POST /v1/messages", b"", 408, "timeout_error"),  # whatever may follow of it
        (b"POST /v1/mess", b"", 408, None),  # the path is not known yet
        (b"\x16\x03\x01 /v1/messages", b"", 400, None),
    ],
)
async def test_the_form_follows_the_path(
    tmp_path: Path, start: bytes, rest: bytes, status: int, kind: str | None
) -> None:
    """Anthropic's under its paths, OpenAI's everywhere else."""
    head = start + b"\r\nhost: x\r\n" + rest if rest else start
    async with running_router(tmp_path, config([]), client=LIMITS) as r:
        answered, body = await refused(r.router.port, head)
    assert answered == status
    if kind is None:
        assert body["error"]["message"]
        assert "code" in body["error"]
    else:
        assert (body["type"], body["error"]["type"]) == ("error", kind)


async def test_what_follows_a_request_is_not_taken_for_its_kin(tmp_path: Path) -> None:
    """After a complete request under Anthropic's path comes no HTTP at all: the API, and so the form of the error, is unknown."""
    body = b'{"model":"none","messages":[{"role":"user","content":"x"}],"max_tokens":1}'
    first = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with running_router(tmp_path, config([]), client=LIMITS) as r:
        status, answered = await refused(r.router.port, first + b"\x00\x01\x02\r\n\r\n")
    assert status == 400
    assert "code" in answered["error"]


async def answered(port: int, *parts: bytes) -> bytes:
    """Send *parts* and return all that comes, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0)
    payload = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return payload


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (ENDLESS, 431),
        (SLOW, 408),
        (TOO_LARGE, 413),
        (b"a: \x01\r\n\r\n", 400),
        (b"host: y\r\n\r\n", 400),
        (b"content-encoding: gzip\r\ncontent-length: 1\r\n\r\n", 415),
        (b"expect: 200-ok\r\n\r\n", 417),
        (b"transfer-encoding: gzip\r\n\r\n", 501),
    ],
)
async def test_a_head_that_is_refused_early_has_no_body(tmp_path: Path, rest: bytes, status: int) -> None:
    """The answer to a HEAD ends with its head, whatever it says (RFC 9110, section 9.3.2)."""
    async with running_router(tmp_path, config([]), client=LIMITS) as r:
        payload = await answered(r.router.port, b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n" + rest)
    assert payload.startswith(b"HTTP/1.1 %d " % status)
    assert payload.endswith(b"\r\n\r\n")
    assert payload.count(b"\r\n\r\n") == 1


async def test_what_an_answer_says_of_its_connection(tmp_path: Path) -> None:
    """An HTTP/1.0 client learns that its connection is kept; an answer without a body says nothing of its length."""
    old = b"GET /v1/models HTTP/1.0\r\n%b\r\n"
    options = b"OPTIONS /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    async with running_router(tmp_path, config([]), client=LIMITS) as r:
        kept = await answered(r.router.port, old % b"connection: keep-alive\r\n", old % b"")
        empty = await answered(r.router.port, options)
        new = await answered(r.router.port, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" + old % b"")
    assert kept.count(b"\r\nconnection: keep-alive\r\n") == 1
    assert kept.count(b"\r\nconnection: close\r\n") == 1
    assert b"connection: keep-alive" not in new
    assert empty.startswith(b"HTTP/1.1 204 ")
    assert b"content-length" not in empty
    assert b"transfer-encoding" not in empty


async def test_an_answer_in_pieces_to_http_1_0_says_so_too(tmp_path: Path) -> None:
    """A stream that only the end of the connection can end is never announced as kept."""
    body = json.dumps({"model": "tiny-1b", "messages": [{"role": "user", "content": "x"}], "stream": True})
    asked = (
        b"POST /v1/chat/completions HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body.encode())
    )
    async with mock_worker() as worker:
        fleet = config([("aggregated", worker.url)])
        async with running_router(tmp_path, fleet) as r:
            payload = await answered(r.router.port, asked)
    assert b"\r\nconnection: close\r\n" in payload
    assert b"keep-alive" not in payload
    assert payload.endswith(b"[DONE]\n\n")


async def test_a_refusal_of_the_head_has_the_requests_id(tmp_path: Path) -> None:
    """Where the connection goes on it is answered as any other request, and it is counted."""
    asked = b"POST /v1/none HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\ncontent-length: 5\r\n\r\n"
    async with running_router(tmp_path, config([])) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", r.router.port)
        writer.write(asked)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert await r.metric("turnout_router_requests_total", deployment="", code="404") == 1
        writer.close()
    assert b"\r\nx-request-id: mine\r\n" in head
    assert b"\r\nconnection: close\r\n" not in head
