"""Whatever a part of the router raises, it is counted and survived: requests are served, and the part works on."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.faults import Behind, errors, errors_of_awaiting, faulty, slamming_port
from support.router_mock_backend import mock_worker
from support.router_peers import router_process, serving
from support.router_running import (
    DEPLOYMENT,
    MODEL,
    Running,
    chat,
    config,
    eventually,
    eventually_async,
    running_router,
)
from support.worker_process import free_port
from turnout.api.worker_facts import WorkerFacts, WorkerPorts
from turnout.routing import HealthPolicy
from turnout.terms import ANNOTATION_WORKER
from turnout_router import main
from turnout_router.admin import AdminApp
from turnout_router.errors import ConfigError, UpstreamError
from turnout_router.fleet.discovery import file, kubernetes
from turnout_router.fleet.discovery.file import FileSource
from turnout_router.fleet.discovery.kubernetes import KubernetesSource
from turnout_router.fleet.kube import Access
from turnout_router.fleet.peers import client
from turnout_router.fleet.peers.client import PeerClient
from turnout_router.fleet.peers.discovery import StaticPeers
from turnout_router.fleet.peers.mesh import Mesh
from turnout_router.fleet.peers.sender import PeerSender
from turnout_router.fleet.peers.server import PeerServer
from turnout_router.fleet.scrapes.scraper import Scraper
from turnout_router.http1 import listener, tls
from turnout_router.http1.tls import Certificate
from turnout_router.main import Router
from turnout_router.request import checks
from turnout_router.request.checks import HealthChecks
from turnout_router.settings import PeerSettings, Settings, UpstreamLimits
from turnout_router.tasks import TASKS
from turnout_router.upstream.answers import Collected
from turnout_router.upstream.pools import ConnectionPool, ConnectionPools
from turnout_runtime.supervision import Backoff, Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from support.router_mock_backend import MockWorker
    from turnout_router.http1.http import Request
    from turnout_router.http1.response import Response
    from turnout_router.outcome import Outcome

OFTEN = 0.02
PAGE = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
QUICK = Backoff(first_seconds=0.001, most_seconds=0.005)
SOON = UpstreamLimits(health=HealthPolicy(first_seconds=0.05, longest_seconds=0.05, probe_seconds=0.05))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no test wait long for what is begun anew."""
    monkeypatch.setattr(main, "Supervisor", partial(Supervisor, backoff=QUICK))
    monkeypatch.setattr(checks, "_EVERY_SECONDS", 0.01)


async def failures(r: Running, task: str) -> float:
    return await r.metric("turnout_router_task_failures_total", task=task)


async def survives(r: Running, task: str, count: int, model: str = MODEL) -> None:
    """Wait until *count* failures of *task* have been counted, and see that requests are served all the same."""

    async def counted() -> bool:
        return await failures(r, task) >= count

    await eventually_async(counted, 30)
    assert await failures(r, task) == count
    for _ in range(3):
        assert (await r.chat(model=model)).status_code == 200
    assert not r.stopped.done()


@asynccontextmanager
async def router(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Running, MockWorker, MockWorker]]:
    """Run a router in front of two good workers."""
    async with mock_worker(page=PAGE) as one, mock_worker(page=PAGE) as other:
        content = config([("aggregated", one.url), ("aggregated", other.url)])
        async with running_router(tmp_path, content, **({"scrape_seconds": OFTEN} | settings)) as r:
            yield r, one, other


# A worker that accepts and closes


