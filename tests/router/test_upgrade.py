"""A router of this release in front of workers that the operator of the release before made.

Goes with `turnout_router.fleet.discovery.previous_release`, in release 0.3.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx

from support.fake_api_server import fake_api_server
from support.previous_release import recorded_deployment, recorded_pod
from support.router_mock_backend import mock_worker
from support.router_running import eventually, eventually_async
from turnout import terms
from turnout.api import load_deployment
from turnout_operator.plan.facts import worker_facts
from turnout_router.fleet.discovery.kubernetes import KubernetesSource
from turnout_router.main import Router
from turnout_router.settings import Settings

if TYPE_CHECKING:
    from support.fake_api_server import FakeApiServer
    from support.router_mock_backend import MockWorker

REJECTED = "turnout_router_fleet_rejected_total"


def put_pod(api: FakeApiServer, name: str, worker: MockWorker, *, marked: bool) -> None:
    """Show a decode worker: as the operator of the release before made it, or marked by the one of this release."""
    made = recorded_pod("decode", name, worker.port)
    if marked:
        facts = worker_facts(load_deployment(recorded_deployment()), "decode")
        ports = facts.ports.model_copy(update={"http": worker.port})
        payload = facts.model_copy(update={"ports": ports}).to_annotation()
        made["metadata"]["annotations"] = {terms.ANNOTATION_WORKER: payload}
        made["spec"]["containers"][0]["args"] = ["simulate", "--served-name", "not-read"]
    api.put("pods", made)


async def test_workers_of_the_release_before_are_served() -> None:
    """Beside those of this release, by every name and under the worker's own; marking them in place loses no request."""
    async with fake_api_server() as api, mock_worker() as one, mock_worker() as other:
        api.put("llmdeployments", recorded_deployment())
        put_pod(api, "one", one, marked=False)
        settings = Settings(host="127.0.0.1", port=0, admin_port=0, shutdown_delay_seconds=0)
        router = Router(settings, KubernetesSource(api.access, ()))
        task = asyncio.create_task(router.run())
        await asyncio.wait_for(router.started.wait(), 20)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}", timeout=30) as client:

            async def ask(model: str) -> str:
                body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
                answer = await client.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                return answer.headers["x-turnout-backend"]

            async def serve(*workers: str) -> bool:
                return {await ask("llama") for _ in range(6)} == {f"models/{name}" for name in workers}

            await eventually(lambda: not router.not_ready_because)
            called = ("llama-8b", "llama", "sql", "models/llama")
            assert {await ask(name) for name in called} == {"models/one"}
            assert {request.body["model"] for request in one.received if "messages" in request.body} == {
                "llama-8b",
                "llama",
                "sql",
            }
            put_pod(api, "other", other, marked=True)
            await eventually_async(lambda: serve("one", "other"))
            put_pod(api, "one", one, marked=True)
            api.delete("pods", "models", "other")
            await eventually_async(lambda: serve("one"))
            assert {await ask(name) for name in called} == {"models/one"}
            assert router._metrics.registry.get_sample_value(REJECTED) == 0
        router.stop()
        await asyncio.wait_for(task, 20)
