"""The acting operator: watches feed the store and the queue, workers empty it, clocks keep figures fresh."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from turnout_operator.errors import ApiError, LeadershipLost
from turnout_operator.kube.kinds import LLM_DEPLOYMENT, LLM_ROUTE, Kind
from turnout_operator.observe.resync import first_sync, resync
from turnout_operator.observe.store import Key, Store
from turnout_operator.observe.watch import watch
from turnout_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    import kopf

    from turnout_operator.kube.client import KubeClient, Raw
    from turnout_operator.metrics import Metrics
    from turnout_operator.reconciler import Reconciler
    from turnout_operator.scaler import Scaler

LOG: Final = logging.getLogger(__name__)

WORKERS: Final = 8
"""Resources that are worked on at the same time."""
TICK_SECONDS: Final = 1.0
"""How often it is looked whether a deployment's load is due."""
RESYNC_SECONDS: Final = 300.0
"""Time between two full lists, the net below the watches."""
RELIST_SECONDS: Final = 2.0
"""How soon a full list follows when a watch had to start over, which hides deletions."""
ALERT_SECONDS: Final = 10.0
"""Lists that kopf makes in this first time are its start, not a watch that starts over."""


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
        connect: Callable[[], Awaitable[kopf.ConnectionInfo]],
        watched: Sequence[str],
        namespaces: Sequence[str],
    ) -> None:
        self._store = store
        self._client = client
        self._reconciler = reconciler
        self._scaler = scaler
        self._metrics = metrics
        self._connect = connect
        self._watched = watched
        """Namespaces that are watched; empty: all of them."""
        self._namespaces = frozenset(namespaces)
        """Namespaces whose resources are acted on; empty: all of them."""
        self._queue: WorkQueue[Work] = WorkQueue()
        self._relist = asyncio.Event()
        self._started_at = 0.0
        self.synced = False
        """Whether it knows the cluster."""

    async def run(self, stop: asyncio.Event) -> None:
        """Act until *stop* is set. Raise what makes going on impossible."""
        await first_sync(self._client, self._store, self._watched)
        for kind in (LLM_DEPLOYMENT, LLM_ROUTE):
            for key in self._store.keys(kind):
                self._add(kind, key)
        self._started_at, self.synced = time.monotonic(), True
        stop_watch, ready = asyncio.Event(), asyncio.Event()
        loops = [
            *(self._task(self._work(), f"worker {number}") for number in range(WORKERS)),
            self._task(self._tick(), "scaling"),
            self._task(self._resync(), "resync"),
        ]
        watching = self._task(
            watch(self._seen, self._connect, namespaces=self._watched, stop=stop_watch, ready=ready),
            "watches",
        )
        signals = self._task(_own_signals(ready, stop), "signals")
        stopping = self._task(stop.wait(), "stop")
        try:
            done, _ = await asyncio.wait([*loops, watching, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._queue.close()
            for task in (*loops, signals, stopping):
                task.cancel()
            await asyncio.gather(*loops, signals, stopping, return_exceptions=True)
            stop_watch.set()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(watching, 10.0)

    @staticmethod
    def _task(work: Coroutine[object, object, object], name: str) -> asyncio.Task[object]:
        return asyncio.create_task(work, name=name)

    def _add(self, kind: Kind, key: Key) -> None:
        if not self._namespaces or key.namespace in self._namespaces:
            self._queue.add(Work(kind, key))

    def _seen(self, kind: Kind, type_: str | None, raw: Raw) -> None:
        """Take in one event of a watch."""
        if type_ is None and time.monotonic() - self._started_at > ALERT_SECONDS:
            self._relist.set()
        key = Key(raw["metadata"].get("namespace", ""), raw["metadata"]["name"])
        before = self._store.get(kind, key)
        if type_ == "DELETED":
            self._store.remove(kind, raw)
        elif not self._store.put(kind, raw):
            return
        for concerned in self._store.concerned(kind, raw):
            self._add(kind if kind == LLM_ROUTE else LLM_DEPLOYMENT, concerned)
        if kind == LLM_DEPLOYMENT and (type_ == "DELETED" or before is None or _spec_changed(before, raw)):
            self._neighbours(key)

    def _neighbours(self, key: Key) -> None:
        """Have everything looked at that a deployment's coming, going or renaming concerns."""
        for kind in (LLM_DEPLOYMENT, LLM_ROUTE):
            for other in self._store.keys(kind):
                if other.namespace == key.namespace:
                    self._add(kind, other)

    async def _work(self) -> None:
        while True:
            work = await self._queue.get()
            started = time.monotonic()
            try:
                again = None
                if work.kind == LLM_DEPLOYMENT:
                    again = await self._reconciler.deployment(work.key)
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
            await asyncio.sleep(TICK_SECONDS)

    async def _resync(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._relist.wait(), RESYNC_SECONDS)
                await asyncio.sleep(RELIST_SECONDS)
            self._relist.clear()
            try:
                touched = await resync(self._client, self._store, self._watched)
            except ApiError as error:
                LOG.warning("the cluster cannot be listed: %s", error)
                await asyncio.sleep(RELIST_SECONDS)
                self._relist.set()
                continue
            for key in touched:
                self._add(LLM_DEPLOYMENT, key)
                self._add(LLM_ROUTE, key)
                self._neighbours(key)


def _spec_changed(before: Raw, after: Raw) -> bool:
    return bool(before["metadata"].get("generation") != after["metadata"].get("generation"))


async def _own_signals(ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Take the signals back that kopf has taken, so that the lease is released before the watches end."""
    await ready.wait()
    own_signals(stop)


def own_signals(stop: asyncio.Event) -> None:
    """Set *stop* on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
