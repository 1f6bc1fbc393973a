"""Whatever a long-lived task of the operator raises, it is counted and the operator goes on. Without a cluster."""

# ruff: noqa: ARG001, ARG002 - stand-ins have the signatures of what they stand for

from __future__ import annotations

import asyncio
import logging
import socket
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from support.faults import errors_of_awaiting
from support.operator_values import CONFIG, raw_deployment
from support.router_running import eventually
from support.worker_process import free_port
from turnout_operator import admin, controller
from turnout_operator.admin import serving
from turnout_operator.assembly import assemble
from turnout_operator.effects import Executor
from turnout_operator.errors import LeadershipLost, NotFound
from turnout_operator.kube.kinds import LLM_DEPLOYMENT, WATCHED, Kind, kind_of
from turnout_operator.load.collector import Collector, Target
from turnout_operator.metrics import TASKS, Metrics
from turnout_operator.namespace_leases import NamespaceLeases
from turnout_operator.observe import scopes
from turnout_operator.observe.store import Key, Store
from turnout_runtime.supervision import Backoff, Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from turnout_operator.controller import Controller
    from turnout_operator.kube.client import KubeClient
    from turnout_operator.scaler import Scaler

LOG = logging.getLogger(__name__)

KEY = Key("models", "llama")
ERRORS = errors_of_awaiting()
EACH = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
EACH_WITHOUT_WAITING = pytest.mark.parametrize("error", ERRORS[:-1], ids=lambda error: type(error).__name__)
"""What waits for nothing cannot be cancelled."""


@dataclass
class Cluster:
    """What an API server would answer, and the watch that reports the changes."""

    objects: dict[Kind, dict[str, dict[str, Any]]] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)
    """Kinds and names of what was applied, in order."""
    lists: int = 0
    version: int = 10
    failing: dict[str, BaseException] = field(default_factory=dict)
    """What the next request of a verb raises."""
    report: Any = None
    """What the watch is to call with each event. None: no watch runs."""
    watch_fails: list[BaseException] = field(default_factory=list)

    async def list(
        self, kind: Kind, namespace: str | None = None, selector: str = ""
    ) -> list[dict[str, Any]]:
        self.lists += 1
        self._fail("list")
        return list(self.objects.get(kind, {}).values())

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        raise NotFound(f"no {name}", status=404)

    async def create(self, kind: Kind, manifest: dict[str, Any], *, fenced: bool = True) -> dict[str, Any]:
        return self._kept(kind, manifest)

    async def replace(self, kind: Kind, manifest: dict[str, Any]) -> dict[str, Any]:
        return self._kept(kind, manifest)

    async def apply(
        self, kind: Kind, manifest: dict[str, Any], subresource: str | None = None, *, force: bool = True
    ) -> dict[str, Any]:
        self._fail("apply")
        self.applied.append(f"{kind.name} {manifest['metadata']['name']}")
        live = self.objects.get(kind, {}).get(manifest["metadata"]["name"], {})
        meta = {
            "uid": f"uid-{manifest['metadata']['name']}",
            **live.get("metadata", {}),
            **manifest["metadata"],
        }
        return self._kept(kind, {**live, **manifest, "metadata": meta})

    async def watch(
        self, report: Any, connect: Any, *, namespace: Any, kinds: Any, stop: asyncio.Event, spawned: Any
    ) -> None:
        """Stand in for kopf: report what the test says until it ends, or raise what the test says."""
        if self.watch_fails:
            raise self.watch_fails.pop()
        spawned()
        self.report = report
        await stop.wait()

    def _fail(self, verb: str) -> None:
        if verb in self.failing:
            raise self.failing.pop(verb)

    def _kept(self, kind: Kind, manifest: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        kept = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.version)}}
        if kind.name not in {"Lease", "Event"}:
            self.objects.setdefault(kind, {})[manifest["metadata"]["name"]] = kept
        return kept


@dataclass
class Running:
    """A running operator and its parts."""

    cluster: Cluster
    metrics: Metrics
    store: Store
    collector: Collector
    scaler: Scaler
    controller: Controller
    tasks: Supervisor

    def failures(self, task: str) -> float:
        value = self.metrics.registry.get_sample_value("turnout_operator_task_failures_total", {"task": task})
        assert value is not None, f"{task} is not counted from the start"
        return value

    async def reconciles(self) -> None:
        """Fail unless a new deployment's children are made, from the event of a watch to the last request."""
        await eventually(lambda: self.cluster.report is not None)
        name = f"new-{self.cluster.version}"
        raw = raw_deployment(name)
        raw["metadata"]["resourceVersion"] = str(self.cluster.version)
        self.cluster.report(LLM_DEPLOYMENT, "ADDED", raw)
        await eventually(lambda: f"Service {name}-decode" in self.cluster.applied)


