"""What one namespace does, seen from another: refused namespaces, foreign keys, objects that cannot be read."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.fake_api_server import FakeApiServer, fake_api_server, llm_deployment, meta, worker_pod
from support.previous_release import recorded_pod
from support.router_mock_backend import mock_worker
from support.router_running import eventually, eventually_async, running_router
from turnout import terms
from turnout_kube.follow import follow
from turnout_router.fleet.discovery import kubernetes
from turnout_router.fleet.discovery.kubernetes import KubernetesSource
from turnout_router.main import Router
from turnout_router.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from turnout_router.settings import AuthMode

SYSTEM = "sys"
FORGET = 0.5
UNREADABLE = "turnout_router_namespace_unreadable"
REJECTED = "turnout_router_fleet_rejected_total"
STALE = "turnout_router_fleet_stale"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let times pass quickly."""
    monkeypatch.setattr(kubernetes, "FORGET_SECONDS", FORGET)
    monkeypatch.setattr(kubernetes, "_PATIENCE_SECONDS", FORGET)
    monkeypatch.setattr(kubernetes, "follow", partial(follow, back_off_seconds=(0.05,)))


@dataclass
class Seen:
    """A router in front of namespaces v (victim) and h (hostile), each with a model of its name."""

    router: Router
    client: httpx.AsyncClient

    async def ask(self, model: str, key: str | None = None) -> tuple[int, str]:
        """Return the status of an answer and the namespace of the worker that gave it."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        answer = await self.client.post("/v1/chat/completions", json=body, headers=headers)
        return answer.status_code, answer.headers.get("x-turnout-backend", "").partition("/")[0]

    async def models(self, key: str | None = None) -> set[str]:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = await self.client.get("/v1/models", headers=headers)
        return {model["id"] for model in answer.json()["data"]}

    async def until(self, status: int, model: str, key: str | None = None) -> None:
        async def answers() -> bool:
            return (await self.ask(model, key))[0] == status

        await eventually_async(answers)

    def value(self, name: str, **labels: str) -> float | None:
        return self.router._metrics.registry.get_sample_value(name, labels)


def budget(
    namespace: str, name: str, *keys: str, created: int = 0, accepted: list[str] | None = None, **spec: Any
) -> dict[str, Any]:
    """Return a TokenBudget whose keys are called by themselves."""
    entries = [{"name": key, "sha256": hashlib.sha256(key.encode()).hexdigest()} for key in keys]
    status = {} if accepted is None else {"observedGeneration": 1, "acceptedKeys": accepted}
    return {
        "apiVersion": terms.API_VERSION,
        "kind": "TokenBudget",
        "metadata": meta(namespace, name, created),
        "spec": {"keys": entries, **spec},
        "status": status,
    }


def annotated(name: str, annotation: str) -> dict[str, Any]:
    """Return a ready Pod of h's model that has *annotation* where the operator writes what a worker is."""
    made = worker_pod("h", name, "m", 1, "h-m")
    made["metadata"]["annotations"] = {terms.ANNOTATION_WORKER: annotation}
    return made


@asynccontextmanager
async def serving(
    api: FakeApiServer, *namespaces: str, auth: AuthMode = "open", own: str = SYSTEM, wait: bool = True
) -> AsyncIterator[Seen]:
    """Run a router of *api* and give both namespaces a worker."""
    async with AsyncExitStack() as stack:
        for namespace in ("v", "h"):
            worker = await stack.enter_async_context(mock_worker())
            api.put(
                "llmdeployments", llm_deployment(namespace, "m", f"{namespace}-m", settled=[f"{namespace}-m"])
            )
            api.put("pods", worker_pod(namespace, "w", "m", worker.port, f"{namespace}-m"))
        settings = Settings(host="127.0.0.1", port=0, admin_port=0, auth=auth, shutdown_delay_seconds=0)
        router = Router(settings, KubernetesSource(api.access, namespaces, own))
        task = asyncio.create_task(router.run())
        await asyncio.wait_for(router.started.wait(), 20)
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}", timeout=30)
        )
        if wait:
            await eventually(lambda: not router.not_ready_because)
        yield Seen(router, client)
        router.stop()
        await asyncio.wait_for(task, 20)


