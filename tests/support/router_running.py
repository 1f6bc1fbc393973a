"""A router in the test's own event loop, and what tests ask of it: its fleet, its metrics, conditions that come true."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from turnout_router.fleet.discovery.file import FileSource
from turnout_router.main import Router
from turnout_router.settings import ClientLimits, Settings, UpstreamLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    from support.router_mock_backend import MockWorker

DEPLOYMENT = "default/tiny"
MODEL = "tiny-1b"
LONG = "word " * 400
"""A prompt that is worth moving: 500 tokens, above the threshold of 256."""


@dataclass
class Running:
    """A router that serves. `client` speaks to its public port, `admin` to the other one."""

    router: Router
    client: httpx.AsyncClient
    admin: httpx.AsyncClient
    stopped: asyncio.Task[None]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.router.port}/v1"

    async def metric(self, name: str, **labels: str) -> float:
        """Return the value of one series, 0 where it does not exist (yet)."""
        text = (await self.admin.get("/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    async def chat(self, prompt: str = "hello", **more: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=chat(prompt, **more))


def chat(prompt: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **more}


def config(
    workers: Iterable[tuple[str, str]] | Iterable[tuple[str, str, str]], **more: Any
) -> dict[str, Any]:
    """Return a configuration with one deployment of *workers*: (role, url) or (role, url, revision)."""
    backends = [
        {"role": role, "url": url, "revision": rest[0] if rest else "a"} for role, url, *rest in workers
    ]
    deployment = {"name": DEPLOYMENT, "servedNames": [MODEL], "backends": backends}
    return {"deployments": [deployment | more]}


def pair(prefill: MockWorker, decode: MockWorker, **more: Any) -> dict[str, Any]:
    return config([("prefill", prefill.url), ("decode", decode.url)], **more)


@asynccontextmanager
async def running_router(
    path: Path,
    content: dict[str, Any],
    *,
    client: ClientLimits | None = None,
    upstream: UpstreamLimits | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Run a router whose fleet is *content*, written to *path* / router.yaml."""
    file = path / "router.yaml"
    file.write_text(yaml.safe_dump(content))
    chosen: dict[str, Any] = {"shutdown_delay_seconds": 0.0, "shutdown_grace_seconds": 5.0} | settings
    router = Router(
        Settings(
            host="127.0.0.1",
            port=0,
            admin_port=0,
            client=client or ClientLimits(),
            upstream=upstream or UpstreamLimits(),
            **chosen,
        ),
        FileSource(file),
    )
    task = asyncio.create_task(router.run())
    started = asyncio.create_task(router.started.wait())
    await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    started.cancel()
    if task.done():
        task.result()
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{router.port}",
            timeout=30,
            limits=limits,
            verify=False,  # noqa: S501 - plain HTTP
        ) as public,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{router.admin_port}",
            timeout=10,
            verify=False,  # noqa: S501 - plain HTTP
        ) as admin,
    ):
        ready = Running(router, public, admin, task)
        await eventually(lambda: not router.not_ready_because)
        yield ready
    router.stop()
    await asyncio.wait_for(task, 20)


async def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until *condition* holds. Fail the test where it does not within *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come true"
        await asyncio.sleep(0.01)


async def eventually_async(condition: Callable[[], Awaitable[Any]], seconds: float = 30.0) -> None:
    """Wait until *condition*, which itself waits for something, holds."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "what was waited for did not come true"
        await asyncio.sleep(0.02)
