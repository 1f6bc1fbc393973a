"""Requests to the API server over the wire: what is sent, what becomes of each answer."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from turnout_operator.errors import (
    ApiError,
    ConfigurationError,
    Conflict,
    Forbidden,
    LeadershipLost,
    NotFound,
    Rejected,
    Unreachable,
)
from turnout_operator.kube.client import KubeClient
from turnout_operator.kube.kinds import POD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class Server:
    """An API server that answers what a test says, and remembers what it was asked."""

    answers: list[tuple[int, Any]] = field(default_factory=list)
    """Status and body of the answers to come; the last one stays."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    logins: int = 0
    hang: bool = False

    async def configuration(self) -> Configuration:
        """Log in; each login has a token of its own."""
        self.logins += 1
        found = Configuration(host=self.url)
        found.api_key["BearerToken"] = f"Bearer token-{self.logins}"
        return found

    async def handle(self, request: web.Request) -> web.Response:
        """Answer a request."""
        if self.hang:
            await asyncio.sleep(30)
        self.asked.append(
            {
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "type": request.headers.get("Content-Type"),
                "authorization": request.headers.get("Authorization"),
                "agent": request.headers.get("User-Agent"),
                "body": await request.text(),
            }
        )
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, text=body if isinstance(body, str) else json.dumps(body))


@asynccontextmanager
async def serving(*answers: tuple[int, Any]) -> AsyncIterator[Server]:
    """Run such a server."""
    server = Server(list(answers))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


MANIFEST = {"metadata": {"namespace": "ns", "name": "p"}, "spec": {"empty": {}, "none": None}}


async def test_an_apply_is_a_forced_server_side_apply() -> None:
    """Its content type, field manager and body are what the API server asks for."""
    async with serving((200, {"done": True})) as server, KubeClient(server.configuration) as client:
        assert await client.apply(POD, MANIFEST, "status") == {"done": True}
    (asked,) = server.asked
    assert (asked["method"], asked["path"]) == ("PATCH", "/api/v1/namespaces/ns/pods/p/status")
    assert asked["type"] == "application/apply-patch+yaml"
    assert asked["query"] == {"fieldManager": "turnout-operator", "force": "true"}
    assert json.loads(asked["body"]) == MANIFEST
    assert (asked["authorization"], asked["agent"]) == ("Bearer token-1", "turnout-operator")


async def test_a_merge_patch_keeps_its_nulls() -> None:
    """A null deletes a label: the library must not drop it."""
    async with serving((200, {})) as server, KubeClient(server.configuration) as client:
        await client.patch(POD, "ns", "p", {"metadata": {"labels": {"a": None}}})
    assert server.asked[0]["type"] == "application/merge-patch+json"
    assert json.loads(server.asked[0]["body"]) == {"metadata": {"labels": {"a": None}}}


async def test_a_list_follows_its_pages() -> None:
    """All pages are read, and selectors arrive as they were written."""
    pages = (
        (200, {"metadata": {"continue": "a+b/c=="}, "items": [{"metadata": {"name": "1"}}]}),
        (200, {"metadata": {}, "items": [{"metadata": {"name": "2"}}]}),
    )
    async with serving(*pages) as server, KubeClient(server.configuration) as client:
        found = await client.list(POD, None, "a=b,c in (d,e)")
    assert [item["metadata"]["name"] for item in found] == ["1", "2"]
    assert found[0]["kind"] == "Pod"
    assert server.asked[0]["query"]["labelSelector"] == "a=b,c in (d,e)"
    assert server.asked[1]["query"]["continue"] == "a+b/c=="


async def test_a_refused_token_is_renewed_once() -> None:
    """A rotated token is read again and the request repeated; a second refusal is raised."""
    async with serving((401, "{}"), (200, {})) as server, KubeClient(server.configuration) as client:
        await client.get(POD, "ns", "p")
        assert [asked["authorization"] for asked in server.asked] == ["Bearer token-1", "Bearer token-2"]
        server.answers = [(401, "{}")]
        with pytest.raises(Forbidden):
            await client.get(POD, "ns", "p")
        assert server.logins == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Rejected),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (422, Rejected),
        (429, Unreachable),
        (500, Unreachable),
        (503, Unreachable),
    ],
)
async def test_each_refusal_has_its_error(status: int, kind: type[ApiError]) -> None:
    """The message holds what was asked and the server's words; every request is counted."""
    counted = []
    async with (
        serving((status, {"message": "because"})) as server,
        KubeClient(server.configuration, count=lambda *seen: counted.append(seen)) as client,
    ):
        with pytest.raises(kind, match=r"get /api/v1/namespaces/ns/pods/p: .*because") as caught:
            await client.get(POD, "ns", "p")
    assert caught.value.status == status
    assert counted == [("get", "pods", status)]


async def test_silence_and_lost_credentials_are_worth_another_attempt() -> None:
    """A server that hangs, one that is gone, and a login that fails end in Unreachable, within the deadline."""
    counted = []
    async with (
        serving((200, {})) as server,
        KubeClient(
            server.configuration, count=lambda *seen: counted.append(seen), timeout_seconds=0.3
        ) as client,
    ):
        server.hang = True
        with pytest.raises(Unreachable, match="timed out"):
            await client.get(POD, "ns", "p")
        server.hang = False
        server.answers = [(401, "{}")]

        async def no_login() -> Configuration:
            raise ConfigurationError("the plugin fails")

        client._configure = no_login
        with pytest.raises(Unreachable, match="plugin fails"):
            await client.get(POD, "ns", "p")
    async with KubeClient(server.configuration) as client:
        with pytest.raises(Unreachable):
            await client.get(POD, "ns", "p")
    assert counted[0] == ("get", "pods", 0)


async def test_nothing_is_written_behind_the_fence() -> None:
    """A client without the lease reads, and writes nothing but the lease."""

    def fence(namespace: str) -> None:
        raise LeadershipLost(f"another acts in {namespace}")

    async with serving((200, {})) as server, KubeClient(server.configuration, fence=fence) as client:
        for write in (
            client.apply(POD, MANIFEST),
            client.patch(POD, "ns", "p", {}),
            client.create(POD, MANIFEST),
            client.delete(POD, "ns", "p", "uid"),
        ):
            with pytest.raises(LeadershipLost):
                await write
        assert server.asked == []
        await client.replace(POD, MANIFEST)
        assert len(server.asked) == 1
