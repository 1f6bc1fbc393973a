"""Routers that exchange messages, and one that a test plays itself: on loopback, gone with the test."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from support.router_running import Running, eventually_async, running_router
from support.worker_process import die_with_parent, free_port
from turnout_router.settings import PeerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@asynccontextmanager
async def routers(
    tmp_path: Path, content: dict[str, Any], secrets: tuple[Path | None, ...] = (None, None), **settings: Any
) -> AsyncIterator[list[Running]]:
    """Run as many routers over *content* as there are *secrets*, all of which know where the others listen."""
    ports = [free_port() for _ in secrets]
    hosts = tuple(("127.0.0.1", port) for port in ports)  # themselves included: they notice
    async with AsyncExitStack() as stack:
        running = []
        for number, (port, secret) in enumerate(zip(ports, secrets, strict=True)):
            folder = tmp_path / f"router-{number}"
            folder.mkdir()
            peers = PeerSettings(port, hosts, secret_file=secret)
            running.append(
                await stack.enter_async_context(running_router(folder, content, peers=peers, **settings))
            )
        yield running


async def knowing(running: list[Running], peers: int) -> None:
    """Wait until each router is connected with *peers* others, both ways."""

    async def all_know() -> bool:
        return all(
            [
                await r.metric("turnout_router_peers", direction=direction) == peers
                for r in running
                for direction in ("outgoing", "incoming")
            ]
        )

    await eventually_async(all_know)


async def hears(r: Running, requests: int, seconds: float = 10.0) -> None:
    """Wait until *r* knows of exactly that many *requests* of others."""

    async def so_many() -> bool:
        return await r.metric("turnout_router_peer_requests") == requests

    await eventually_async(so_many, seconds)


def states_of(r: Running) -> list[Any]:
    """Return what the prefix-aware policy of the one deployment counts."""
    backends = r.router._backends
    (deployment,) = backends._runtimes.values()
    assert deployment.policy is not None
    return list(deployment.policy.tracker.states.values())


@contextmanager
def router_process(
    tmp_path: Path, content: dict[str, Any], port: int, *flags: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a router of its own process on *port*."""
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "router.yaml"
    file.write_text(yaml.safe_dump(content))
    with (tmp_path / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from turnout_router.main import main; main()"),
                *("--config", str(file), "--port", str(port), "--admin-port", "0", *flags),
            ],
            stderr=log,
            env=os.environ | {"TURNOUT_BIND_ADDRESS": "127.0.0.1"},
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no locks
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


async def serving(port: int, seconds: float = 30.0) -> None:
    """Wait until a router serves on *port*."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", verify=False) as client:  # noqa: S501 - plain HTTP

        async def answers() -> bool:
            try:
                return (await client.get("/v1/models")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually_async(answers, seconds)


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a peers port."""
    return await asyncio.open_connection("127.0.0.1", port)
