"""The fleet from a real API server: pods and resources as they come, change, drain and go; the API server away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
import uuid
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from support.installation import REPOSITORY
from support.router_mock_backend import mock_worker
from support.router_running import eventually, eventually_async
from turnout import terms
from turnout.api.worker_facts import WorkerFacts, WorkerPorts
from turnout_router.fleet.discovery.kubernetes import KubernetesSource
from turnout_router.fleet.kube import load_access
from turnout_router.main import Router
from turnout_router.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.router_mock_backend import MockWorker
    from turnout_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("closed_connections")]


@pytest.fixture
def crds(cluster: Cluster) -> None:
    """Define the resources."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(REPOSITORY / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")


def deployment(name: str, *served: str) -> dict[str, Any]:
    pool = {"accelerator": {"type": "H100-SXM"}}
    return {
        "apiVersion": terms.API_VERSION,
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "servedNames": list(served)},
            "engine": {"type": "simulated", "simulated": {"timeScale": 5}},
            "prefill": pool,
            "decode": pool,
        },
    }


def pod(name: str, of: str, role: str, worker: MockWorker, served: str) -> dict[str, Any]:
    facts = WorkerFacts(engine="simulated", names=(served,), ports=WorkerPorts(http=worker.port))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {terms.LABEL_DEPLOYMENT: of, terms.LABEL_ROLE: role, terms.LABEL_REVISION: "abc"},
            "annotations": {terms.ANNOTATION_WORKER: facts.to_annotation()},
        },
        "spec": {
            # No node has this label: no kubelet runs it, so the test sets its status.
            "nodeSelector": {"turnout.dev/nowhere": "true"},
            "containers": [{"name": "worker", "image": "none"}],
        },
    }


def apply(cluster: Cluster, namespace: str, *manifests: dict[str, Any]) -> None:
    cluster.kubectl("apply", "--namespace", namespace, "--filename", "-", stdin=yaml.safe_dump_all(manifests))


def set_status(
    cluster: Cluster, namespace: str, name: str, address: str, *, ready: bool, started: bool = False
) -> None:
    container = {
        "name": "worker",
        "image": "none",
        "imageID": "",
        "restartCount": 0,
        "ready": ready,
        "started": True,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
    }
    status = {
        "containerStatuses": [container] if started else [],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": str(ready)}],
    }
    cluster.kubectl(
        *("patch", "pod", name, "--namespace", namespace, "--subresource", "status"),
        *("--type", "merge", "--patch", json.dumps({"status": status})),
    )


@asynccontextmanager
async def router_of(cluster: Cluster, *namespaces: str) -> AsyncIterator[tuple[Router, httpx.AsyncClient]]:
    access = load_access({"KUBECONFIG": str(cluster.kubeconfig)})
    settings = Settings(host="127.0.0.1", port=0, admin_port=0, shutdown_delay_seconds=0)
    router = Router(settings, KubernetesSource(access, namespaces))
    task = asyncio.create_task(router.run())
    await asyncio.wait_for(router.started.wait(), 20)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}", timeout=30) as client:
        await eventually(lambda: not router.not_ready_because, 30)
        yield router, client
    router.stop()
    await asyncio.wait_for(task, 20)


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.usefixtures("crds")
async def test_a_pod_serves_from_ready_to_draining(cluster: Cluster, namespace: str) -> None:
    """Not before it is ready; no longer once it drains, is unready or is deleted; and under the names that it knows."""
    async with mock_worker() as worker, router_of(cluster, namespace) as (_, client):
        apply(
            cluster,
            namespace,
            deployment("m", f"{namespace}-m"),
            pod("w", "m", "decode", worker, "own-name"),
        )

        async def answers(status: int) -> bool:
            answer = await client.post("/v1/chat/completions", json=chat(f"{namespace}-m"))
            return answer.status_code == status

        await eventually_async(lambda: answers(503))
        set_status(cluster, namespace, "w", worker.host, ready=True)
        await eventually_async(lambda: answers(200))
        assert worker.received[0].body["model"] == "own-name"
        assert (await client.post("/v1/chat/completions", json=chat(f"{namespace}/m"))).status_code == 200
        cluster.kubectl("label", "pod", "w", "--namespace", namespace, f"{terms.LABEL_DRAINING}=true")
        await eventually_async(lambda: answers(503))
        cluster.kubectl("label", "pod", "w", "--namespace", namespace, f"{terms.LABEL_DRAINING}-")
        await eventually_async(lambda: answers(200))
        set_status(cluster, namespace, "w", worker.host, ready=False)
        await eventually_async(lambda: answers(503))
        set_status(cluster, namespace, "w", worker.host, ready=True)
        await eventually_async(lambda: answers(200))
        cluster.kubectl("delete", "pod", "w", "--namespace", namespace, "--force", "--grace-period=0")
        await eventually_async(lambda: answers(503))
        cluster.kubectl("delete", "llmdeployment", "m", "--namespace", namespace)
        await eventually_async(lambda: answers(404))


