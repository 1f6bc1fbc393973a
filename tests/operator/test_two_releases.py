"""Two releases of Turnout in one cluster that look after the same namespace: one acts, the other says so."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.installation import llmdeployment
from support.operator_node import ACCELERATOR
from support.operator_process import OperatorProcess, apply, condition, get, install, items, wait_until
from turnout_operator.namespace_leases import CLUSTER, MARK, TIMING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from turnout_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("node")]

TAKE_OVER_SECONDS = TIMING.duration_seconds + 3 * TIMING.retry_seconds


def manifest(name: str = "llama") -> dict[str, Any]:
    made = llmdeployment(name, prefill=None, decode=(1, 1))
    made["spec"]["decode"]["accelerator"]["type"] = ACCELERATOR
    return made


@contextmanager
def release(
    cluster: Cluster, folder: Path, identity: str, *namespaces: str, image: str = ""
) -> Iterator[OperatorProcess]:
    """Install and run a release of its own, under the rights of the chart for these *namespaces* (none: for all)."""
    home = f"home-{uuid.uuid4().hex[:10]}"
    cluster.kubectl("create", "namespace", home)
    install(cluster, home, *([f"watchNamespaces={{{','.join(namespaces)}}}"] if namespaces else []))
    flags = [f"--watch-namespace={namespace}" for namespace in namespaces]
    if image:
        flags.append(f"--worker-image={image}")
    try:
        with OperatorProcess(cluster, home, folder, identity, tuple(flags)) as process:
            yield process
    finally:
        cluster.kubectl("delete", "clusterrole,clusterrolebinding", f"{home}-operator", "--ignore-not-found")
        cluster.kubectl("delete", "namespace", home, "--wait=false")


def written(process: OperatorProcess) -> float:
    """Return how many requests have changed something, but for its own lease and what it says in Events."""
    lines = process.get("/metrics")[1].splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("turnout_operator_api_requests_total{")
        and any(f'verb="{verb}"' in line for verb in ("apply", "patch", "create", "delete"))
        and not any(f'resource="{plural}"' in line for plural in ("leases", "events"))
    )


def ready(cluster: Cluster, namespace: str) -> bool:
    return condition(get(cluster, namespace, "llmd", "llama"), "Ready").get("status") == "True"


def test_the_second_release_stands_still_until_the_first_is_gone(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """With another worker image. It writes nothing and says why; no revision, no pod and no status changes."""
    with release(cluster, tmp_path, "first", namespace) as first:
        apply(cluster, namespace, manifest())
        wait_until("Ready", lambda: ready(cluster, namespace), processes=(first,))
        with release(cluster, tmp_path, "second", namespace, image="other:2") as second:
            wait_until("it leads its own", second.leads, processes=(second,))
            wait_until(
                "it says so",
                lambda: f"{first.namespace}/" in second.get("/readyz")[1],
                processes=(second,),
            )
            assert second.get("/readyz")[0] == 200
            assert 'turnout_operator_namespaces{release="other"} 1.0' in second.get("/metrics")[1]
            reasons = [item["reason"] for item in items(cluster, second.namespace, "events")]
            assert reasons == ["StandingStill"]
            before = get(cluster, namespace, "llmd", "llama")
            pods = {item["metadata"]["uid"] for item in items(cluster, namespace, "pods")}
            renewals = first.metric("turnout_operator_scaling_decisions_total")
            wait_until(
                "ten decisions of the first",
                lambda: first.metric("turnout_operator_scaling_decisions_total") >= renewals + 10,
                processes=(first, second),
            )
            assert written(second) == 0
            after = get(cluster, namespace, "llmd", "llama")
            assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
            assert {item["metadata"]["uid"] for item in items(cluster, namespace, "pods")} == pods
            first.kill()
            killed_at = time.monotonic()
            wait_until(
                "the second acts",
                lambda: any(
                    pool["spec"]["template"]["spec"]["containers"][0]["image"] == "other:2"
                    for pool in items(cluster, namespace, "deployments")
                ),
                TAKE_OVER_SECONDS + 10,
                (second,),
            )
            assert time.monotonic() - killed_at <= TAKE_OVER_SECONDS + 5
            assert second.get("/readyz")[1] == "ok\n"
            assert json.loads(json.dumps(get(cluster, namespace, "lease", MARK)))["spec"][
                "holderIdentity"
            ].startswith(second.namespace)


def test_a_release_for_some_namespaces_beside_one_for_all(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """Each under its own rights; the release for all namespaces leaves that one out, and a second one for all stands still."""
    with release(cluster, tmp_path, "some", namespace) as some:
        wait_until("its namespace is marked", lambda: get(cluster, namespace, "lease", MARK), 30, (some,))
        with release(cluster, tmp_path, "all") as everywhere:
            wait_until(
                "it marks the cluster", lambda: get(cluster, CLUSTER, "lease", MARK), 30, (everywhere,)
            )
            with release(cluster, tmp_path, "too") as too:
                apply(cluster, namespace, manifest())
                wait_until("Ready", lambda: ready(cluster, namespace), processes=(some,))
                wait_until(
                    "both say so",
                    lambda: (
                        f"stands still in {namespace}" in everywhere.get("/readyz")[1]
                        and f"stands still: the operator of release {everywhere.namespace}/"
                        in too.get("/readyz")[1]
                    ),
                    processes=(everywhere, too),
                )
                assert written(everywhere) == 0
                assert written(too) == 0
