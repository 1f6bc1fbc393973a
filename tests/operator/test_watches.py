"""kopf's watches on a real API server: what ends them, and that they can be started again in the same process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from support.operator_process import apply, install
from support.operator_values import raw_deployment
from support.router_running import eventually
from turnout_operator.kube.credentials import Credentials
from turnout_operator.kube.kinds import LLM_DEPLOYMENT
from turnout_operator.observe.watch import watch

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("closed_connections")]


async def test_watches_that_failed_can_be_started_again(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in the middle of kopf comes out of it; the next watches of the process report as the first did."""
    install(cluster, namespace)
    connect = Credentials({"KUBECONFIG": str(cluster.kubeconfig)}).connection
    seen: list[str] = []

    def report(_: object, type_: str | None, raw: dict[str, Any]) -> None:
        seen.append(f"{type_} {raw['metadata']['name']}")

    async def run(stop: asyncio.Event) -> None:
        await watch(
            report, connect, namespace=namespace, kinds=[LLM_DEPLOYMENT], stop=stop, spawned=lambda: None
        )

    manifest = raw_deployment()

    def make(name: str) -> None:
        apply(cluster, namespace, {**manifest, "metadata": {"name": name}})

    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("in the middle of kopf")

    with monkeypatch.context() as patched:
        patched.setattr("kopf._core.reactor.orchestration.adjust_tasks", broken)
        with pytest.raises(RuntimeError, match="in the middle of kopf"):
            await asyncio.wait_for(run(asyncio.Event()), 30)
    stop = asyncio.Event()
    watching = asyncio.create_task(run(stop))
    await asyncio.to_thread(make, "one")
    await eventually(lambda: any(event.endswith(" one") for event in seen), 30)
    stop.set()
    await asyncio.wait_for(watching, 20)
