"""As much of an API server as a client that lists and watches sees: collections in namespaces, each of which may be refused."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from turnout import terms
from turnout.api.worker_facts import WorkerFacts, WorkerPorts
from turnout_router.fleet.kube import Access

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class FakeApiServer:
    """Keeps objects, reports changes to watchers, and answers with `statuses` where it is to fail.

    `statuses` maps (namespace, resource) to the status that is answered instead, a namespace's resources all at once by
    (namespace, ""). A watch that is under way ends where its collection begins to fail.
    """

    def __init__(self) -> None:
        self.statuses: dict[tuple[str, str], int] = {}
        self.lists: dict[tuple[str, str], int] = {}
        """How often each collection was listed."""
        self._objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._watchers: list[tuple[str, str, asyncio.Queue[dict[str, Any] | None]]] = []
        self._version = 1
        self.access = Access("", None, lambda: None)

    def put(self, resource: str, raw: dict[str, Any]) -> None:
        """Create or replace an object."""
        meta = raw["metadata"]
        key = resource, meta["namespace"], meta["name"]
        before = key in self._objects
        self._version += 1
        meta["resourceVersion"] = str(self._version)
        self._objects[key] = raw
        self._tell(resource, meta["namespace"], {"type": "MODIFIED" if before else "ADDED", "object": raw})

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """Delete an object."""
        raw = self._objects.pop((resource, namespace, name))
        self._version += 1
        raw["metadata"]["resourceVersion"] = str(self._version)
        self._tell(resource, namespace, {"type": "DELETED", "object": raw})

    def fail(self, namespace: str, resource: str = "", status: int = 403) -> None:
        """Answer *status* from now on."""
        self.statuses[namespace, resource] = status
        for watched, where, queue in self._watchers:
            if self._status(where, watched):
                queue.put_nowait(None)

    def mend(self, namespace: str, resource: str = "") -> None:
        """Answer again."""
        del self.statuses[namespace, resource]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a list or a watch."""
        parts = request.path.strip("/").split("/")
        resource, namespace = parts[-1], parts[-2] if "namespaces" in parts else ""
        status = self._status(namespace, resource)
        if status:
            return web.json_response({"message": f"{resource} is refused"}, status=status)
        if request.query.get("watch"):
            return await self._watch(request, resource, namespace)
        self.lists[namespace, resource] = self.lists.get((namespace, resource), 0) + 1
        found = [
            raw
            for (kind, where, _), raw in self._objects.items()
            if kind == resource and namespace in {"", where}
        ]
        return web.json_response({"items": found, "metadata": {"resourceVersion": str(self._version)}})

    async def _watch(self, request: web.Request, resource: str, namespace: str) -> web.StreamResponse:
        response = web.StreamResponse()
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        watcher = resource, namespace, queue
        self._watchers.append(watcher)
        since = int(request.query["resourceVersion"])
        for (kind, where, _), raw in self._objects.items():
            missed = int(raw["metadata"]["resourceVersion"]) > since
            if missed and kind == resource and namespace in {"", where}:
                queue.put_nowait({"type": "MODIFIED", "object": raw})
        try:
            await response.prepare(request)
            while (event := await queue.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        except ConnectionResetError:
            pass  # the watcher has left
        finally:
            self._watchers.remove(watcher)
        return response

    def _status(self, namespace: str, resource: str) -> int:
        return (
            self.statuses.get((namespace, resource))
            or self.statuses.get((namespace, ""))
            or self.statuses.get(("", ""))
            or 0
        )

    def _tell(self, resource: str, namespace: str, event: dict[str, Any]) -> None:
        for watched, where, queue in self._watchers:
            if watched == resource and where in {"", namespace}:
                queue.put_nowait(event)


@asynccontextmanager
async def fake_api_server() -> AsyncIterator[FakeApiServer]:
    """Run one on a port of its own."""
    server = FakeApiServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    server.access = Access(f"http://127.0.0.1:{port}", None, lambda: None)
    yield server
    server.fail("")
    await runner.cleanup()


def meta(namespace: str, name: str, created: int = 0, generation: int = 1) -> dict[str, Any]:
    """Return metadata of an object that was created so many seconds after the hour."""
    return {
        "namespace": namespace,
        "name": name,
        "generation": generation,
        "creationTimestamp": f"2026-01-01T00:{created // 60:02}:{created % 60:02}Z",
    }


def llm_deployment(
    namespace: str, name: str, *served: str, settled: list[str] | None = None, created: int = 0
) -> dict[str, Any]:
    """Return an LLMDeployment with one aggregated pool; *settled*: what its status says it serves."""
    status = {} if settled is None else {"observedGeneration": 1, "servedNames": settled}
    return {
        "apiVersion": terms.API_VERSION,
        "kind": "LLMDeployment",
        "metadata": meta(namespace, name, created),
        "spec": {
            "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "servedNames": list(served)},
            "engine": {"type": "simulated"},
            "decode": {"accelerator": {"type": "H100-SXM"}},
        },
        "status": status,
    }


def worker_pod(namespace: str, name: str, deployment: str, port: int, served: str) -> dict[str, Any]:
    """Return the Pod of a worker that is ready on the loopback address."""
    facts = WorkerFacts(engine="simulated", names=(served,), ports=WorkerPorts(http=port))
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {
                terms.LABEL_DEPLOYMENT: deployment,
                terms.LABEL_ROLE: "aggregated",
                terms.LABEL_REVISION: "a",
            },
            "annotations": {terms.ANNOTATION_WORKER: facts.to_annotation()},
        },
        "spec": {"containers": [{"name": terms.COMPONENT_WORKER}]},
        "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }
