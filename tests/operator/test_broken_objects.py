"""Objects that this version cannot use, among others that it can. On a cluster whose schema is too lax."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from support.operator_node import TestNode
from support.operator_process import OperatorProcess, apply, condition, get, install, items, wait_until
from turnout_devcluster.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster

SYSTEM = "turnout-system"
CRDS = Path(__file__).resolve().parents[2] / "crds"


@pytest.fixture(scope="module")
def lax() -> Iterator[Cluster]:
    """Start a cluster whose CRD takes anything, as one of another version might."""
    with Cluster.up(
        f"lax-{os.getpid()}", nodes=0, accelerators={"H100-SXM": 1}, owner_pid=os.getpid()
    ) as cluster:
        cluster.kubectl("create", "namespace", SYSTEM)
        install(cluster, SYSTEM)
        crd = yaml.safe_load((CRDS / "llmdeployments.yaml").read_text())
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = {
            "type": "object",
            "properties": {"spec": anything, "status": anything},
        }
        cluster.kubectl("replace", "--filename", "-", stdin=yaml.safe_dump(crd))
        subnet = f"127.{random.randint(2, 60)}.{random.randint(1, 250)}"  # noqa: S311 - no secret
        with TestNode(cluster, "test-node", subnet, accelerators=100):
            yield cluster


@pytest.fixture(scope="module")
def operator(lax: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """Run one operator for the whole cluster."""
    with OperatorProcess(lax, SYSTEM, tmp_path_factory.mktemp("operator")) as process:
        yield process


def manifest(name: str, **spec: Any) -> dict[str, Any]:
    pool = {"replicas": {"min": 1, "max": 1}, "accelerator": {"type": "L40S", "count": 1}}
    usual = {
        "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct"},
        "engine": {"type": "simulated"},
        "decode": pool,
    }
    return {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        "spec": {**usual, **spec},
    }


def ready(cluster: Cluster, name: str) -> dict[str, Any]:
    return condition(get(cluster, "default", "llmd", name), "Ready")


BROKEN: dict[str, dict[str, Any]] = {
    "no-model": {"model": None},
    "bad-duration": {"slo": {"timeToFirstToken": "soon"}},
    "zero-objective": {"slo": {"timeToFirstToken": "0s"}},
    "upside-down": {"decode": {"replicas": {"min": 3, "max": 1}, "accelerator": {"type": "L40S"}}},
    "unknown-accelerator": {"decode": {"accelerator": {"type": "ABACUS"}}},
    "text-for-pools": {"decode": "many"},
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_what_cannot_be_used_says_why(lax: Cluster, operator: OperatorProcess, name: str) -> None:
    """A stored object that does not validate ends in a condition with the reason, not in a crash loop."""
    apply(lax, "default", manifest(name, **BROKEN[name]))
    wait_until(name, lambda: ready(lax, name).get("reason") == "InvalidSpec", processes=(operator,))
    assert ready(lax, name)["message"]
    assert operator.process is not None
    assert operator.process.poll() is None
    lax.kubectl("delete", "llmd", name)


def test_an_object_of_an_older_schema_loads(lax: Cluster, operator: OperatorProcess) -> None:
    """Fields that this version does not know are left out; it serves."""
    old = manifest("old", phase="Running", replicaBudget=3)
    old["spec"]["model"]["quantization"] = "int3"
    apply(lax, "default", old)
    wait_until("Ready", lambda: ready(lax, "old").get("status") == "True", processes=(operator,))
    lax.kubectl("delete", "llmd", "old")


def test_fifty_at_once_and_a_broken_one(lax: Cluster, operator: OperatorProcess) -> None:
    """Fifty deployments get ready; the broken one among them reports why it is not, and the others are not affected."""
    names = [f"many-{number}" for number in range(50)]
    apply(lax, "default", *(manifest(name) for name in names), manifest("broken", decode="none"))

    def missing() -> list[str]:
        found = {item["metadata"]["name"]: condition(item, "Ready") for item in items(lax, "default", "llmd")}
        return [name for name in names if found.get(name, {}).get("status") != "True"]

    wait_until("all fifty are ready", lambda: not missing(), 90, (operator,))
    assert ready(lax, "broken")["reason"] == "InvalidSpec"
    lax.kubectl("delete", "llmd", "--all", "--wait=false")
    wait_until("all is gone", lambda: not items(lax, "default", "deployments,pods"), 90, (operator,))