@pytest.mark.usefixtures("crds")
async def test_workers_that_are_no_longer_ready_are_the_last_resort(cluster: Cluster, namespace: str) -> None:
    """Readiness of all of them fails: they serve on. As soon as one is ready again, it alone does."""
    async with mock_worker() as one, mock_worker() as other, router_of(cluster, namespace) as (_, client):
        apply(
            cluster,
            namespace,
            deployment("m", f"{namespace}-m"),
            pod("one", "m", "decode", one, "m"),
            pod("other", "m", "decode", other, "m"),
        )

        async def serves(*names_: str) -> bool:
            answers = [
                await client.post("/v1/chat/completions", json=chat(f"{namespace}-m")) for _ in range(4)
            ]
            seen = {answer.headers.get("x-turnout-backend") for answer in answers}
            return seen == {f"{namespace}/{name}" for name in names_}

        for name, worker in (("one", one), ("other", other)):
            set_status(cluster, namespace, name, worker.host, ready=True, started=True)
        await eventually_async(lambda: serves("one", "other"))
        set_status(cluster, namespace, "one", one.host, ready=False, started=True)
        await eventually_async(lambda: serves("other"))
        set_status(cluster, namespace, "other", other.host, ready=False, started=True)
        await eventually_async(lambda: serves("one", "other"))
        set_status(cluster, namespace, "one", one.host, ready=True, started=True)
        await eventually_async(lambda: serves("one"))


@pytest.mark.usefixtures("crds")
async def test_routes_and_keys_come_from_their_resources(cluster: Cluster, namespace: str) -> None:
    """An LLMRoute is a name, a TokenBudget a lock; both as soon as they are applied."""
    key = f"sk-{namespace}"
    route = {
        "apiVersion": terms.API_VERSION,
        "kind": "LLMRoute",
        "metadata": {"name": "r"},
        "spec": {"names": [f"{namespace}-chat"], "targets": [{"deployment": "m"}]},
    }
    budget = {
        "apiVersion": terms.API_VERSION,
        "kind": "TokenBudget",
        "metadata": {"name": "b"},
        "spec": {"keys": [{"name": "k", "sha256": hashlib.sha256(key.encode()).hexdigest()}]},
    }
    async with mock_worker() as worker, router_of(cluster, namespace) as (_, client):
        apply(cluster, namespace, deployment("m"), pod("w", "m", "aggregated", worker, "m"), route)
        set_status(cluster, namespace, "w", worker.host, ready=True)

        async def answers(status: int, **headers: str) -> bool:
            answer = await client.post(
                "/v1/chat/completions", json=chat(f"{namespace}-chat"), headers=headers
            )
            return answer.status_code == status

        await eventually_async(lambda: answers(200))
        apply(cluster, namespace, budget)
        await eventually_async(lambda: answers(401, authorization="Bearer wrong"))
        assert await answers(200, authorization=f"Bearer {key}")


@pytest.mark.usefixtures("crds")
async def test_the_last_fleet_serves_while_the_api_server_is_away(cluster: Cluster, namespace: str) -> None:
    """Killed API server: requests go on, /readyz stays 200, a gauge says stale; afterwards changes arrive again."""
    async with mock_worker() as worker, router_of(cluster) as (router, client):
        apply(
            cluster,
            namespace,
            deployment("m", f"{namespace}-m"),
            pod("w", "m", "aggregated", worker, f"{namespace}-m"),
        )
        set_status(cluster, namespace, "w", worker.host, ready=True)

        async def answers(status: int) -> bool:
            answer = await client.post("/v1/chat/completions", json=chat(f"{namespace}-m"))
            return answer.status_code == status

        await eventually_async(lambda: answers(200))
        cluster.kill("kube-apiserver")
        stale = "turnout_router_fleet_stale"
        await eventually(lambda: router._metrics.registry.get_sample_value(stale) == 1, 20)
        assert await answers(200)
        assert router.not_ready_because == ""
        await eventually(lambda: router._metrics.registry.get_sample_value(stale) == 0, 60)
        set_status(cluster, namespace, "w", worker.host, ready=False)
        await eventually_async(lambda: answers(503), 20)


