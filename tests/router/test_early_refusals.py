"""What is refused before it is complete is refused in the words of the API that was asked, once that is known."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

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
    said = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = said[said.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
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
        (b"POST /v1/mess", b"", 408, None),  # nobody knows yet what the path will be
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
    """After a complete request under Anthropic's path comes no HTTP at all: nobody knows whose words to use."""
    body = b'{"model":"none","messages":[{"role":"user","content":"x"}],"max_tokens":1}'
    first = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with running_router(tmp_path, config([]), client=LIMITS) as r:
        status, answered = await refused(r.router.port, first + b"\x00\x01\x02\r\n\r\n")
    assert status == 400
    assert "code" in answered["error"]