@pytest.mark.parametrize("interval", ["0.05", "0"], ids=["scraped", "not scraped"])
async def test_a_worker_that_closes_every_connection_harms_no_one(tmp_path: Path, interval: str) -> None:
    """As its own process, on the event loop of production: no client sees anything, and the worker is left alone."""
    port, admin_port = free_port(), free_port()
    async with mock_worker(page=PAGE) as good:
        with slamming_port() as bad:
            content = config([("aggregated", bad.url), ("aggregated", good.url)])
            flags = ("--scrape-interval", interval, "--admin-port", str(admin_port))
            with router_process(tmp_path, content, port, *flags) as process:
                await serving(port)
                async with (
                    httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
                    httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin_port}", timeout=30) as admin,
                ):
                    if interval != "0":
                        await eventually(lambda: bad.accepted >= 10)  # without a single request
                    for number in range(60):
                        ask = chat(f"{number}", stream=bool(number % 2))
                        answer = await client.post("/v1/chat/completions", json=ask)
                        assert answer.status_code == 200
                    asked = bad.accepted
                    await eventually(lambda: bad.accepted >= asked + 4)  # it is asked for its health
                    groups = (await admin.get("/admin/fleet")).json()["deployments"]
                    page = (await admin.get("/metrics")).text
                    assert {b["id"] for b in groups[DEPLOYMENT] if b["ejected"]} == {bad.id}
                assert process.poll() is None
    retried = f'turnout_router_retries_total{{deployment="{DEPLOYMENT}",reason="reset"}}'
    assert retried in page
    assert not [
        line
        for line in page.splitlines()
        if line.startswith("turnout_router_task_failures_total") and not line.endswith(" 0.0")
    ]


@pytest.mark.parametrize(
    "host",
    ["a" * 64 + ".example", ".example", "256.256.256.256.256", "127.0.0.1%25zone", "b\u00fccher.invalid"],
)
async def test_a_worker_whose_address_is_none_is_a_worker_that_cannot_be_reached(
    tmp_path: Path, host: str
) -> None:
    """Names that cannot be encoded, numbers that are no address: the other worker serves."""
    async with mock_worker(page=PAGE) as good:
        content = config([("aggregated", f"http://{host}:80"), ("aggregated", good.url)])
        async with running_router(tmp_path, content, scrape_seconds=OFTEN) as r:
            for _ in range(8):
                assert (await r.chat()).status_code == 200
            assert await r.metric("turnout_router_retries_total", reason="connect") >= 1


# One worker's connections


async def test_whatever_connecting_raises_is_the_workers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of exception: repaired by the other worker, and the one that cannot be connected to is left alone."""
    loop = asyncio.get_running_loop()
    connect, raised = loop.create_connection, 0
    async with mock_worker(page=PAGE) as bad, mock_worker(page=PAGE) as good:

        async def raising(factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:
            nonlocal raised
            if port != bad.port:
                return await connect(factory, host, port, **more)
            raised += 1
            raise kinds[raised % len(kinds)]

        kinds = errors_of_awaiting()
        content = config([("aggregated", bad.url), ("aggregated", good.url)])
        async with running_router(tmp_path, content, scrape_seconds=OFTEN, upstream=SOON) as r:
            monkeypatch.setattr(loop, "create_connection", raising)

            async def ejected() -> bool:
                assert (await r.chat(stream=True)).status_code == 200
                groups = (await r.admin.get("/admin/fleet")).json()["deployments"]
                return [b["id"] for b in groups[DEPLOYMENT] if b["ejected"]] == [bad.id]

            await eventually_async(ejected)
            await eventually(lambda: raised > 3 * len(kinds))  # checks go on
            monkeypatch.setattr(loop, "create_connection", connect)

            async def served_again() -> bool:
                assert (await r.chat()).status_code == 200
                return bool(bad.received)

            await eventually_async(served_again)
            assert [await failures(r, task) for task in TASKS] == [0] * len(TASKS)


class Raising:
    """An answer whose taker fails: at its head, or at its body."""

    def __init__(self, error: BaseException, where: str) -> None:
        self._error = error
        self._where = where

    def on_head(self, _status: int, _fields: Any) -> None:
        if self._where == "head":
            raise self._error

    def on_body(self, _data: bytes) -> bool:
        if self._where == "body":
            raise self._error
        return False


@asynccontextmanager
async def pool_of(worker: MockWorker) -> AsyncIterator[tuple[ConnectionPool, list[str]]]:
    noted: list[str] = []
    kept = ConnectionPools(UpstreamLimits(), lambda name, _: noted.append(name))
    kept.start()
    try:
        yield kept.of(("127.0.0.1", worker.port)), noted
    finally:
        kept.stop()


async def ask(pool: ConnectionPool, answer: Any, body: dict[str, Any] | None = None) -> None:
    data = json.dumps(body or chat()).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data)
    async with asyncio.timeout(10):
        await pool.exchange(head + data, answer, seconds=5, idle_seconds=None, what="it")


@pytest.mark.parametrize("where", ["head", "body"])
async def test_a_handler_of_an_answer_that_fails_ends_only_its_exchange(where: str) -> None:
    """Nothing gets into the event loop, no request waits forever, it counts as the router's own fault, and the next one is served."""
    loop_failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_failures.append(context))
    async with mock_worker() as worker, pool_of(worker) as (pool, noted):
        for error in errors_of_awaiting():
            with pytest.raises(UpstreamError) as caught:
                await ask(pool, Raising(error, where))
            assert (caught.value.fault, caught.value.is_ill) == ("internal", False)
            assert type(error).__name__ in str(caught.value)
            assert not pool.in_use
            answer = Collected(10_000)
            await ask(pool, answer)
            assert answer.status == 200
        with pytest.raises(UpstreamError, match="no more of it"):
            await ask(pool, Raising(UpstreamError("protocol", "no more of it"), where))
    assert noted == ["worker"] * len(errors_of_awaiting())
    assert not loop_failures


