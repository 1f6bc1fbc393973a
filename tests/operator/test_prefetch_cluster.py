"""A prefetch on the dev cluster: the Job copies from a server that speaks the hub's API, and workers start when it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.installation import llmdeployment
from support.operator_process import apply, condition, get, items, wait_until
from support.sources_servers import FILES, hub_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.operator_process import OperatorProcess
    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
"""One whose size is known: another one would not be copied."""


def cached(cluster: Cluster, namespace: str) -> dict[str, Any]:
    return condition(get(cluster, namespace, "llmd", "cached"), "ModelCached")


def test_refused_then_copied(
    cluster: Cluster, namespace: str, start: Callable[..., OperatorProcess], tmp_path: Path
) -> None:
    """A missing token is the condition's reason; with the token the same deployment's cache fills, then its workers start."""
    operator = start("operator-0", "--host-paths", "allow")
    with hub_server(MODEL) as hub:
        hub.token = "hf_right"
        hub.pass_on.clear()
        made = llmdeployment("cached")
        cache = tmp_path / "cache"
        made["spec"]["model"] |= {
            "source": f"hf://{MODEL}",
            "endpoint": hub.url,
            "cache": {"type": "HostPath", "path": str(cache)},
            "prefetch": True,
        }
        apply(cluster, namespace, made)
        wait_until(
            "Unauthorized",
            lambda: cached(cluster, namespace).get("reason") == "Unauthorized",
            processes=(operator,),
        )
        assert "asks for a token (401)" in cached(cluster, namespace)["message"]
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "hub-token"},
            "stringData": {"HF_TOKEN": "hf_right"},
        }
        apply(cluster, namespace, secret)
        made["spec"]["model"]["secretName"] = "hub-token"
        apply(cluster, namespace, made)
        wait_until("the download", hub.asked_for_weights.is_set, processes=(operator,))
        assert items(cluster, namespace, "deployments") == []
        hub.pass_on.set()
        wait_until(
            "Copied", lambda: cached(cluster, namespace).get("reason") == "Copied", processes=(operator,)
        )
    (marker,) = cache.glob("*/.turnout-complete.json")
    weights = "model-1.safetensors"
    assert (marker.parent / weights).read_bytes() == FILES[weights]
    wait_until(
        "Ready",
        lambda: condition(get(cluster, namespace, "llmd", "cached"), "Ready")["status"] == "True",
        processes=(operator,),
    )
    assert len(items(cluster, namespace, "jobs")) == 1
