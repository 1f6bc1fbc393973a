"""Namespaces that are watched, each by itself: refused, out of reach, back again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from support.router_running import eventually
from turnout_operator.errors import ApiError, Forbidden, NotFound, Unreachable
from turnout_operator.kube.kinds import LLM_DEPLOYMENT, POD, TOKEN_BUDGET, WATCHED, Kind
from turnout_operator.metrics import Metrics
from turnout_operator.observe import scopes as module
from turnout_operator.observe.scopes import Scopes
from turnout_operator.observe.store import Key, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FORGET = 0.3


@dataclass
class Cluster:
    """An API server's lists, and the watches that were begun on it."""

    errors: dict[tuple[str | None, Kind | None], ApiError] = field(default_factory=dict)
    """By namespace and kind (None: all kinds)."""
    versions: int = 0
    watches: dict[str | None, list[frozenset[Kind]]] = field(default_factory=dict)
    """Kinds of the watches that were begun, by namespace."""
    broken: dict[str | None, asyncio.Event] = field(default_factory=dict)

    async def list(self, kind: Kind, namespace: str | None, _: str) -> list[dict[str, Any]]:
        error = self.errors.get((namespace, kind)) or self.errors.get((namespace, None))
        if error is not None:
            raise error
        self.versions += 1
        meta = {"namespace": namespace or "any", "name": "m", "uid": f"{namespace}-{kind.name}"}
        return [{"metadata": {**meta, "resourceVersion": str(self.versions)}}]

    async def watch(
        self, *_: Any, namespace: str | None, kinds: Any, stop: asyncio.Event, spawned: Any
    ) -> None:
        self.watches.setdefault(namespace, []).append(frozenset(kinds))
        breaks = self.broken[namespace] = asyncio.Event()
        spawned()
        both = [asyncio.create_task(one.wait()) for one in (stop, breaks)]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        if breaks.is_set():
            raise Forbidden("the watch is refused", status=403)


@dataclass
class Seen:
    """Scopes that run."""

    scopes: Scopes
    store: Store
    metrics: Metrics
    listed: list[set[Key]]
    dropped: list[Key]

    def knows(self, namespace: str) -> bool:
        return self.store.get(POD, Key(namespace, "m")) is not None

    def unreadable(self, namespace: str, resource: str) -> bool:
        labels = {"namespace": namespace, "resource": resource}
        name = "turnout_operator_namespace_unreadable"
        return self.metrics.registry.get_sample_value(name, labels) == 1


@asynccontextmanager
async def following(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *namespaces: str, wait: bool = True
) -> AsyncIterator[Seen]:
    for name, seconds in (
        ("RETRY_SECONDS", 0.02),
        ("REFUSED_SECONDS", 0.02),
        ("MISSING_SECONDS", 0.05),
        ("RELIST_SECONDS", 0.02),
        ("FORGET_SECONDS", FORGET),
        ("PATIENCE_SECONDS", 2 * FORGET),
    ):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(module, "watch", cluster.watch)
    store, metrics = Store(), Metrics()
    listed, dropped = list[set[Key]](), list[Key]()
    scopes = Scopes(
        cluster,  # type: ignore[arg-type]  # all that is asked of it
        store,
        metrics,
        namespaces,
        connect=asyncio.Event().wait,  # type: ignore[arg-type]  # never called
        seen=lambda *_: None,
        listed=listed.append,
        dropped=dropped.extend,
        signals=lambda: None,
        failed=lambda *_: None,
    )
    tasks = [asyncio.create_task(scopes.follow(scope)) for scope in scopes.scopes]
    if wait:
        await asyncio.wait_for(scopes.first(), 10)
    yield Seen(scopes, store, metrics, listed, dropped)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=10)


