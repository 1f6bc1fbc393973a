"""Whatever the node agent's tasks raise is counted and survived: one pod, Service or connection harms no other."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import logging
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.faults import errors_of_awaiting
from turnout_devcluster.node import agent as agents
from turnout_devcluster.node import checks, forward
from turnout_devcluster.node.agent import Agent, Options
from turnout_devcluster.node.attempts import RunAttempt, RunFile
from turnout_devcluster.node.backoff import BackOff
from turnout_devcluster.node.container import Container
from turnout_devcluster.node.context import Runtime
from turnout_devcluster.node.failures import TASKS, TaskFailures
from turnout_devcluster.node.forward import Forwarder, Listening
from turnout_devcluster.node.model import Run
from turnout_devcluster.node.pod import Pod
from turnout_devcluster.node.prober import Prober
from turnout_devcluster.node.probes import Execute, Probe
from turnout_devcluster.node.server import KubeletServer
from turnout_devcluster.node.splice import Inbound
from turnout_runtime.supervision import Backoff, Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from turnout_devcluster.node.api import Api

SECONDS = 20.0
LOG = logging.getLogger("test.node")
ERRORS = errors_of_awaiting()
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def supervisor(counted: list[str] | None = None) -> Supervisor:
    backoff = Backoff(first_seconds=0.001, most_seconds=0.01)
    return Supervisor((counted if counted is not None else []).append, LOG, backoff=backoff)


class FakeApi:
    """An API server with one pod, that holds every watch open."""

    def __init__(self, pods: list[dict[str, Any]]) -> None:
        self.endpoint = SimpleNamespace(
            ca_pem=certificate(), host="127.0.0.1", port=9, server="https://127.0.0.1:9"
        )
        self.pods = pods
        self.client = httpx.AsyncClient(
            transport=httpx.MockTransport(self._answer), base_url=self.endpoint.server
        )
        self.renewed = asyncio.Event()

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        if "watch" in request.url.params:
            await asyncio.Event().wait()
        pods = request.url.path == "/api/v1/pods"
        listing = {"kind": "PodList" if pods else "ServiceList", "metadata": {"resourceVersion": "1"}}
        return httpx.Response(200, json={**listing, "items": self.pods if pods else []})

    async def create(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        return body

    async def patch(self, path: str, body: dict[str, Any], *_: object) -> dict[str, Any]:
        if "/leases/" in path:
            self.renewed.set()
        return body

    async def get(self, _: str) -> dict[str, Any]:
        return {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}


def certificate() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def pod_object(name: str = "p", **spec: Any) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"uid": f"uid-{name}", "name": name, "namespace": "ns", "resourceVersion": "1"},
        "spec": {"nodeName": "node-0", "containers": [{"name": "main", "image": "none"}], **spec},
    }


def failing_once(
    method: Callable[..., Any], error: BaseException, again: asyncio.Event
) -> Callable[..., Any]:
    """Return the coroutine function *method*, raising *error* at its first call and setting *again* at the second."""
    errors = [error]

    async def wrapped(*arguments: Any, **named: Any) -> Any:
        if errors:
            raise errors.pop()
        again.set()
        return await method(*arguments, **named)

    return wrapped


@contextlib.asynccontextmanager
async def running_agent(tmp_path: Path, api: FakeApi) -> AsyncIterator[Agent]:
    agent = Agent(Options(tmp_path, "127.86.0.0/16", 1), cast("Api", api))
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await api.client.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - it is polled, with a deadline
            await asyncio.sleep(0.005)


@each_error
async def test_every_lasting_task_goes_on(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the agent's tasks raises once: all of them run again, the node is kept, and the counts say so."""
    again = {name: asyncio.Event() for name in ("node", "watch", "forward", "events", "logs", "pod")}
    for owner, method, name in (
        (Agent, "_keep_node", "node"),
        (agents, "follow", "watch"),
        (agents.Forwarder, "run", "forward"),
        (agents.EventRecorder, "run", "events"),
        (agents, "keep_bounded", "logs"),
    ):
        monkeypatch.setattr(owner, method, failing_once(getattr(owner, method), error, again[name]))

    async def stay(_: Pod) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Pod, "run", failing_once(stay, error, again["pod"]))
    api = FakeApi([pod_object()])
    async with running_agent(tmp_path, api) as agent, asyncio.timeout(SECONDS):
        for event in (*again.values(), api.renewed):
            await event.wait()
        page = agent._failures.exposition()
        assert [pod["metadata"]["name"] for pod in agent.pods()] == ["p"]
    for name in again:
        assert f'turnout_node_task_failures_total{{task="{name}"}} 1\n' in page
    assert page.count("\n") == 2 + len(TASKS)