async def test_the_charts_role_is_enough_and_no_more(cluster: Cluster, namespace: str) -> None:
    """The service account may follow the four collections, and neither read secrets nor write anything."""
    rendered = cluster.helm(
        *("template", "turnout", str(REPOSITORY / "charts" / "turnout"), "--namespace", namespace),
        *("--show-only", "templates/router-rbac.yaml"),
    )
    cluster.kubectl("apply", "--namespace", namespace, "--filename", "-", stdin=rendered)
    account = f"system:serviceaccount:{namespace}:turnout-router"

    def may(verb: str, resource: str) -> bool:
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": account,
                "resourceAttributes": {
                    "verb": verb,
                    "resource": resource.partition(".")[0],
                    "group": resource.partition(".")[2],
                    "namespace": namespace,
                },
            },
        }
        answer = cluster.kubectl(
            "create", "--filename", "-", "--output", "json", stdin=yaml.safe_dump(review)
        )
        return bool(json.loads(answer)["status"]["allowed"])

    followed = ("llmdeployments.turnout.dev", "llmroutes.turnout.dev", "tokenbudgets.turnout.dev", "pods")
    assert all(may(verb, resource) for verb in ("list", "watch") for resource in followed)
    assert not any(may("get", resource) for resource in ("secrets", "configmaps"))
    assert not any(may(verb, "pods") for verb in ("patch", "delete", "create"))


@pytest.mark.usefixtures("crds")
async def test_rights_in_the_watched_namespaces_are_enough(cluster: Cluster, namespace: str) -> None:
    """With watchNamespaces there is no ClusterRole: the router sees the fleets of these namespaces and of no other one."""
    second, other = (f"{namespace}-{name}" for name in ("b", "c"))
    release = f"t{uuid.uuid4().hex[:8]}"
    for name in (second, other):
        cluster.kubectl("create", "namespace", name)
    try:
        rendered = cluster.helm(
            *("template", release, str(REPOSITORY / "charts" / "turnout"), "--namespace", namespace),
            *("--show-only", "templates/router-rbac.yaml"),
            *("--set", f"watchNamespaces={{{namespace},{second}}}"),
        )
        kinds = [document["kind"] for document in yaml.safe_load_all(rendered)]
        assert "ClusterRole" not in kinds
        assert kinds.count("RoleBinding") == kinds.count("Role") >= 2
        cluster.kubectl("apply", "--filename", "-", stdin=rendered)
        token = cluster.kubectl(
            *("create", "token", f"{release}-turnout-router", "--namespace", namespace, "--duration=1h")
        ).strip()
        admin = load_access({"KUBECONFIG": str(cluster.kubeconfig)})
        authority = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
        tls = ssl.create_default_context(
            cadata=base64.b64decode(authority["certificate-authority-data"]).decode()
        )
        access = replace(admin, tls=tls, authorization=lambda: f"Bearer {token}")
        for name in (namespace, second, other):
            apply(cluster, name, deployment("m"))
        settings = Settings(host="127.0.0.1", port=0, admin_port=0, shutdown_delay_seconds=0)
        router = Router(settings, KubernetesSource(access, (namespace, second)))
        task = asyncio.create_task(router.run())
        await asyncio.wait_for(router.started.wait(), 20)
        await eventually(lambda: not router.not_ready_because, 30)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{router.port}", timeout=30) as client:

            async def answers(deployment_of: str, status: int) -> bool:
                answer = await client.post("/v1/chat/completions", json=chat(f"{deployment_of}/m"))
                return answer.status_code == status

            await eventually_async(lambda: answers(namespace, 503))
            await eventually_async(lambda: answers(second, 503))
            assert await answers(other, 404)
            cluster.kubectl("delete", "llmdeployment", "m", "--namespace", second)
            await eventually_async(lambda: answers(second, 404))  # it is watched, not only listed
        router.stop()
        await asyncio.wait_for(task, 20)
    finally:
        for name in (second, other):
            cluster.kubectl("delete", "namespace", name, "--wait=false")
