"""Following a collection of a real API server; what it does in trouble is tested where it is used (router, node, demo)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from turnout_cli.demo.fleet import ApiServer
from turnout_kube.follow import NoHeaders, follow

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster


class Seen:
    """An observer that keeps what it is given."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.changed = asyncio.Event()
        self.reason = "not followed yet"

    def listed(self, objects: list[dict[str, Any]]) -> None:
        self.objects = {raw["metadata"]["name"]: raw for raw in objects}
        self.changed.set()

    def put(self, raw: dict[str, Any]) -> None:
        self.objects[raw["metadata"]["name"]] = raw
        self.changed.set()

    def removed(self, raw: dict[str, Any]) -> None:
        del self.objects[raw["metadata"]["name"]]
        self.changed.set()

    def reachable(self, reason: str, *, refused: bool = False) -> None:
        assert not refused
        self.reason = reason

    async def until(self, names: set[str]) -> None:
        """Wait until exactly *names* are known."""
        async with asyncio.timeout(60):
            while set(self.objects) != names:
                self.changed.clear()
                await self.changed.wait()


@pytest.mark.cluster
async def test_labels_and_fields_choose_what_is_listed_and_watched(cluster: Cluster, namespace: str) -> None:
    """What is there, what comes and what goes is seen, each object with its kind; nothing else of the collection is."""

    async def kubectl(*arguments: str) -> None:
        await asyncio.to_thread(cluster.kubectl, "--namespace", namespace, *arguments)

    for name in ("first", "second", "other"):
        await kubectl("create", "configmap", name)
    await kubectl("label", "configmap", "first", "other", "chosen=yes")
    server, seen = ApiServer.of(cluster), Seen()
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    async with httpx.AsyncClient(base_url=server.url, verify=server.tls) as client:
        task = asyncio.create_task(
            follow(client, NoHeaders(), path, "chosen=yes", seen, fields="metadata.name!=other")
        )
        await seen.until({"first"})
        await kubectl("label", "configmap", "second", "chosen=yes")
        await seen.until({"first", "second"})
        await kubectl("delete", "configmap", "first")
        await seen.until({"second"})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert seen.reason == ""
    assert seen.objects["second"]["kind"] == "ConfigMap"