async def test_a_pod_that_makes_no_sense_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pod in the list cannot be read; those before and behind it run."""
    ran: list[str] = []

    async def stay(pod: Pod) -> None:
        ran.append(pod.pod["metadata"]["name"])
        await asyncio.Event().wait()

    monkeypatch.setattr(Pod, "run", stay)
    bad = pod_object("bad")
    bad["spec"]["containers"] = [{"image": "it has no name"}]
    async with running_agent(tmp_path, FakeApi([pod_object("a"), bad, pod_object("b")])) as agent:
        await until(lambda: len(ran) == 2)
        assert '{task="pod"} 1\n' in agent._failures.exposition()
    assert ran == ["a", "b"]


async def test_a_pod_that_failed_is_found_again_by_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs again is a new beginning with the newest object, and knows that the pod was removed."""
    seen: list[Pod] = []

    async def run(pod: Pod) -> None:
        pod.begun = True
        seen.append(pod)
        if len(seen) == 1:
            pod.changed(pod_object() | {"metadata": {**pod.pod["metadata"], "resourceVersion": "7"}})
            pod.removed()
            raise RuntimeError("broken")

    monkeypatch.setattr(Pod, "run", run)
    async with running_agent(tmp_path, FakeApi([pod_object()])) as agent:
        await until(lambda: len(seen) == 2)
        await until(lambda: not list(agent.pods()))
    first, second = seen
    assert first is not second
    assert second.pod["metadata"]["resourceVersion"] == "7"
    assert second.deleting