async def test_a_namespace_that_is_refused_is_left_out() -> None:
    """From the start: the router gets ready and serves the others, and takes it up when it can be read."""
    async with fake_api_server() as api:
        api.fail("h")
        async with serving(api, "v", "h") as seen:
            assert await seen.ask("v-m") == (200, "v")
            assert (await seen.ask("h-m"))[0] == 404
            assert seen.value(UNREADABLE, namespace="h", resource="pods") == 1
            assert seen.value(STALE) == 0, "what is left out is not out of date"
            api.mend("h")
            await seen.until(200, "h-m")
            await eventually(lambda: seen.value(UNREADABLE, namespace="h", resource="pods") is None)


async def test_a_namespace_that_becomes_refused_is_dropped_in_the_end() -> None:
    """Its fleet serves on for the grace period, then it is gone; the others do not notice. Then it comes back."""
    async with fake_api_server() as api, serving(api, "v", "h") as seen:
        began = asyncio.get_running_loop().time()
        api.fail("h", status=404)
        await seen.until(404, "h-m")
        assert asyncio.get_running_loop().time() - began >= FORGET
        assert await seen.ask("v-m") == (200, "v")
        api.mend("h")
        await seen.until(200, "h-m")


@pytest.mark.parametrize("status", [403, 503])
async def test_what_an_api_server_refuses_altogether_is_kept(status: int) -> None:
    """It is starting, or our rights are gone: no namespace's fleet is dropped for that, and it is called stale."""
    async with fake_api_server() as api, serving(api, "v", "h") as seen:
        api.fail("", status=status)
        await eventually(lambda: seen.value(STALE) == 1)
        await asyncio.sleep(3 * FORGET)  # what is not to happen has no condition to wait for
        assert await seen.ask("h-m") == (200, "h")
        assert await seen.ask("v-m") == (200, "v")
        api.mend("")
        await eventually(lambda: seen.value(STALE) == 0)


async def test_a_namespace_whose_list_only_fails_is_not_waited_for_for_ever() -> None:
    """Errors other than a refusal are waited out for a while, then the others are served."""
    async with fake_api_server() as api:
        api.fail("h", "pods", status=500)
        async with serving(api, "v", "h") as seen:
            assert await seen.ask("v-m") == (200, "v")
            assert seen.value(STALE) == 1
            api.mend("h", "pods")
            await seen.until(200, "h-m")


async def test_without_a_fleet_to_serve_a_router_is_not_ready() -> None:
    """Rights that are missing altogether, or CRDs that are not there yet, hold a rollout up instead of ending in 404s."""
    async with fake_api_server() as api:
        for namespace in ("v", "h"):
            api.fail(namespace, "llmdeployments", status=404)
        async with serving(api, "v", "h", wait=False) as seen:
            await eventually(lambda: seen.value(UNREADABLE, namespace="v", resource="llmdeployments") == 1)
            await asyncio.sleep(2 * FORGET)  # as above
            assert seen.router.not_ready_because
            api.mend("v", "llmdeployments")
            await eventually(lambda: not seen.router.not_ready_because)
            await seen.until(200, "v-m")


@pytest.mark.parametrize(("auth", "status"), [("open", 200), ("required", 401)])
@pytest.mark.parametrize("scope", [("",), ("v", "h")])
async def test_budgets_that_cannot_be_read_open_nothing(
    auth: AuthMode, status: int, scope: tuple[str, ...]
) -> None:
    """Where no key is required all clients are served on; where one is, it is unknown: 401."""
    async with fake_api_server() as api:
        api.put("tokenbudgets", budget("v", "b", "sk-v"))
        api.fail(scope[0], "tokenbudgets")
        async with serving(api, *filter(None, scope), auth=auth) as seen:
            assert (await seen.ask("v-m", "sk-v"))[0] == status
            api.mend(scope[0], "tokenbudgets")
            await seen.until(200, "v-m", "sk-v")


