"""The acting operator: watches feed the store and the queue, workers empty it, clocks keep figures fresh."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from turnout_operator.errors import ApiError, LeadershipLost
from turnout_operator.kube.kinds import CLAIMING, LLM_DEPLOYMENT, LLM_ROUTE, TOKEN_BUDGET, Kind
from turnout_operator.observe.scopes import Scopes
from turnout_operator.observe.store import Key, Store, key_of
from turnout_operator.plan.route import targets_of
from turnout_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    import kopf

    from turnout_operator.kube.client import KubeClient, Raw
    from turnout_operator.metrics import Metrics
    from turnout_operator.reconciler import Reconciler
    from turnout_operator.scaler import Scaler
    from turnout_operator.settling import Settling

LOG: Final = logging.getLogger(__name__)

WORKERS: Final = 8
"""Resources that are worked on at the same time."""
TICK_SECONDS: Final = 1.0
"""How often it is looked whether a deployment's load is due."""
STOP_SECONDS: Final = 10.0
"""How long the watches may take to end."""


class Work(NamedTuple):
    """One resource to look at."""

    kind: Kind
    key: Key


class Controller:
    """Acts as long as it runs. It must run only while the lease is held."""

    def __init__(
        self,
        store: Store,
        client: KubeClient,
        reconciler: Reconciler,
        scaler: Scaler,
        metrics: Metrics,
        *,
        settling: Settling,
        connect: Callable[[], Awaitable[kopf.ConnectionInfo]],
        watched: Sequence[str],
        namespaces: Sequence[str],
    ) -> None:
        self._store = store
        self._client = client
        self._reconciler = reconciler
        self._scaler = scaler
        self._metrics = metrics
        self._settling = settling
        self._connect = connect
        self._watched = watched
        """Namespaces that are watched; empty: all of them."""
        self._namespaces = frozenset(namespaces)
        """Namespaces whose resources are acted on; empty: all of them."""
        self._queue: WorkQueue[Work] = WorkQueue(lambda work: work.key.namespace)
        self._scopes: Scopes
        self.synced = False
        """Whether it knows the cluster."""

    async def run(self, stop: asyncio.Event) -> None:
        """Act until *stop* is set. Raise what makes going on impossible."""
        self._scopes = Scopes(
            self._client,
            self._store,
            self._metrics,
            self._watched,
            connect=self._connect,
            seen=self._seen,
            listed=self._listed,
            dropped=self._dropped,
            signals=lambda: own_signals(stop),
        )
        watching = self._task(self._scopes.run(), "watches")
        first = self._task(self._scopes.first(), "first lists")
        stopping = self._task(stop.wait(), "stop")
        loops: list[asyncio.Task[object]] = []
        try:
            await asyncio.wait([watching, first, stopping], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            if first.done() and not stop.is_set():
                self.synced = True
                self._listed({key for kind in CLAIMING for key in self._store.keys(kind)})
                loops += [
                    *(self._task(self._work(), f"worker {number}") for number in range(WORKERS)),
                    self._task(self._tick(), "scaling"),
                ]
                done, _ = await asyncio.wait(
                    [*loops, watching, stopping], return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
        finally:
            self._queue.close()
            for task in (*loops, first, stopping, watching):
                task.cancel()
            await asyncio.gather(*loops, first, stopping, return_exceptions=True)
            await asyncio.wait({watching}, timeout=STOP_SECONDS)

    @staticmethod
    def _task(work: Coroutine[object, object, object], name: str) -> asyncio.Task[object]:
        return asyncio.create_task(work, name=name)

    def _add(self, kind: Kind, key: Key) -> None:
        ours = not self._namespaces or key.namespace in self._namespaces
        if self.synced and ours and self._scopes.is_readable(key.namespace):
            self._queue.add(Work(kind, key))

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
            self._settling.look_at(kind, key)
            self._settle()
        if kind == LLM_DEPLOYMENT and (type_ == "DELETED" or before is None):
            self._routes_to(key)

    def _listed(self, touched: set[Key]) -> None:
        """Take in a full list that told news about *touched*: nothing before the first time that all is known."""
        if not self.synced:
            return
        self._settling.look_at_all()
        self._settle()
        for key in touched:
            for kind in CLAIMING:
                self._add(kind, key)
        for raw in self._store.all(LLM_ROUTE):
            route = key_of(raw)
            if any(Key(route.namespace, target) in touched for target in targets_of(raw)):
                self._add(LLM_ROUTE, route)

    def _dropped(self, deployments: Iterable[Key]) -> None:
        """Take in that *deployments*, and all else of their namespace, are forgotten."""
        self._settling.look_at_all()
        self._settle()
        for key in deployments:
            self._metrics.forget(str(key))

    def _settle(self) -> None:
        if self.synced:  # before, somebody may have a name of whom nothing is known yet
            for kind, key in self._settling.settle():
                self._add(kind, key)

    def _routes_to(self, deployment: Key) -> None:
        """Have the routes looked at that lead to a deployment that has come or gone."""
        for raw in self._store.all(LLM_ROUTE, deployment.namespace):
            if deployment.name in targets_of(raw):
                self._add(LLM_ROUTE, key_of(raw))

    async def _work(self) -> None:
        while True:
            work = await self._queue.get()
            if not self._scopes.is_readable(work.key.namespace):
                self._queue.forgive(work)  # it is looked at again when its namespace can be read
                self._queue.done(work)
                continue
            started = time.monotonic()
            try:
                again = None
                if work.kind == LLM_DEPLOYMENT:
                    again = await self._reconciler.deployment(work.key)
                elif work.kind == TOKEN_BUDGET:
                    await self._reconciler.budget(work.key)
                else:
                    await self._reconciler.route(work.key)
            except LeadershipLost:
                raise
            except Exception as error:
                self._metrics.reconcile_errors.labels(work.kind.name).inc()
                delay = self._queue.retry(work)
                known = isinstance(error, ApiError)
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

    async def _tick(self) -> None:
        while True:
            for key in await self._scaler.tick():
                self._add(LLM_DEPLOYMENT, key)
            self._settle()  # names are kept for a while only
            await asyncio.sleep(TICK_SECONDS)


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