@pytest.mark.parametrize("error", [Forbidden("no", status=403), NotFound("no", status=404)])
async def test_a_namespace_that_is_refused_is_left_out(
    error: ApiError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start, without delaying the others; once it can be read, all that is in it is looked at."""
    cluster = Cluster({("h", None): error})
    async with following(cluster, monkeypatch, "v", "h") as seen:
        assert seen.scopes.is_readable("v")
        assert not seen.scopes.is_readable("h")
        await eventually(lambda: seen.unreadable("h", "llmdeployments"))
        assert set(cluster.watches) == {"v"}
        del cluster.errors["h", None]
        await eventually(lambda: seen.scopes.is_readable("h"))
        await eventually(lambda: "h" in cluster.watches and not seen.unreadable("h", "llmdeployments"))
        assert {Key("h", "m")} in seen.listed


async def test_a_namespace_that_becomes_refused_is_dropped_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is done there meanwhile, and the other's watches are not touched. It may come back as it was."""
    cluster = Cluster()
    async with following(cluster, monkeypatch, "v", "h") as seen:
        await eventually(lambda: len(cluster.watches) == 2)
        began = asyncio.get_running_loop().time()
        cluster.errors["h", None] = Forbidden("no", status=403)
        cluster.broken["h"].set()
        await eventually(lambda: not seen.scopes.is_readable("h"))
        assert seen.knows("h")
        await eventually(lambda: not seen.knows("h"))
        assert asyncio.get_running_loop().time() - began >= FORGET
        assert seen.dropped == [Key("h", "m")]
        assert seen.knows("v")
        assert len(cluster.watches["v"]) == 1
        del cluster.errors["h", None]
        await eventually(lambda: seen.scopes.is_readable("h") and seen.knows("h"))
        await eventually(lambda: len(cluster.watches["h"]) == 2)


@pytest.mark.parametrize("error", [Forbidden("no", status=403), Unreachable("no answer")])
async def test_what_an_api_server_refuses_altogether_is_kept(
    error: ApiError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not answer, or our rights are gone: that is no namespace's end."""
    cluster = Cluster()
    async with following(cluster, monkeypatch, "v", "h") as seen:
        await eventually(lambda: len(cluster.watches) == 2)
        for namespace in ("v", "h"):
            cluster.errors[namespace, None] = error
            cluster.broken[namespace].set()
        await asyncio.sleep(3 * FORGET)  # what is not to happen has no condition to wait for
        assert seen.knows("v")
        assert seen.knows("h")
        assert seen.dropped == []
        cluster.errors.clear()
        await eventually(lambda: all(len(cluster.watches[namespace]) >= 2 for namespace in ("v", "h")))


async def test_a_list_that_only_fails_is_waited_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name might be given away that is served there; but not for ever."""
    cluster = Cluster({("h", None): Unreachable("too slow")})
    async with following(cluster, monkeypatch, "v", "h", wait=False) as seen:
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(seen.scopes.first(), 10)
        assert asyncio.get_running_loop().time() - began >= FORGET
        assert seen.scopes.is_readable("v")


@pytest.mark.parametrize("namespaces", [(), ("v", "h")])
async def test_where_nothing_can_be_read_nothing_begins(
    namespaces: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRDs that are not there yet, or rights that are missing: that is waited out."""
    where: tuple[str | None, ...] = namespaces or (None,)
    cluster = Cluster({(namespace, LLM_DEPLOYMENT): NotFound("no", status=404) for namespace in where})
    async with following(cluster, monkeypatch, *namespaces, wait=False) as seen:
        first = asyncio.create_task(seen.scopes.first())
        await asyncio.sleep(3 * FORGET)  # as above
        assert not first.done()
        assert cluster.watches == {}
        cluster.errors.clear()
        await asyncio.wait_for(first, 10)
        await eventually(lambda: seen.scopes.is_readable("v"))  # `first` waits for one of them


@pytest.mark.parametrize("namespaces", [(), ("v",)])
async def test_budgets_that_cannot_be_read_stop_nothing(
    namespaces: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights of an older chart, or a CRD that is missing: the rest is looked after, and budgets when they can be read."""
    where = namespaces[0] if namespaces else None
    cluster = Cluster({(where, TOKEN_BUDGET): Forbidden("no", status=403)})
    async with following(cluster, monkeypatch, *namespaces) as seen:
        assert seen.scopes.is_readable("v")
        assert seen.unreadable(where or "", "tokenbudgets")
        await eventually(lambda: where in cluster.watches)
        assert cluster.watches[where] == [frozenset(WATCHED) - {TOKEN_BUDGET}]
        del cluster.errors[where, TOKEN_BUDGET]
        await eventually(lambda: len(cluster.watches[where]) == 2)
        assert cluster.watches[where][1] == frozenset(WATCHED)
        assert not seen.unreadable(where or "", "tokenbudgets")
