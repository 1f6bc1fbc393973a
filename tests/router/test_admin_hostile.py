"""Unknown clients on the admin port: bounded, within deadlines, answered cleanly, and never in the way of the kubelet."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from support.router_running import config, eventually, running_router
from turnout_router.admin import LIMITS, AdminApp, AdminServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.router_running import Running
    from turnout_router.tasks import Note

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def ask(port: int, data: bytes, address: str = "127.0.0.1") -> tuple[int, bytes]:
    """Send *data* and return status and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        writer.write(data)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return int(head.split()[1]), await reader.readexactly(length)
    finally:
        writer.close()


async def until_closed(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@asynccontextmanager
async def bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> AsyncIterator[Running]:
    """Run a router whose admin port has *limits*."""

    class Small(AdminServer):
        def __init__(self, app: AdminApp, note: Note) -> None:
            super().__init__(app, note, replace(LIMITS, **limits))

    monkeypatch.setattr("turnout_router.main.AdminServer", Small)
    async with running_router(tmp_path, config([])) as r:
        yield r


CLIENTS = {
    "silent": b"",
    "half of a head": b"GET /healthz HTTP/1.1\r\nhost",
    "answered, and kept": HEALTH,
    "pages that are not read": b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n" * 50,
}


@pytest.mark.parametrize("data", CLIENTS.values(), ids=CLIENTS.keys())
async def test_strangers_do_not_fail_the_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """However many sit on the port, and from wherever the probe comes: its connection finds room and is answered."""
    async with bounded(tmp_path, monkeypatch, connections=20) as r:
        port = r.router.admin_port
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
        for _, writer in held:
            writer.write(data)
        for address in ("127.0.0.1", "127.0.0.2") * 20:
            assert await ask(port, HEALTH, address) == (200, b"ok\n")
        assert len(r.router._admin._listener) <= 20
        for _, writer in held:
            writer.transport.abort()


async def test_what_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, heads, bodies, idle connections and answers that are not read."""
    times = {"head_seconds": 0.3, "body_seconds": 0.3, "idle_seconds": 0.3, "stall_seconds": 0.3}
    async with bounded(tmp_path, monkeypatch, **times) as r:
        port = r.router.admin_port
        body = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n"
        assert await until_closed(port, b"") == b""
        assert (await until_closed(port, b"GET / HT")).startswith(b"HTTP/1.1 408 ")
        assert (await until_closed(port, body)).startswith(b"HTTP/1.1 408 ")
        assert (await until_closed(port, HEALTH)).startswith(b"HTTP/1.1 200 ")
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n" * 20_000)
        await eventually(lambda: not len(r.router._admin._listener))
        writer.transport.abort()


LIST = "/admin/decisions"
BAD = {
    "thousands of digits": f"{LIST}?limit={'9' * 3900}",
    "another script's digits": f"{LIST}?limit=%D9%A1",
    "a superscript": f"{LIST}?limit=%C2%B2",
    "a sign": f"{LIST}?limit=-1",
    "a plus": f"{LIST}?limit=+1",
    "an underscore": f"{LIST}?limit=1_0",
    "nothing": f"{LIST}?limit=",
    "zero": f"{LIST}?limit=0",
    "too many": f"{LIST}?limit=1000000",
    "a fraction": f"{LIST}?limit=1.0",
    "twice": f"{LIST}?limit=1&limit=2",
    "twice, deployment": f"{LIST}?deployment=a&deployment=b",
    "too many parameters": LIST + "?" + "&".join(f"a{n}=1" for n in range(50)),
    "half of a character": f"{LIST}?deployment=%C3",
    "half of a surrogate pair": f"{LIST}?deployment=%ED%A0%80",
    "an id of half a character": f"{LIST}/%FF",
}


@pytest.mark.parametrize("target", BAD.values(), ids=BAD.keys())
async def test_queries_that_say_nothing_sensible_are_400(
    tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In words, without a traceback, and the connection goes on."""
    async with running_router(tmp_path, config([])) as r:
        asked = b"GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % target.encode()
        status, body = await ask(r.router.admin_port, asked)
        assert status == 400
        assert json.loads(body)["error"]
        reader, writer = await asyncio.open_connection("127.0.0.1", r.router.admin_port)
        writer.write(asked + HEALTH.replace(b"host: localhost", b"host: localhost\r\nconnection: close"))
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"ok\n")
        writer.close()
    assert not [record for record in caplog.records if record.exc_info]


GOOD = {
    f"{LIST}?limit=1": 200,
    f"{LIST}?deployment=a%2Fb&other=%00": 200,
    f"{LIST}?deployment=%F0%9F%98%80": 200,
    f"{LIST}?": 200,
    f"{LIST}?limit=007": 200,
    f"{LIST}/none": 404,
    f"{LIST}/%00%0A": 404,
    f"{LIST}/a/b": 404,
    f"{LIST}/": 404,
    "/admin/fleet?a=b": 200,
    "/admin/peers": 200,
    "/readyz": 200,
    "/metrics?name[]=x": 200,
    "/admin": 404,
    "/": 404,
    "/admin/../healthz": 404,
    "//healthz": 404,
}


@pytest.mark.parametrize(("target", "status"), GOOD.items())
async def test_other_targets(tmp_path: Path, target: str, status: int) -> None:
    """What is not there is 404."""
    async with running_router(tmp_path, config([])) as r:
        asked = b"GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % target.encode()
        assert (await ask(r.router.admin_port, asked))[0] == status


HOSTILE = {
    "no HTTP": (b"\x16\x03\x01\r\n\r\n", 400),
    "a POST": (b"POST /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}", 405),
    "a POST without its body": (
        b"POST /metrics HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n",
        405,
    ),
    "a large body": (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999999\r\n\r\n", 413),
    "a long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 414),
    "a large head": (b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 20_000 + b"\r\n\r\n", 431),
    "no Host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "an unknown Expect": (
        b"POST /none HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n",
        404,
    ),
}


@pytest.mark.parametrize(("data", "status"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_bytes(tmp_path: Path, data: bytes, status: int) -> None:
    """The public port's reading holds here too."""
    async with running_router(tmp_path, config([])) as r:
        answered, body = await ask(r.router.admin_port, data)
        assert answered == status
        assert json.loads(body)["error"]
        assert (await r.admin.head("/healthz")).headers["content-length"] == "3"
