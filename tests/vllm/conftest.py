"""Engines for the contract: simulated workers, and with TURNOUT_TEST_VLLM (`make test-vllm`) vLLM beside them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, get_args

import pytest

from support.worker_contract import Contract, Pair, contract_of
from support.worker_process import running_worker
from turnout.terms import Role
from turnout_devcluster.progress import Progress
from turnout_devcluster.vllm.models import ensure_model
from turnout_devcluster.vllm.server import ServerSettings, VllmServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REAL: Final = "TURNOUT_TEST_VLLM" in os.environ
LEASE_SECONDS: Final = 10
Start = Callable[..., list[VllmServer]]
collect_ignore_glob = [] if REAL else ["test_over_vllm*.py"]


@pytest.fixture(scope="session", params=["simulated", *(["vllm"] if REAL else [])])
def kind(request: pytest.FixtureRequest) -> str:
    """Which engine is asked."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Return the folder of the model with two random layers."""
    return ensure_model("tiny", Progress())


@pytest.fixture(scope="session")
def start(request: pytest.FixtureRequest) -> Start:
    """Start vLLM servers, all at once. The person who waits sees for what."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def started(*wanted: ServerSettings, host: str | None = None) -> list[VllmServer]:
        with capture.global_and_fixture_disabled(), ThreadPoolExecutor() as pool, ExitStack() as stack:
            progress = Progress()
            tasks = [pool.submit(VllmServer, settings, progress, host=host) for settings in wanted]
            for task in tasks:
                stack.enter_context(task.result())
            stack.pop_all()  # all of them are healthy
            return [task.result() for task in tasks]

    return started


@pytest.fixture(scope="session")
def vllm_servers(start: Start, tiny: Path) -> Iterator[dict[str, VllmServer]]:
    """Run an aggregated server and a pair, by role, for all tests that leave them alive."""
    details = ("--enable-prompt-tokens-details",)
    with ExitStack() as stack:
        servers = start(
            *[
                ServerSettings(tiny, "tiny", role=role, arguments=details, kv_lease_seconds=LEASE_SECONDS)
                for role in get_args(Role)
            ]
        )
        yield {server.settings.role: stack.enter_context(server) for server in servers}


@pytest.fixture(scope="session")
def engine(kind: str, request: pytest.FixtureRequest) -> Iterator[Contract]:
    """Return an engine that prefills and decodes."""
    if kind == "vllm":
        servers = request.getfixturevalue("vllm_servers")
        yield contract_of(servers["aggregated"].url, simulated=False)
        return
    with running_worker(time_scale=10) as worker:
        yield contract_of(worker.url, simulated=True)


@pytest.fixture(scope="session")
def pair(kind: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Return a prefill and a decode worker that know nothing of each other yet."""
    if kind == "vllm":
        servers = request.getfixturevalue("vllm_servers")
        yield Pair(*[contract_of(servers[role].url, simulated=False) for role in ("prefill", "decode")])
        return
    lease = {"kv_lease_seconds": LEASE_SECONDS}
    with running_worker(role="prefill", **lease) as prefill, running_worker(role="decode") as decode:
        yield Pair(contract_of(prefill.url, simulated=True), contract_of(decode.url, simulated=True))