@asynccontextmanager
async def running(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> AsyncIterator[Running]:
    """Run the acting part of an operator over *cluster*; its clocks run fast."""
    monkeypatch.setattr(scopes, "watch", cluster.watch)
    monkeypatch.setattr(controller, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(scopes, "RELIST_SECONDS", 0.05)
    metrics, store, client = Metrics(), Store(), cast("KubeClient", cluster)
    tasks = Supervisor(metrics.task_failed, LOG, backoff=Backoff(0.01, 0.05))
    stop = asyncio.Event()
    async with Collector(tasks, timeout_seconds=0.5) as collector:
        namespace_leases = NamespaceLeases(client, release="test/op")
        parts = assemble(
            client,
            store,
            collector,
            Executor(client, store, "test"),
            metrics,
            config=CONFIG,
            tasks=tasks,
            namespace_leases=namespace_leases,
            connect=cast("Any", None),
        )
        made, scaler = parts.controller, parts.scaler
        made.start(stop)
        try:
            await eventually(lambda: made.synced)
            yield Running(cluster, metrics, store, collector, scaler, made, tasks)
        finally:
            await made.stop()
            await made.end_watches()
            await tasks.stop()


def one_deployment() -> Cluster:
    raw = raw_deployment()
    raw["metadata"]["resourceVersion"] = "5"
    return Cluster({LLM_DEPLOYMENT: {"llama": raw}})


@EACH
async def test_watches_that_break_are_started_again(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """And what was missed meanwhile is listed."""
    cluster = one_deployment()
    cluster.watch_fails = [error]
    async with running(monkeypatch, cluster) as r:
        await r.reconciles()
        assert r.failures("watches") == 1
        await eventually(lambda: cluster.lists >= 2 * len(WATCHED))


@EACH_WITHOUT_WAITING
async def test_an_event_that_cannot_be_taken_in_is_one_event(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The next one is, and the cluster is listed anew."""
    cluster = one_deployment()
    async with running(monkeypatch, cluster) as r:
        await eventually(lambda: cluster.report is not None)
        put = r.store.put

        def broken(*_: object) -> bool:
            monkeypatch.setattr(r.store, "put", put)
            raise error

        monkeypatch.setattr(r.store, "put", broken)
        listed = cluster.lists
        cluster.report(LLM_DEPLOYMENT, "MODIFIED", cluster.objects[LLM_DEPLOYMENT]["llama"])
        assert r.failures("watches") == 1
        await eventually(lambda: cluster.lists > listed)
        await r.reconciles()


@EACH
@pytest.mark.parametrize("what", ["read", "read_routers"])
async def test_a_scrape_that_raises_is_one_scrape(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, what: str
) -> None:
    """Decisions go on, and the next scrape is made."""
    cluster = one_deployment()
    async with running(monkeypatch, cluster) as r:
        await eventually(lambda: r.scaler.decision(KEY) is not None)
        whole, asked = getattr(r.collector, what), []

        async def broken(*_: object, **__: object) -> Any:
            asked.append(1)
            monkeypatch.setattr(r.collector, what, whole)
            raise error

        monkeypatch.setattr(r.collector, what, broken)
        r.scaler._states[KEY].due_at = 0.0
        await eventually(lambda: asked)
        r.scaler._states[KEY].due_at = 0.0
        before = r.scaler.decision(KEY)
        await eventually(lambda: r.scaler.decision(KEY) is not before)
        await r.reconciles()


@EACH
async def test_what_one_page_does_to_its_reader_is_about_that_page(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The deployment's other workers are read all the same, and it is counted."""
    async with running(monkeypatch, one_deployment()) as r:
        page = "vllm:num_requests_running 2\nvllm:num_requests_waiting 1\nvllm:kv_cache_usage_perc 0.5\n"

        async def read(address: str, port: int, excerpt: Any) -> str:
            if address == "127.0.0.2":
                raise error
            return page

        monkeypatch.setattr(r.collector, "_lines", read)
        await r.collector.read(KEY, [Target("bad", "127.0.0.2"), Target("good", "127.0.0.3")], 1)
        assert r.collector.load(KEY, "bad") is None
        assert r.collector.load(KEY, "good") is not None
        silent = isinstance(error, (OSError, ValueError))  # TimeoutError is an OSError
        assert r.failures("scrapes") == (0 if silent else 1)


@EACH
async def test_a_decision_that_raises_is_one_deployments(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The other deployment is decided about in the same round, and the first one in the next."""
    cluster = one_deployment()
    other = raw_deployment("other")
    other["metadata"]["resourceVersion"] = "6"
    cluster.objects[LLM_DEPLOYMENT]["other"] = other
    async with running(monkeypatch, cluster) as r:
        await eventually(lambda: r.scaler.decision(KEY) is not None)
        decide = r.scaler._decide
        hit: list[Key] = []

        def broken(key: Key, *more: Any) -> Any:
            if key == KEY and not hit:
                hit.append(key)
                raise error
            return decide(key, *more)

        monkeypatch.setattr(r.scaler, "_decide", broken)
        before = r.scaler.decision(Key("models", "other"))
        for state in r.scaler._states.values():
            state.due_at = 0.0
        await eventually(lambda: hit and r.scaler.decision(Key("models", "other")) is not before)
        await eventually(lambda: r.failures("scaling") == 1)
        first = r.scaler.decision(KEY)
        r.scaler._states[KEY].due_at = 0.0
        await eventually(lambda: r.scaler.decision(KEY) is not first)
        await r.reconciles()


@EACH_WITHOUT_WAITING
async def test_a_tick_that_raises_is_one_tick(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The clock goes on."""
    async with running(monkeypatch, one_deployment()) as r:
        forget = r.collector.forget

        def broken(_: object) -> None:
            monkeypatch.setattr(r.collector, "forget", forget)
            raise error

        monkeypatch.setattr(r.collector, "forget", broken)
        await eventually(lambda: r.failures("scaling") == 1)
        before = r.scaler.decision(KEY)
        r.scaler._states[KEY].due_at = 0.0
        await eventually(lambda: r.scaler.decision(KEY) is not before)
        await r.reconciles()


@EACH
@pytest.mark.parametrize("verb", ["list", "apply"])
async def test_a_request_that_raises_is_made_again(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, verb: str
) -> None:
    """Of a pass over a resource, and of the list of all."""
    cluster = one_deployment()
    cluster.failing = {verb: error}
    async with running(monkeypatch, cluster) as r:
        await eventually(lambda: "Service llama-decode" in cluster.applied)
        assert not cluster.failing
        await r.reconciles()


@EACH
async def test_a_mark_that_raises_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The keeping of namespaces goes on."""
    async with running(monkeypatch, one_deployment()) as r:
        await r.reconciles()
        namespace_leases = r.controller._namespace_leases
        look = namespace_leases._look

        async def broken(namespace: str) -> None:
            monkeypatch.setattr(namespace_leases, "_look", look)
            raise error

        monkeypatch.setattr(namespace_leases, "_look", broken)
        await eventually(lambda: r.failures("namespaces") == 1)
        await r.reconciles()


async def test_who_may_not_act_any_more_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost lease is the one thing that no task survives."""
    cluster = one_deployment()
    cluster.failing = {"apply": LeadershipLost("another acts")}
    async with running(monkeypatch, cluster) as r:
        with pytest.raises(LeadershipLost, match="another acts"):
            await asyncio.wait_for(r.tasks.ended(), 10)


async def test_a_deployment_whose_workers_hang_delays_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one's decisions come every interval while the first one is still read."""
    cluster = one_deployment()
    other = raw_deployment("other")
    other["metadata"]["resourceVersion"] = "6"
    cluster.objects[LLM_DEPLOYMENT]["other"] = other
    async with running(monkeypatch, cluster) as r:
        await eventually(lambda: r.scaler.decision(KEY) is not None)
        read, hangs = r.collector.read, asyncio.Event()

        async def slow(key: Key, *more: Any) -> None:
            if key == KEY:
                await hangs.wait()
            await read(key, *more)

        monkeypatch.setattr(r.collector, "read", slow)
        r.scaler._states[KEY].due_at = 0.0
        await eventually(lambda: r.scaler._states[KEY].reading)
        for _ in range(3):
            before = r.scaler.decision(Key("models", "other"))
            r.scaler._states[Key("models", "other")].due_at = 0.0
            await eventually(lambda seen=before: r.scaler.decision(Key("models", "other")) is not seen)  # type: ignore[misc]
        hangs.set()


@pytest.mark.parametrize("source", ["the API server", "a router"])
async def test_a_deployment_that_is_left_alone_is_looked_at_when_there_is_news(
    monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """It has no worker that could be read: nothing is decided until an object of it changes, or a router counts something."""
    cluster = one_deployment()
    async with running(monkeypatch, cluster) as r:
        await eventually(lambda: r.scaler.decision(KEY) is not None and cluster.report is not None)
        state = r.scaler._states[KEY]
        await eventually(lambda: state.due_at > time.monotonic() + 60)
        before = r.scaler.decision(KEY)
        state.awake_at = 0.0
        if source == "a router":
            monkeypatch.setattr(r.collector, "take_news", lambda: {KEY})
        else:
            raw = {**cluster.objects[LLM_DEPLOYMENT]["llama"]}
            raw["metadata"] = {**raw["metadata"], "resourceVersion": str(cluster.version + 100)}
            cluster.report(LLM_DEPLOYMENT, "MODIFIED", raw)
        await eventually(lambda: r.scaler.decision(KEY) is not before)


async def test_the_series_of_a_deployment_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its children go one by one, each with an event of its own."""
    cluster = one_deployment()
    async with running(monkeypatch, cluster) as r:

        def desired() -> float | None:
            labels = {"deployment": str(KEY), "role": "decode"}
            return r.metrics.registry.get_sample_value("turnout_operator_desired_replicas", labels)

        await eventually(lambda: desired() == 2 and cluster.report is not None)
        raw = r.store.get(LLM_DEPLOYMENT, KEY)
        children = r.store.children(KEY)
        assert children
        cluster.report(LLM_DEPLOYMENT, "DELETED", raw)
        for child in children:
            cluster.report(kind_of(child), "DELETED", child)
        await eventually(lambda: desired() is None)


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@asynccontextmanager
async def admin_port(**pages: Any) -> AsyncIterator[tuple[int, Metrics]]:
    """Serve the admin port, with *pages* in place of what it asks."""
    metrics, port = Metrics(), free_port()
    tasks = Supervisor(metrics.task_failed, LOG)
    asked = {"not_ready": str, "remark": str, "decisions": dict, **pages}
    async with serving("127.0.0.1", port, metrics, tasks, **asked):
        yield port, metrics
    await tasks.stop()


@EACH
@pytest.mark.parametrize(("page", "path"), [("not_ready", "/readyz"), ("decisions", "/decisions")])
async def test_a_page_that_fails_is_one_answer(error: BaseException, page: str, path: str) -> None:
    """It is 500, and the next request is answered."""
    failing = [error]

    def broken() -> Any:
        if failing:
            raise failing.pop()
        return {} if page == "decisions" else ""

    async with admin_port(**{page: broken}) as (port, metrics):
        assert (await asyncio.to_thread(fetch, port, path))[0] == 500
        assert (await asyncio.to_thread(fetch, port, path))[0] == 200
        assert (
            metrics.registry.get_sample_value("turnout_operator_task_failures_total", {"task": "admin"}) == 1
        )


async def test_every_task_is_counted_from_the_start() -> None:
    """An alert on the rate of failures needs the series before the first one."""
    async with admin_port() as (port, _):
        text = (await asyncio.to_thread(fetch, port, "/metrics"))[1]
    for task in TASKS:
        assert f'turnout_operator_task_failures_total{{task="{task}"}} 0.0' in text


async def test_strangers_cannot_keep_the_probes_out() -> None:
    """Ten times as many silent connections as there is room for: /healthz answers at once, and they are closed."""
    async with admin_port() as (port, _):
        strangers = []
        try:
            for number in range(10 * admin.MAX_CONNECTIONS):
                stranger = socket.create_connection(("127.0.0.1", port))
                stranger.setblocking(False)
                strangers.append(stranger)
                if number % 100 == 0:
                    began = time.monotonic()
                    assert (await asyncio.to_thread(fetch, port, "/healthz"))[0] == 200
                    assert time.monotonic() - began < 2.0
            assert (await asyncio.to_thread(fetch, port, "/healthz"))[0] == 200
            closed = [one for one in strangers if _is_closed(one)]
            assert len(closed) >= 9 * admin.MAX_CONNECTIONS
        finally:
            for stranger in strangers:
                stranger.close()


async def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that asks, and does not read the answer."""
    monkeypatch.setattr(admin, "CONNECTION_SECONDS", 0.5)
    async with admin_port() as (port, _):
        silent = socket.create_connection(("127.0.0.1", port))
        deaf = socket.create_connection(("127.0.0.1", port))
        deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
        for stranger in (silent, deaf):
            stranger.setblocking(False)
        await eventually(lambda: _is_closed(silent))
        await eventually(lambda: _is_closed(deaf))
        silent.close()
        deaf.close()


def _is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed, having read what it sent before."""
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
