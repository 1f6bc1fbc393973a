"""The demo's watches on a real API server: what changes there is known here, also after the server was away."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from support.demo_values import raw_deployment, scaling
from turnout.api import load_deployment
from turnout_cli.demo.errors import ReadError
from turnout_cli.demo.fleet import ApiServer, FleetWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_devcluster.cluster import Cluster

CRDS = Path(__file__).parents[2] / "crds"


async def until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the change comes from the API server
            await asyncio.sleep(0.05)


def patch_status(cluster: Cluster, namespace: str, **status: object) -> None:
    cluster.kubectl(
        *("patch", "llmdeployment", "tiny", "--namespace", namespace, "--subresource", "status"),
        *("--type", "merge", "--patch", json.dumps({"status": status})),
    )


@pytest.mark.cluster
async def test_status_and_scalings_are_heard(cluster: Cluster, namespace: str) -> None:
    """Replicas and scaling sentences arrive by watch, and go on arriving after the API server was killed."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(CRDS))
    cluster.kubectl("wait", "--for=condition=Established", "crd/llmdeployments.turnout.dev", "--timeout=30s")
    manifest = raw_deployment()
    manifest["metadata"] = {"name": "tiny", "namespace": namespace}
    cluster.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(manifest))
    async with FleetWatch(ApiServer.of(cluster), load_deployment(manifest)) as watched:
        await asyncio.to_thread(
            patch_status, cluster, namespace, decode={"desired": 2, "ready": 1}, lastScaling=scaling(1)
        )
        await until(lambda: watched.fleet.decode.ready == 1 and len(watched.fleet.scalings) == 1)
        await asyncio.to_thread(cluster.kill, "kube-apiserver")
        await until(lambda: watched.fleet.stale)
        await until(lambda: not watched.fleet.stale)
        await asyncio.to_thread(
            patch_status, cluster, namespace, decode={"desired": 2, "ready": 2}, lastScaling=scaling(2)
        )
        await until(lambda: watched.fleet.decode.ready == 2 and len(watched.fleet.scalings) == 2)


async def test_a_silent_api_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server there: after a deadline the error names the server and the request, and no task is left behind."""
    monkeypatch.setattr("turnout_cli.demo.fleet._FIRST_WORD_SECONDS", 0.5)
    silent = ApiServer("https://127.0.0.1:1", ssl.create_default_context())
    with pytest.raises(
        ReadError, match=r"LLMDeployment default/tiny from https://127\.0\.0\.1:1.*connection attempts failed"
    ):
        async with FleetWatch(silent, load_deployment(raw_deployment())):
            pass
    assert len(asyncio.all_tasks()) == 1