@each_error
async def test_a_request_to_the_kubelets_port_harms_itself_only(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one request raises closes its connection; /metrics is served behind it and counts it."""
    failures = TaskFailures()
    watched = Supervisor(failures.count, LOG)
    server = KubeletServer(cast("Any", None), tmp_path, "", watched, failures.exposition)
    listening = await asyncio.start_server(server._accept, "127.0.0.1", 0)
    answer = server._answer
    with monkeypatch.context() as patch:
        patch.setattr(server, "_answer", lambda *_: (_ for _ in ()).throw(error))
        assert await ask(listening, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
    assert server._answer == answer
    page = await ask(listening, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert page.startswith(b"HTTP/1.1 200 OK")
    expected = isinstance(error, OSError | ValueError)  # taken for a connection that is gone
    assert b'turnout_node_task_failures_total{task="kubelet"} %d\n' % (0 if expected else 1) in page
    listening.close()
    await watched.stop()


async def ask(listening: asyncio.Server, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname()[:2])
    writer.write(data)
    async with asyncio.timeout(SECONDS):
        try:
            return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@each_error
@pytest.mark.parametrize("where", ["choosing", "connecting"])
async def test_a_connection_through_a_service_ends_whatever_goes_wrong(
    error: BaseException, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client does not wait for ever, and the next one is let through."""
    loop = asyncio.get_running_loop()

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    back = await asyncio.start_server(greet, "127.0.0.1", 0)
    target = back.sockets[0].getsockname()[:2]
    errors = [error]

    def choose() -> tuple[str, int]:
        if where == "choosing" and errors:
            raise errors.pop()
        return target

    watched = supervisor()
    front = await loop.create_server(lambda: Inbound(choose, watched), "127.0.0.1", 0)
    if where == "connecting":
        connect = loop.create_connection

        async def create_connection(factory: Any, host: str, port: int, **named: Any) -> Any:
            if (host, port) == target and errors:
                raise errors.pop()
            return await connect(factory, host, port, **named)

        monkeypatch.setattr(loop, "create_connection", create_connection)
    with contextlib.suppress(ConnectionResetError):
        assert await ask(front, b"") == b""
    assert not errors
    assert await ask(front, b"") == b"hello"
    for server in (front, back):
        server.close()
        await server.wait_closed()
    await watched.stop()


async def test_a_service_that_makes_no_sense_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its routes cannot be made; those of the others are listened on."""
    counted: list[str] = []
    real = forward.routes_of

    def routes_of(services: Any, *rest: Any) -> Any:
        if any(service["metadata"]["name"] == "bad" for service in services):
            raise KeyError("spec")
        return real(services, *rest)

    monkeypatch.setattr(forward, "routes_of", routes_of)
    made = Forwarder(
        ipaddress.IPv4Network("127.87.0.0/16"), ("127.0.0.1", 9), cast("Any", None), supervisor(counted)
    )
    made.listed(
        [
            {
                "metadata": {"namespace": "ns", "name": name},
                "spec": {"clusterIP": "127.87.200.1", "selector": {"a": "b"}, "ports": [{"port": port}]},
            }
            for name, port in (("a", 18001), ("bad", 18002), ("c", 18003))
        ]
    )
    task = asyncio.create_task(made.run())
    await until(lambda: len(made._servers) == 2)
    assert set(made._servers) == {
        Listening("ns/a", "127.87.200.1", 18001),
        Listening("ns/c", "127.87.200.1", 18003),
    }
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert not made._servers
    assert set(counted) == {"forward"}


def stub_container(counted: list[str], tmp_path: Path, ended: Run) -> tuple[Container, Supervisor]:
    run_attempt = RunAttempt(0, "abcd", 0)
    watched = supervisor(counted)
    events = SimpleNamespace(record=lambda *_: None)
    runtime = Runtime(cast("Any", events), asyncio.Semaphore(1), BackOff(), tmp_path / "none", watched)
    disk = SimpleNamespace(read_run=lambda *_: RunFile(ended, cast("Any", None), None))
    record = SimpleNamespace(runs={"main": [run_attempt]}, name="p", ip="127.0.0.1")
    pod = SimpleNamespace(pod=pod_object(), record=record, disk=disk, deleting=False, wake=lambda: None)
    return Container("main", cast("Any", pod), runtime), watched


@each_error
async def test_the_end_of_a_container_is_seen_whatever_watching_raises(
    error: BaseException, tmp_path: Path
) -> None:
    """Waiting for the end fails once: it is waited for again, and the exit code is known."""
    counted: list[str] = []
    container, watched = stub_container(
        counted, tmp_path, Run(0, 1.0, finished_at=2.0, exit_code=7, reason="Error")
    )

    async def nothing() -> None:
        return

    shim = SimpleNamespace(ended=failing_once(nothing, error, asyncio.Event()), alive=True)
    container._take_up(RunFile(Run(0, 1.0), cast("Any", shim), None), 0, adopted=None)
    await until(lambda: container.state.run is not None and not container.state.run.running)
    assert container.state.run is not None
    assert container.state.run.exit_code == 7
    assert counted == ["container"]
    await watched.stop()


@each_error
async def test_a_hook_that_raises_does_not_hold_up_the_end(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM follows a preStop hook, whatever the hook's way there raises."""
    container, watched = stub_container([], tmp_path, Run(0, 1.0))
    container._set(run=Run(0, 1.0))

    async def raising(*_: object) -> checks.ProbeResult:
        raise error

    monkeypatch.setattr(checks, "ask", raising)
    async with asyncio.timeout(SECONDS):
        await container._pre_stop({"exec": {"command": ["true"]}}, lambda: time.time() + SECONDS)
    await watched.stop()


@each_error
async def test_a_probe_that_raises_is_asked_again(error: BaseException) -> None:
    """What is no verdict changes nothing, and the probe goes on; the other probe, too."""
    counted: list[str] = []
    watched = supervisor(counted)
    errors = [error]
    verdicts: list[bool] = []

    async def execute(action: Execute, _: float) -> tuple[int, str]:
        if action.command == ("ready",) and errors:
            raise errors.pop()
        return 0, ""

    def probe(kind: Any, word: str) -> Probe:
        return Probe(kind, Execute((word,)), 0.0, 0.01, 1.0, 1, 3, None)

    probed = SimpleNamespace(
        has_started=lambda: None,
        is_ready=lambda *, ready: verdicts.append(ready),
        has_failed=lambda _: None,
        is_unhealthy=lambda *_: verdicts.append(False),
    )
    prober = Prober(
        {"readiness": probe("readiness", "ready"), "liveness": probe("liveness", "live")},
        cast("Any", probed),
        execute,
        time.time(),
        lambda work: watched.run("probe", work),
    )
    task = asyncio.create_task(prober.run(started=False, ready=None))
    await until(lambda: True in verdicts)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert not errors
    await watched.stop()
