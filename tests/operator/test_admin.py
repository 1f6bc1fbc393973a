"""What the operator's own port shows, and to which peers."""

from __future__ import annotations

import logging
import socket

import httpx
import pytest
from aiohttp import web

from turnout_operator.admin import serving
from turnout_operator.metrics import Metrics
from turnout_runtime.supervision import Supervisor


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        ("127.0.0.1", 200),
        ("127.3.2.1", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("10.0.0.7", 403),
        ("::ffff:10.0.0.7", 403),
        ("fd00::1", 403),
        (None, 403),
    ],
)
async def test_decisions_are_shown_to_loopback_alone(
    monkeypatch: pytest.MonkeyPatch, peer: str | None, status: int
) -> None:
    """They name deployments of every namespace; health and metrics are open."""
    monkeypatch.setattr(web.Request, "remote", property(lambda _: peer), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    metrics = Metrics()
    tasks = Supervisor(metrics.task_failed, logging.getLogger(__name__))
    pages = {"not_ready": str, "remark": str, "decisions": lambda: {"team/a": "kept"}}
    async with (
        serving("127.0.0.1", port, metrics, tasks, **pages),  # type: ignore[arg-type]  # what each page says
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
    ):
        answer = await client.get("/decisions")
        assert answer.status_code == status
        assert ("team/a" in answer.text) == (status == 200)
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200
    await tasks.stop()