async def test_no_object_of_one_tenant_keeps_those_of_others_from_being_read() -> None:
    """Pods and resources of odd forms are counted and left out, on the list and on the watch."""
    async with fake_api_server() as api:
        broken = annotated("broken", '{"engine": "simulated", "names": ["h-m"], "ports": {"http": "many"}}')
        unmarked = recorded_pod("decode", "unmarked")
        unmarked["metadata"]["namespace"] = "h"
        unmarked["spec"]["containers"][0]["ports"] = [{"name": "http", "containerPort": "many"}]
        api.put("pods", broken)
        api.put("pods", unmarked)
        api.put("llmdeployments", {"metadata": meta("h", "x"), "spec": "text"})
        async with serving(api) as seen:
            assert await seen.ask("v-m") == (200, "v")
            assert seen.value(REJECTED) == 3
            api.put("pods", broken)
            await eventually(lambda: seen.value(REJECTED) == 4)
            api.put("llmdeployments", llm_deployment("v", "n", "v-n", settled=["v-n"]))
            await seen.until(503, "v-n")


@pytest.mark.parametrize(
    "annotation",
    [
        "",
        "{",
        "null",
        "[" * 15_000,
        '{"x": ' * 2_500,
        '{"kvTokens": ' + "9" * 15_000 + "}",
        "x" * 200_000,
        '{"engine": "simulated", "names": ["\\ud800"]}',
        '{"engine": "simulated", "names": ["h-m\\r\\nx-evil: 1"]}',
        '{"engine": "simulated", "names": ["h-m"], "kvTokens": 1000000000000}',
        '{"engine": "simulated", "names": ["h-m"], "version": 99}',
    ],
    ids=count(),
)
async def test_an_odd_annotation_costs_its_own_pod_and_nothing_else(
    annotation: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One rejection, one line, no failure of a task; the pod gets no request, both namespaces are served on."""
    async with fake_api_server() as api, serving(api) as seen:
        api.put("pods", annotated("odd", annotation))
        await eventually(lambda: seen.value(REJECTED) == 1)
        api.put("llmdeployments", llm_deployment("h", "n", "h-n", settled=["h-n"]))
        await seen.until(503, "h-n")
        assert [await seen.ask(name) for name in ("v-m", "h-m")] == [(200, "v"), (200, "h")]
        assert seen.value(REJECTED) == 1
        assert seen.value("turnout_router_task_failures_total", task="watch") in {0, None}
        (line,) = [record.getMessage() for record in caplog.records if "h/odd" in record.getMessage()]
        assert "annotation turnout.dev/worker" in line
        assert line.isprintable()
        assert len(line) < 1000


@pytest.mark.parametrize("auth", ["open", "required"])
async def test_a_key_opens_the_names_of_its_namespace(auth: AuthMode) -> None:
    """Another namespace's names do not exist for it, by whatever name; one of the router's own may open them all."""
    async with fake_api_server() as api:
        api.put("tokenbudgets", budget("v", "b", "sk-v"))
        api.put("tokenbudgets", budget("h", "b", "sk-h", scope="Cluster", models=["v-m", "v/m", "h-m"]))
        api.put("tokenbudgets", budget(SYSTEM, "b", "sk-all", scope="Cluster"))
        api.put("tokenbudgets", budget(SYSTEM, "c", "sk-own"))
        async with serving(api, auth=auth) as seen:
            await seen.until(200, "v-m", "sk-v")
            assert [await seen.ask(name, "sk-v") for name in ("v/m", "h-m", "h/m")] == [
                (200, "v"),
                (404, ""),
                (404, ""),
            ]
            assert await seen.ask("h-m", "sk-h") == (200, "h")
            assert [(await seen.ask(name, "sk-h"))[0] for name in ("v-m", "v/m")] == [404, 404]
            assert [await seen.ask(name, "sk-all") for name in ("v-m", "h/m")] == [(200, "v"), (200, "h")]
            assert (await seen.ask("v-m", "sk-own"))[0] == 404
            assert await seen.models("sk-v") == {"v-m"}
            assert await seen.models("sk-h") == {"h-m"}
            assert await seen.models("sk-all") == {"v-m", "h-m"}
            alien = await seen.client.get("/v1/models/h-m", headers={"authorization": "Bearer sk-v"})
            assert alien.status_code == 404
            if auth == "open":
                assert [await seen.ask(name) for name in ("v-m", "h-m")] == [(200, "v"), (200, "h")]


async def test_one_tenants_keys_do_not_lock_anothers_clients_out() -> None:
    """Where no key is required, clients that send any are served until their own namespace has keys."""
    async with fake_api_server() as api, serving(api) as seen:
        assert await seen.ask("v-m", "none") == (200, "v")
        api.put("tokenbudgets", budget("h", "b", "sk-h"))
        await seen.until(401, "h-m", "none")
        assert await seen.ask("v-m", "none") == (200, "v")
        assert await seen.models("none") == {"v-m"}
        api.put("tokenbudgets", budget("v", "b", "sk-v"))
        await seen.until(401, "v-m", "none")


async def test_a_copied_key_takes_nothing_over() -> None:
    """Its first holder keeps it, also against a budget that claims to be older; and while the first one is made anew."""
    async with fake_api_server() as api, serving(api, auth="required") as seen:
        api.put("tokenbudgets", budget("v", "b", "sk-v", created=9))
        await seen.until(200, "v-m", "sk-v")
        api.put("tokenbudgets", budget("h", "b", "sk-v", "sk-h", created=1))
        await seen.until(200, "h-m", "sk-h")
        assert await seen.ask("v-m", "sk-v") == (200, "v")
        api.delete("tokenbudgets", "v", "b")
        await seen.until(401, "v-m", "sk-v")
        assert (await seen.ask("h-m", "sk-v"))[0] == 401
        api.put("tokenbudgets", budget("h", "b", "sk-v", "sk-h", created=1, accepted=["sk-h"]))
        api.put("tokenbudgets", budget("v", "b", "sk-v", created=10))
        await seen.until(200, "v-m", "sk-v")
        assert (await seen.ask("h-m", "sk-v"))[0] == 404


async def test_a_name_in_two_namespaces_stays_where_it_is() -> None:
    """Its holder is deleted and made anew while another namespace waits for the name: not one request goes there."""
    async with fake_api_server() as api, serving(api) as seen:
        thief = llm_deployment("h", "m", "h-m", "v-m", created=1)
        api.put("llmdeployments", thief)
        await seen.until(200, "h/m")
        assert await seen.ask("v-m") == (200, "v")
        api.delete("llmdeployments", "v", "m")
        await seen.until(404, "v-m")
        api.put("llmdeployments", llm_deployment("h", "m", "h-m", "v-m", settled=["h-m"], created=1))
        api.put("llmdeployments", llm_deployment("v", "m", "v-m", created=60))
        await seen.until(200, "v-m")
        assert await seen.ask("v-m") == (200, "v")


async def test_one_deployments_failures_do_not_use_up_anothers_retries(tmp_path: Path) -> None:
    """A deployment all of whose workers fail is asked without end; a failure of another one is repaired all the same."""
    async with AsyncExitStack() as stack:
        broken = [await stack.enter_async_context(mock_worker(behavior="reset")) for _ in range(3)]
        good = await stack.enter_async_context(mock_worker())
        bad = await stack.enter_async_context(mock_worker(behavior="reset"))
        content = {
            "deployments": [
                {
                    "name": f"{namespace}/m",
                    "servedNames": [f"{namespace}-m"],
                    "policy": "LeastLoaded",
                    "backends": [{"role": "aggregated", "url": worker.url} for worker in workers],
                }
                for namespace, workers in (("h", broken), ("v", [good, bad]))
            ]
        }
        running = await stack.enter_async_context(running_router(tmp_path, content))
        body = {"messages": [{"role": "user", "content": "hello"}]}
        for _ in range(60):
            answer = await running.client.post("/v1/chat/completions", json=body | {"model": "h-m"})
            assert answer.status_code in {502, 503}
        seen = [
            (await running.client.post("/v1/chat/completions", json=body | {"model": "v-m"})).status_code
            for _ in range(4)
        ]
        assert seen == [200] * 4
        assert await running.metric("turnout_router_retries_total", deployment="v/m") >= 1