async def test_whatever_a_transport_raises_is_the_connections_end() -> None:
    """A kept connection that fails on writing is replaced, a new one counts as reset; the exchange ends in any case."""
    async with mock_worker() as worker, pool_of(worker) as (pool, _):
        for error in errors():

            def write(_: bytes, error: Exception = error) -> None:
                raise error

            await ask(pool, Collected(10_000))
            (connection,) = pool._kept
            connection._transport = Behind(connection._transport, write=write)  # type: ignore[assignment]
            answer = Collected(10_000)
            await ask(pool, answer)
            assert answer.status == 200
            assert pool._kept != [connection]


# Tasks


async def test_a_scrape_that_fails_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of exception in the scrape of one worker; both are scraped again afterwards."""
    kinds = errors_of_awaiting()
    fault = faulty(Scraper, "_scrape", kinds)
    monkeypatch.setattr(Scraper, "_scrape", fault)
    count = len(kinds)
    async with router(tmp_path) as (r, one, other):
        await survives(r, "scrape", count)
        before = one.scrapes, other.scrapes
        await eventually(lambda: one.scrapes > before[0] and other.scrapes > before[1])


async def test_what_a_scrape_waits_for_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange that raises what it never should is one page that was not read."""
    kinds = errors_of_awaiting()
    count = len(kinds)
    real = main.Scraper

    def scraper(backends: Any, *rest: Any) -> Scraper:
        return real(Behind(backends, pools=raising_pools(backends.pools, kinds)), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(main, "Scraper", scraper)
    async with router(tmp_path) as (r, one, other):
        await survives(r, "scrape", count)
        assert await r.metric("turnout_router_scrapes_total", outcome="failed") == count
        before = one.scrapes, other.scrapes
        await eventually(lambda: one.scrapes > before[0] and other.scrapes > before[1])


def raising_pools(real: ConnectionPools, kinds: list[BaseException], marked: bytes = b"") -> Any:
    """Return pools whose exchanges of requests with *marked* in them raise *kinds*, one each, before they do their work."""

    def of(address: tuple[str, int]) -> Any:
        pool = real.of(address)

        async def exchange(request: bytes, *args: Any, **more: Any) -> None:
            await asyncio.sleep(0)
            if kinds and marked in request:
                raise kinds.pop(0)
            await pool.exchange(request, *args, **more)

        return Behind(pool, exchange=exchange)

    return Behind(real, of=of)


def raising_checks(monkeypatch: pytest.MonkeyPatch, kinds: list[BaseException]) -> None:
    """Let the exchanges of health checks raise *kinds*."""
    real = main.HealthChecks

    def raising(backends: Any, *rest: Any) -> HealthChecks:
        pools = raising_pools(backends.pools, kinds, b"GET /health")
        return real(Behind(backends, pools=pools), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(main, "HealthChecks", raising)


def raising_trials(monkeypatch: pytest.MonkeyPatch, kinds: list[BaseException]) -> None:
    """Let the router's own requests raise *kinds*."""
    real = checks.ServedRequest

    def raising(**arguments: Any) -> Any:
        request = real(**arguments)

        async def run() -> Outcome:
            await asyncio.sleep(0)
            if kinds:
                raise kinds.pop(0)
            return await request.run()

        return Behind(request, run=run)

    monkeypatch.setattr(checks, "ServedRequest", raising)


@pytest.mark.parametrize("raising", [raising_checks, raising_trials], ids=["check", "trial"])
async def test_a_check_or_a_trial_that_fails_is_survived(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raising: Callable[[pytest.MonkeyPatch, list[BaseException]], None],
) -> None:
    """Each kind of exception; the worker is asked again, tried again, and serves again once it is repaired."""
    kinds = errors_of_awaiting()
    count = len(kinds)
    raising(monkeypatch, kinds)
    async with router(tmp_path, upstream=SOON) as (r, one, _):
        one.behavior = "reset"

        async def ejected() -> bool:
            assert (await r.chat()).status_code == 200
            groups = (await r.admin.get("/admin/fleet")).json()["deployments"]
            return any(b["ejected"] for b in groups[DEPLOYMENT])

        await eventually_async(ejected)
        one.behavior = "ok"
        await survives(r, "check", count)
        one.received.clear()

        async def served_again() -> bool:
            assert (await r.chat()).status_code == 200
            return bool(one.received)

        await eventually_async(served_again)


@pytest.mark.parametrize(
    ("task", "owner", "method"),
    [
        ("fleet", FileSource, "_read"),
        ("fleet", Router, "changed"),
        ("checks", HealthChecks, "run"),
        ("scrapes", Scraper, "run"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_long_lived_task_that_fails_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, owner: type, method: str
) -> None:
    """Each kind of exception; then it does its work as if nothing had been."""
    kinds: list[Any] = errors_of_awaiting()
    count = len(kinds)
    fault = faulty(owner, method, kinds)
    monkeypatch.setattr(owner, method, fault)
    async with router(tmp_path) as (r, one, other):
        await survives(r, task, count)
        await eventually(lambda: fault.passed)
        before = one.scrapes, other.scrapes
        await eventually(lambda: one.scrapes > before[0] and other.scrapes > before[1])


async def test_a_page_of_the_admin_port_that_fails_is_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 for each kind of exception, counted; the next one is answered, and the public port notices nothing."""
    kinds: list[Any] = errors_of_awaiting()
    count = len(kinds)
    async with router(tmp_path) as (r, _, _other):
        app = r.router._admin._listener.handler
        assert isinstance(app, AdminApp)
        healthy = app._pages[b"/healthz"]

        def fails(request: Request, response: Response) -> None:
            if kinds:
                raise kinds.pop()
            healthy(request, response)

        monkeypatch.setitem(app._pages, b"/healthz", fails)
        statuses = [(await r.admin.get("/healthz")).status_code for _ in range(count)]
        assert statuses == [500] * count
        assert (await r.admin.get("/healthz")).status_code == 200
        await survives(r, "admin", count)


async def test_the_fleet_is_followed_after_its_source_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change comes through; and a file that is no good by then does not end the process as it would at the start."""
    kinds: list[Any] = []
    monkeypatch.setattr(file, "stamp_of", faulty(file, "stamp_of", kinds))
    async with router(tmp_path) as (r, _, _other):
        path = tmp_path / "router.yaml"
        good = path.read_text()
        path.write_text("deployments: [")
        kinds += errors_of_awaiting()
        r.router.reload()
        await eventually(lambda: not kinds)
        assert await failures(r, "fleet") == len(errors_of_awaiting())

        async def stale() -> bool:
            return await r.metric("turnout_router_fleet_stale") == 1

        await eventually_async(stale)  # the file is read once more after the last failure, by a thread
        assert (await r.chat()).status_code == 200
        path.write_text(good.replace(MODEL, "renamed"))
        r.router.reload()

        async def renamed() -> bool:
            return (await r.chat(model="renamed")).status_code == 200

        await eventually_async(renamed)
        assert not await stale()


async def test_a_fleet_that_cannot_be_known_at_the_start_ends_the_process_and_says_why(
    tmp_path: Path,
) -> None:
    """That, and a port that is taken, is all that does."""
    file = tmp_path / "router.yaml"
    file.write_text("deployments: 7")
    settings = Settings(host="127.0.0.1", port=0, admin_port=0)
    with pytest.raises(ConfigError, match="deployments"):
        async with asyncio.timeout(20):
            await Router(settings, FileSource(file)).run()
    file.write_text("deployments: []")
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = int(taken.sockets[0].getsockname()[1])
    with pytest.raises(OSError, match="address already in use"):
        async with asyncio.timeout(20):
            await Router(Settings(host="127.0.0.1", port=port, admin_port=0), FileSource(file)).run()
    taken.close()


async def test_the_certificate_is_followed_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What raised while it was read again is read again."""
    monkeypatch.setattr(tls, "_POLL_SECONDS", 0.001)
    kinds, stamps, read = errors_of_awaiting(), [0], 0
    count = len(kinds)
    certificate = Certificate.__new__(Certificate)
    certificate._seen = ()
    certificate._chain = "chain"  # type: ignore[assignment]

    def reload() -> None:
        nonlocal read
        if kinds:
            raise kinds.pop(0)
        read += 1

    monkeypatch.setattr(certificate, "_reload", reload)
    monkeypatch.setattr(certificate, "_stamp", lambda: tuple(stamps))
    counted: list[str] = []
    supervisor = Supervisor(counted.append, logging.getLogger("test"), backoff=QUICK)
    supervisor.run("certificate", certificate.follow)
    await eventually(lambda: read == 1)
    stamps[0] = 1
    await eventually(lambda: read == 2)
    await supervisor.stop()
    assert counted == ["certificate"] * count


# Several routers


@pytest.mark.parametrize(
    ("task", "owner", "method"),
    [
        ("peers", Mesh, "_follow"),
        ("peer_finding", StaticPeers, "run"),
        ("peer", PeerClient, "run"),
        ("peer", PeerClient, "_run_session"),
        ("peer", PeerClient, "_report"),
        ("peer", PeerClient, "_send_heartbeats"),
        ("peer_hearing", PeerServer, "_run_session"),
        ("peers", PeerSender, "_flush"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_routers_find_and_tell_each_other_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, owner: type, method: str
) -> None:
    """Each kind of exception in whatever one router does for the other one; they are connected again, and serve."""
    monkeypatch.setattr(client, "_BACK_OFF_SECONDS", (0.01,))
    kinds: list[Any] = [
        error for error in errors() if not isinstance(error, TimeoutError | OSError | EOFError)
    ]
    if owner is not PeerSender and method != "_follow":
        kinds.append(asyncio.CancelledError("of what it waited for"))
    count = len(kinds)
    ports = free_port(), free_port()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(owner, method, faulty(owner, method, kinds))
    async with mock_worker(page=PAGE) as worker, mock_worker(page=PAGE) as second:
        content = config([("aggregated", worker.url), ("aggregated", second.url)])
        peers = [PeerSettings(ports[i], (("127.0.0.1", ports[1 - i]),)) for i in (0, 1)]
        async with (
            running_router(tmp_path / "one", content, peers=peers[0], scrape_seconds=0.0) as one,
            running_router(tmp_path / "other", content, peers=peers[1], scrape_seconds=0.0) as other,
        ):

            async def all_raised() -> bool:
                for r in (one, other):
                    assert (await r.chat()).status_code == 200
                return not kinds

            await eventually_async(all_raised, 60)

            async def know_each_other() -> bool:
                return all(
                    [
                        await r.metric("turnout_router_peers", direction=direction) == 1
                        for r in (one, other)
                        for direction in ("outgoing", "incoming")
                    ]
                )

            await eventually_async(know_each_other, 30)
            assert await failures(one, task) + await failures(other, task) == count
            before = await other.metric("turnout_router_peer_messages_total", direction="received")
            assert (await one.chat()).status_code == 200

            async def connected() -> bool:
                assert (await one.chat()).status_code == 200
                return await other.metric("turnout_router_peer_messages_total", direction="received") > before

            await eventually_async(connected)


# Kubernetes


def pod(name: str, worker: MockWorker) -> dict[str, Any]:
    facts = WorkerFacts(engine="simulated", names=(MODEL,), ports=WorkerPorts(http=worker.port))
    return {
        "kind": "Pod",
        "metadata": {
            "namespace": "default",
            "name": name,
            "labels": {
                "turnout.dev/deployment": "tiny",
                "turnout.dev/role": "decode",
                "turnout.dev/revision": "a",
            },
            "annotations": {ANNOTATION_WORKER: facts.to_annotation()},
        },
        "spec": {"containers": [{"name": "worker"}]},
        "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def llm_deployment() -> dict[str, Any]:
    pool = {"accelerator": {"type": "H100-SXM"}}
    return {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"namespace": "default", "name": "tiny", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "servedNames": [MODEL]},
            "engine": {"type": "simulated"},
            "prefill": pool,
            "decode": pool,
        },
        "status": {"servedNames": [MODEL]},
    }


@asynccontextmanager
async def kubernetes_router(
    monkeypatch: pytest.MonkeyPatch, follow: Callable[..., Any]
) -> AsyncIterator[Running]:
    """Run a router that knows its fleet from *follow*, which stands in for the API server."""
    monkeypatch.setattr(kubernetes, "follow", follow)
    access = Access("http://127.0.0.1:1", None, lambda: None)
    router_ = Router(
        Settings(host="127.0.0.1", port=0, admin_port=0, shutdown_delay_seconds=0.0),
        KubernetesSource(access, ()),
    )
    task = asyncio.create_task(router_.run())
    await asyncio.wait_for(router_.started.wait(), 20)
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{router_.port}", timeout=30) as client,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{router_.admin_port}", timeout=30) as admin,
    ):
        yield Running(router_, client, admin, task)
    router_.stop()
    await asyncio.wait_for(task, 20)


async def test_each_collection_is_followed_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of exception in the watch of each collection: the others go on, and all of it comes together in the end."""
    pending = {kind: errors_of_awaiting() for kind in ("llmdeployments", "llmroutes", "tokenbudgets", "pods")}
    count = sum(map(len, pending.values()))
    async with mock_worker() as worker:
        objects = {"llmdeployments": [llm_deployment()], "pods": [pod("w", worker)]}

        async def follow(_client: Any, _access: Any, path: str, _selector: Any, observer: Any) -> None:
            kind = path.rpartition("/")[2]
            await asyncio.sleep(0)
            if pending[kind]:
                raise pending[kind].pop(0)
            observer.listed(objects.get(kind, []))
            await asyncio.sleep(3600)

        async with kubernetes_router(monkeypatch, follow) as r:
            await eventually(lambda: not r.router.not_ready_because, 30)
            await survives(r, "watch", count, DEPLOYMENT)


async def test_an_object_that_cannot_be_understood_keeps_none_of_the_others_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each kind of exception while one pod is read: it is left out, and the others serve."""
    kinds: list[Any] = list(errors())
    count = len(kinds)
    translate = kubernetes.backend_of

    def backend_of(raw: dict[str, Any]) -> Any:
        if raw["metadata"]["name"].startswith("odd"):
            raise kinds.pop(0)
        return translate(raw)

    monkeypatch.setattr(kubernetes, "backend_of", backend_of)
    async with mock_worker() as worker:

        async def follow(_client: Any, _access: Any, path: str, _selector: Any, observer: Any) -> None:
            kind = path.rpartition("/")[2]
            odd = [pod(f"odd-{number}", worker) for number in range(count)]
            objects = {"llmdeployments": [llm_deployment()], "pods": [*odd, pod("w", worker)]}
            observer.listed(objects.get(kind, []))
            await asyncio.sleep(3600)

        async with kubernetes_router(monkeypatch, follow) as r:
            await eventually(lambda: not r.router.not_ready_because, 30)
            await survives(r, "watch", count, DEPLOYMENT)
            assert await r.metric("turnout_router_fleet_rejected_total") == count


async def test_a_fleet_that_could_not_be_taken_over_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to change for that."""
    kinds: list[Any] = list(errors())
    count = len(kinds)
    monkeypatch.setattr(Router, "changed", faulty(Router, "changed", kinds))
    async with mock_worker() as worker:

        async def follow(_client: Any, _access: Any, path: str, _selector: Any, observer: Any) -> None:
            kind = path.rpartition("/")[2]
            objects = {"llmdeployments": [llm_deployment()], "pods": [pod("w", worker)]}
            observer.listed(objects.get(kind, []))
            await asyncio.sleep(3600)

        async with kubernetes_router(monkeypatch, follow) as r:
            await eventually(lambda: not r.router.not_ready_because, 30)
            await survives(r, "fleet", count, DEPLOYMENT)


# Timers and callbacks


class Broken:
    """A connection of a client whose deadlines cannot be looked at."""

    def __init__(self, kinds: list[Any]) -> None:
        self._kinds = kinds
        self.aborted = 0

    def check_deadlines(self, _now: float) -> None:
        if self._kinds:
            raise self._kinds.pop(0)

    def abort(self) -> None:
        self.aborted += 1

    drain = cut = abort


async def test_clients_deadlines_are_watched_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection that raises is dropped, and the next sweep comes."""
    monkeypatch.setattr(listener, "_SWEEP_SECONDS", 0.005)
    kinds: list[Any] = list(errors())
    count = len(kinds)
    broken: Any = Broken(kinds)
    async with router(tmp_path) as (r, _, _other):
        r.router._listener.connections.add(broken)
        await survives(r, "client", count)
        assert broken.aborted == count
        r.router._listener.connections.discard(broken)


async def test_what_a_callback_raises_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With its cause in the log."""
    async with router(tmp_path) as (r, _, _other):
        for error in errors():

            def boom(error: Exception = error) -> None:
                raise error

            asyncio.get_running_loop().call_soon(boom)
        await survives(r, "loop", len(errors()))
    for error in errors():
        assert "loop failed" in caplog.text
        assert type(error).__name__ in caplog.text


async def test_a_fault_in_a_request_fails_that_request(tmp_path: Path) -> None:
    """Its client gets 500, and the next one is served."""

    class Exact:
        def compares(self, _: str) -> bool:
            return True

        async def read(self, *_: object) -> None:
            raise kinds.pop(0)

        def stop(self) -> None:
            """Do nothing."""

    kinds: list[Any] = list(errors())
    async with router(tmp_path) as (r, _, _other):
        r.router._backends._parts.exact = Exact()  # type: ignore[assignment]
        for _ in errors():
            assert (await r.chat()).status_code == 500
        r.router._backends._parts.exact = None
        await survives(r, "client", len(errors()))


async def test_all_tasks_have_their_series_from_the_start(tmp_path: Path) -> None:
    """So that a rate can be taken of the first failure, too; and no name is ever added."""
    async with router(tmp_path) as (r, _, _other):
        page = (await r.admin.get("/metrics")).text
        for task in TASKS:
            assert f'turnout_router_task_failures_total{{task="{task}"}} 0.0' in page
