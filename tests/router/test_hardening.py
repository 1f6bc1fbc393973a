"""Hostile bytes on the public port: each gets the answer that docs/hardening.md says, and nothing reaches a worker."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from support.router_hostile_inputs import (
    BODY_LIMIT,
    CASES,
    FIELD_LIMIT,
    HEAD_LIMIT,
    KEY,
    KEYS,
    MARKS,
    MODELS,
    PAGE,
    TARGET_LIMIT,
    Case,
    post,
    render,
)
from support.router_mock_backend import mock_worker
from support.router_running import MODEL, Running, chat, config, eventually, running_router
from turnout_router.http1.framing import body_is_too_slow, origin_form
from turnout_router.settings import ClientLimits

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = ClientLimits(
    head_bytes=HEAD_LIMIT,
    target_bytes=TARGET_LIMIT,
    header_fields=FIELD_LIMIT,
    body_bytes=BODY_LIMIT,
    head_seconds=0.5,
    body_seconds=0.5,
    idle_seconds=1,
)
CLOSING = MODELS.replace(b"\r\n\r\n", b"\r\nconnection: close\r\nauthorization: Bearer %b\r\n\r\n" % KEY)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[bytes, bytes]]:
    """Read one answer with its body, and return its status and fields."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).strip().split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    await reader.readexactly(int(fields.get(b"content-length", b"0")))
    return int(first.split(b" ")[1]), fields


async def check(r: Running, case: Case) -> None:
    """Hold the router against *case*."""
    reader, writer = await asyncio.open_connection("127.0.0.1", r.router.port)
    try:
        for part in case.parts:
            writer.write(part)
            await asyncio.sleep(0)
        for expected in case.statuses:
            status, fields = await asyncio.wait_for(read_answer(reader), 10)
            assert status == expected
        if case.kept:
            writer.write(CLOSING)
            status, fields = await asyncio.wait_for(read_answer(reader), 10)
            assert status == 200
            assert fields[b"connection"] == b"close"
        assert await asyncio.wait_for(reader.read(), 10) == b""
    finally:
        writer.close()


@pytest.mark.parametrize("area", dict.fromkeys(case.area for case in CASES))
async def test_hostile_bytes_get_the_answer_of_the_table(tmp_path: Path, area: str) -> None:
    """Each input of an area: its answers, what becomes of the connection, and only what is good reaches the worker."""
    failures = []
    key = {"name": "one", "sha256": hashlib.sha256(KEY).hexdigest()}
    budgets = [{"name": "default/team", "keys": [key]}] if area == KEYS else []
    async with (
        mock_worker() as worker,
        running_router(
            tmp_path,
            config([("aggregated", worker.url)]) | {"budgets": budgets},
            client=LIMITS,
            auth="required" if area == KEYS else "open",
        ) as r,
    ):
        for case in (case for case in CASES if case.area == area):
            before = len(worker.received)
            try:
                await check(r, case)
            except (AssertionError, TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
                failures.append(f"{case.name}: {error!r}")
            posted = sum(part.count(b"POST") for part in case.parts) and case.statuses.count(200)
            if len(worker.received) - before > posted:
                failures.append(f"{case.name}: reached the worker")
        for request in worker.received:
            assert not {"x-secret", "traceparent", "tracestate"} & request.headers.keys()
            assert "kv_transfer_params" not in request.body
            assert request.body["model"] == MODEL
    assert not failures, "\n".join(failures)


def test_the_page_shows_this_very_table() -> None:
    """docs/hardening.md is written from the cases: `python -m support.router_hostile_inputs` in tests/."""
    assert PAGE.read_text().split(MARKS[0])[1].split(MARKS[1])[0] == render()


async def test_a_dribbled_body_is_cut_long_before_its_time_is_over(tmp_path: Path) -> None:
    """A byte now and then is no body: after the grace it must come at the least rate."""
    limits = ClientLimits(body_seconds=600, body_grace_seconds=0.5, body_rate=1000)
    async with running_router(tmp_path, config([]), client=limits) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", r.router.port)
        writer.write(post(b"", length=b"4000"))

        async def dribble() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.05)

        dribbling = asyncio.create_task(dribble())
        try:
            status, fields = await asyncio.wait_for(read_answer(reader), 10)
        finally:
            dribbling.cancel()
            writer.close()
    assert (status, fields[b"connection"]) == (408, b"close")


async def test_large_bodies_are_bounded_over_all_connections(tmp_path: Path) -> None:
    """What many clients send at once has a bound too: 503 with Retry-After, and room again once others have ended."""
    limits = ClientLimits(bodies_bytes=10_000)
    async with running_router(tmp_path, config([]), client=limits) as r:
        _, holding = await asyncio.open_connection("127.0.0.1", r.router.port)
        holding.write(post(b" " * 6000, length=b"6001"))
        listener: Any = r.router._listener
        await eventually(lambda: listener.held_bytes == 6000)
        refused = await r.client.post("/v1/chat/completions", json=chat("x" * 6000))
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        holding.close()
        await eventually(lambda: listener.held_bytes == 0)
        admitted = await r.client.post("/v1/chat/completions", json=chat("x" * 6000))
        assert admitted.json()["error"]["message"] == "No worker of default/tiny is ready."
        assert listener.held_bytes == 0


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/v1/models", b"/v1/models"),
        (b"http://a", b"/"),
        (b"HTTP://a:1/v1/models?b=c", b"/v1/models?b=c"),
        (b"https://u@[::1]:1//x", b"//x"),
        (b"ftp://a/v1/models", b"ftp://a/v1/models"),
        (b"*", b"*"),
    ],
)
def test_absolute_targets_lose_scheme_and_authority(target: bytes, path: bytes) -> None:
    """Whatever host a target names, nothing is fetched from there: only path and query count."""
    assert origin_form(target) == path


@pytest.mark.parametrize(
    ("size", "seconds", "slow"),
    [(0, 5.0, False), (0, 5.1, True), (1023, 6.0, True), (1024, 6.0, False), (10**9, 1e5, False)],
)
def test_the_least_rate_of_a_body(size: int, seconds: float, slow: bool) -> None:  # noqa: FBT001 - a table's column
    """Nothing is asked for within the grace of 5 s; 1024 bytes a second after it."""
    assert body_is_too_slow(size, seconds, 5.0, 1024.0) is slow
