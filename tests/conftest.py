"""What every suite shares: the dev cluster, a namespace of its own in it, and how processes share the tests out."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psutil
import pytest
import yaml
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from support.router_running import eventually
from turnout_devcluster.binaries import find_binaries
from turnout_devcluster.cluster import Cluster
from turnout_devcluster.existing import ExistingCluster
from turnout_devcluster.progress import Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from xdist.remote import Producer

EXISTING: Final = "TURNOUT_TEST_KUBECONFIG"
"""Kubeconfig of a cluster to test on instead of starting one. Tests that kill its parts cannot pass there."""

# How long an example takes depends on the neighbors, too.
settings.register_profile("neighbors", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("neighbors")


class ScopeScheduling(LoadScopeScheduling):
    """Gives a process (`pytest -n 3`) a whole file of tests at a time, or all that share an installation."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", maxsplit=1)[0]
        return "end_to_end" if "/end_to_end/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ScopeScheduling:
    """Hand the scopes out in the order in which they are collected, which `pytest_collection_modifyitems` chose."""
    config.option.loadscopereorder = False
    return ScopeScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Begin with what takes longest where several processes share the tests: none is left alone with it at the end."""
    if not hasattr(config, "workerinput"):
        return
    slow = {item.path for item in items if item.get_closest_marker("cluster")}
    items.sort(key=lambda item: 0 if "end_to_end" in item.path.parts else 1 if item.path in slow else 2)


@pytest.fixture(autouse=True)
def no_exception_stays_handled() -> Iterator[None]:
    """Fail a test after which the thread still counts an exception as being handled.

    Compiled code does so where a coroutine is suspended in an `except` or `finally` block: every later exception gets that one
    as its context, and its frames are kept.
    """
    before = sys.exc_info()[1]
    yield
    left = sys.exc_info()[1]
    assert left is None or left is before, f"still being handled: {left!r}"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the control plane before the first test, where the minutes that it takes count as no test's time."""
    needed = any(item.get_closest_marker("cluster") for item in session.items)
    if needed and not session.config.option.collectonly and EXISTING not in os.environ:
        find_binaries(Progress())


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster | ExistingCluster]:
    """One dev cluster for the whole run; it ends with the run, also with a killed one.

    Two nodes of each kind, with accelerators enough that only a test that wants to can run out of them.
    """
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if EXISTING in os.environ:
        yield ExistingCluster.of(Path(os.environ[EXISTING]), Progress())
        return
    # The person who waits shall see for what.
    with capture.global_and_fixture_disabled():
        started = Cluster.up(
            f"test-{os.getpid()}",
            nodes=2,
            accelerators={"H100-SXM": 64, "H200-SXM": 8},
            owner_pid=os.getpid(),
        )
    with started:
        yield started


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """Name of a new namespace that pods can run in; it is deleted afterwards with all that is in it."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("-n", name, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
async def closed_connections(cluster: Cluster) -> AsyncIterator[None]:
    """Keep the test's event loop until this process' connections to the API server are closed.

    With TLS that takes an answer of the other side, for which aiohttp does not wait where a watch is broken off.
    """
    yield
    kubeconfig = yaml.safe_load(cluster.kubeconfig.read_text())
    server = urlsplit(kubeconfig["clusters"][0]["cluster"]["server"])
    here = psutil.Process()
    await eventually(
        lambda: all(
            not one.raddr or one.raddr.port != server.port or one.raddr.ip != server.hostname
            for one in here.net_connections("tcp")
        ),
        60,
    )
