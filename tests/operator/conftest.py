"""Fixtures of the operator's tests on the dev cluster: its rights, a node under control, the process itself."""

from __future__ import annotations

import random
import uuid
from typing import TYPE_CHECKING

import pytest

from support.operator_node import TestNode
from support.operator_process import OperatorProcess, install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from turnout_devcluster.cluster import Cluster


@pytest.fixture(scope="module")
def home(cluster: Cluster) -> Iterator[str]:
    """Namespace in which the operator is installed, with the rights of the chart."""
    name = f"home-{uuid.uuid4().hex[:10]}"
    cluster.kubectl("create", "namespace", name)
    install(cluster, name)
    yield name
    cluster.kubectl("delete", "clusterrole,clusterrolebinding", f"{name}-operator")
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[TestNode]:
    """Run a node whose pods do what a test says."""
    subnet = f"127.{random.randint(2, 60)}.{random.randint(1, 250)}"  # noqa: S311 - no secret
    with TestNode(cluster, f"test-node-{uuid.uuid4().hex[:6]}", subnet, accelerators=200) as started:
        yield started


@pytest.fixture
def start(
    cluster: Cluster, home: str, namespace: str, tmp_path: Path
) -> Iterator[Callable[..., OperatorProcess]]:
    """Start operators that look after the test's namespace; they end with the test."""
    started: list[OperatorProcess] = []

    def begin(identity: str = "operator-0", *more: str) -> OperatorProcess:
        """Start one that has *more* arguments."""
        process = OperatorProcess(cluster, home, tmp_path, identity, ("--watch-namespace", namespace, *more))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
    # No test waits for the lease of an operator that is gone.
    cluster.kubectl("delete", "lease", f"{home}-operator", "--namespace", home, "--ignore-not-found")


@pytest.fixture
def operator(start: Callable[..., OperatorProcess]) -> OperatorProcess:
    """Return one operator that runs."""
    return start()
