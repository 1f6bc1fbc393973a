"""The acting operator: watches feed the store and the queue, workers empty it, clocks keep figures fresh."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from turnout_operator.errors import ApiError, LeadershipLost, NotOurs
from turnout_operator.kube.kinds import CLAIMING, LLM_DEPLOYMENT, LLM_ROUTE, TOKEN_BUDGET, Kind
from turnout_operator.namespace_leases import TASK as NAMESPACES_TASK
from turnout_operator.observe.scopes import Scopes
from turnout_operator.observe.store import Key, Store, key_of
from turnout_operator.plan.route import targets_of
from turnout_operator.scaler import TASK as SCALING_TASK
from turnout_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    import kopf

    from turnout_operator.kube.client import KubeClient, Raw
    from turnout_operator.metrics import Metrics
    from turnout_operator.name_claims import NameClaims
    from turnout_operator.namespace_leases import NamespaceLeases
    from turnout_operator.reconciler import Reconciler
    from turnout_operator.scaler import Scaler
    from turnout_runtime.supervision import Supervisor

LOG: Final = logging.getLogger(__name__)

_FATAL: Final = (LeadershipLost,)
"""Errors that end the process: another operator may act now."""

WORKERS: Final = 8
"""Resources that are worked on at the same time."""
TICK_SECONDS: Final = 1.0
"""Interval at which the operator checks which deployments are due for a reading of their load."""


class Work(NamedTuple):
    """One resource to look at."""

    kind: Kind
    key: Key


class Controller:
    """Acts between `start` and `stop`. It must run only while the lease is held."""

    def __init__(
        self,
        store: Store,
        client: KubeClient,
        reconciler: Reconciler,
        scaler: Scaler,
        metrics: Metrics,
        *,
        name_claims: NameClaims,
        tasks: Supervisor,
        namespace_leases: NamespaceLeases,
        connect: Callable[[], Awaitable[kopf.ConnectionInfo]],
        watched: Sequence[str],
        namespaces: Sequence[str],
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._scaler = scaler
        self._metrics = metrics
        self._name_claims = name_claims
        self._tasks = tasks
        self._namespace_leases = namespace_leases
        self._namespaces = frozenset(namespaces)
        """Namespaces whose resources are acted on; empty: all of them."""
        self._queue: WorkQueue[Work] = WorkQueue(lambda work: work.key.namespace)
        self._scopes = Scopes(
            client,
            store,
            metrics,
            watched,
            connect=connect,
            seen=self._see,
            listed=self._listed,
            dropped=self._dropped,
            signals=self._own_signals,
            failed=lambda error, scope: tasks.note("watches", error, detail=scope),
        )
        self._stop = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []
        self._end_ticks: Callable[[], None] = lambda: None
        self.synced = False
        """Whether it knows the cluster."""

    def start(self, stop: asyncio.Event) -> None:
        """Begin to act. *stop* is what signals set, which kopf would take for itself."""
        self._stop = stop
        self._watching = [
            self._tasks.run("watches", partial(self._scopes.follow, scope), detail=str(scope))
            for scope in self._scopes.scopes
        ]
        self._running = [self._tasks.run("resync", self._begin)]

    async def stop(self) -> None:
        """End everything but the watches, which nothing depends on any more."""
        self._end_ticks()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._queue.close()

    async def end_watches(self, seconds: float = 10.0) -> None:
        """Have the watches end in good order, within *seconds*."""
        for task in self._watching:
            task.cancel()
        if self._watching:
            await asyncio.wait(self._watching, timeout=seconds)

    async def _begin(self) -> None:
        """List the cluster, then start everything that acts on it."""
        await self._scopes.first()
        self.synced = True
        self._listed({key for kind in CLAIMING for key in self._store.keys(kind)})
        for _ in range(WORKERS):
            self._running.append(self._tasks.run("queue", self._work, fatal=_FATAL))
        self._running.append(
            self._tasks.run(
                NAMESPACES_TASK,
                lambda: self._namespace_leases.keep(self.occupied, self._gained),
                fatal=_FATAL,
            )
        )
        self._end_ticks = self._tasks.every(SCALING_TASK, TICK_SECONDS, self._tick)

    def occupied(self) -> set[str]:
        """Return the namespaces that hold resources to act on."""
        return {
            key.namespace
            for kind in CLAIMING
            for key in self._store.keys(kind)
            if not self._namespaces or key.namespace in self._namespaces
        }

    def _gained(self, namespace: str) -> None:
        """Queue everything in a namespace that this release acts in from now on."""
        for kind in CLAIMING:
            for key in self._store.keys(kind):
                if key.namespace == namespace:
                    self._add(kind, key)

    def _decided(self, key: Key) -> None:
        if self._is_looked_after(key.namespace):
            self._queue.add(Work(LLM_DEPLOYMENT, key))

    def _tick(self) -> None:
        self._scaler.tick(self._decided)
        self._assign_names()  # names are kept for a while only

    def _own_signals(self) -> None:
        """Take the signals back that kopf has taken, so that the lease is released before the watches end."""
        own_signals(self._stop)

    def _see(self, kind: Kind, type_: str | None, raw: Raw) -> None:
        """Take in one event of a watch, whatever it is."""
        try:
            self._seen(kind, type_, raw)
        except Exception as error:  # noqa: BLE001 - the other events are still to come
            self._tasks.note("watches", error, detail=f"{kind.name} event")
            self._scopes.relist(raw["metadata"].get("namespace", ""))

    def _is_looked_after(self, namespace: str) -> bool:
        ours = not self._namespaces or namespace in self._namespaces
        return self.synced and ours and self._scopes.is_readable(namespace)

    def _add(self, kind: Kind, key: Key) -> None:
        """Queue a resource that has changed."""
        if self._is_looked_after(key.namespace):
            self._queue.add(Work(kind, key))
            if kind == LLM_DEPLOYMENT:
                self._scaler.wake(key)

    def _seen(self, kind: Kind, type_: str | None, raw: Raw) -> None:
        """Take in one event of a watch."""
        key = key_of(raw)
        before = self._store.get(kind, key)
        if type_ == "DELETED":
            self._store.remove(kind, raw)
        elif not self._store.put(kind, raw):
            return
        for concerned in self._store.concerned(kind, raw):
            self._add(kind if kind in CLAIMING else LLM_DEPLOYMENT, concerned)
        if kind in CLAIMING and (type_ == "DELETED" or before is None or _has_changed(before, raw)):
            self._name_claims.look_at(kind, key)
            self._assign_names()
        if kind == LLM_DEPLOYMENT and (type_ == "DELETED" or before is None):
            self._routes_to(key)

    def _listed(self, touched: set[Key]) -> None:
        """Handle a full list that changed *touched*. Before the first complete list nothing is done."""
        if not self.synced:
            return
        self._name_claims.look_at_all()
        self._assign_names()
        for key in touched:
            for kind in CLAIMING:
                self._add(kind, key)
        for raw in self._store.all(LLM_ROUTE):
            route = key_of(raw)
            if any(Key(route.namespace, target) in touched for target in targets_of(raw)):
                self._add(LLM_ROUTE, route)

    def _dropped(self, deployments: Iterable[Key]) -> None:
        """Take in that *deployments*, and all else of their namespace, are forgotten."""
        self._name_claims.look_at_all()
        self._assign_names()
        for key in deployments:
            self._metrics.forget(str(key))

    def _assign_names(self) -> None:
        if self.synced:  # before that, a resource not yet listed may hold the name
            for kind, key in self._name_claims.assign():
                self._add(kind, key)

    def _routes_to(self, deployment: Key) -> None:
        """Queue the routes that lead to a deployment that was created or deleted."""
        for raw in self._store.all(LLM_ROUTE, deployment.namespace):
            if deployment.name in targets_of(raw):
                self._add(LLM_ROUTE, key_of(raw))

    async def _look_at(self, work: Work) -> float | None:
        """Bring one resource to what it should be; return when to look again, in seconds. Raise ApiError.

        Nothing is done where the namespace cannot be read or another release acts: once that is over, everything in
        the namespace is queued.
        """
        namespace = work.key.namespace
        if not self._scopes.is_readable(namespace):
            return None
        present = self._store.get(work.kind, work.key) is not None
        if present and not await self._namespace_leases.claim(namespace):
            return None  # a deleted resource is no reason to mark a namespace
        if work.kind == LLM_DEPLOYMENT:
            return await self._reconciler.deployment(work.key)
        if work.kind == TOKEN_BUDGET:
            await self._reconciler.budget(work.key)
        else:
            await self._reconciler.route(work.key)
        return None

    async def _work(self) -> None:
        while True:
            work = await self._queue.get()
            started = time.monotonic()
            try:
                again = await self._look_at(work)
            except LeadershipLost:
                raise
            except asyncio.CancelledError:
                self._queue.retry(work)
                raise
            except Exception as error:
                self._metrics.reconcile_errors.labels(work.kind.name).inc()
                delay = self._queue.retry(work)
                known = isinstance(error, (ApiError, NotOurs))
                LOG.warning(
                    "%s %s: again in %.1f s: %s",
                    work.kind.name,
                    work.key,
                    delay,
                    error,
                    exc_info=None if known else error,
                )
            else:
                self._queue.forgive(work)
                if again is not None:
                    self._queue.add_after(work, again)
            finally:
                self._metrics.reconcile_seconds.labels(work.kind.name).observe(time.monotonic() - started)
                self._metrics.queue.set(len(self._queue))
                self._queue.done(work)


def _has_changed(before: Raw, after: Raw) -> bool:
    """Say whether the spec has, or whether the object has begun to go."""
    was, now = before["metadata"], after["metadata"]
    return bool(
        was.get("generation") != now.get("generation")
        or was.get("uid") != now.get("uid")
        or was.get("deletionTimestamp") != now.get("deletionTimestamp")
    )


def own_signals(stop: asyncio.Event) -> None:
    """Set *stop* on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
