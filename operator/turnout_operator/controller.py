"""The acting operator: watches feed the store and the queue, workers empty it, clocks keep figures fresh."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from turnout_operator.errors import ApiError, LeadershipLost, NotOurs, WatchesEnded
from turnout_operator.kube.kinds import LLM_DEPLOYMENT, LLM_ROUTE, Kind
from turnout_operator.observe.resync import first_sync, resync
from turnout_operator.observe.store import Key, Store
from turnout_operator.observe.watch import watch
from turnout_operator.scaler import TASK as SCALING_TASK
from turnout_operator.territory import TASK as TERRITORY_TASK
from turnout_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import kopf

    from turnout_operator.kube.client import KubeClient, Raw
    from turnout_operator.metrics import Metrics
    from turnout_operator.reconciler import Reconciler
    from turnout_operator.scaler import Scaler
    from turnout_operator.territory import Territory
    from turnout_runtime.supervision import Supervisor

LOG: Final = logging.getLogger(__name__)

_FATAL: Final = (LeadershipLost,)
"""What ends the process: another operator may act now."""

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
    """Acts between `start` and `stop`. It must run only while the lease is held."""

    def __init__(
        self,
        store: Store,
        client: KubeClient,
        reconciler: Reconciler,
        scaler: Scaler,
        metrics: Metrics,
        *,
        tasks: Supervisor,
        territory: Territory,
        connect: Callable[[], Awaitable[kopf.ConnectionInfo]],
        watched: Sequence[str],
        namespaces: Sequence[str],
    ) -> None:
        self._store = store
        self._client = client
        self._reconciler = reconciler
        self._scaler = scaler
        self._metrics = metrics
        self._tasks = tasks
        self._territory = territory
        self._connect = connect
        self._watched = watched
        """Namespaces that are watched; empty: all of them."""
        self._namespaces = frozenset(namespaces)
        """Namespaces whose resources are acted on; empty: all of them."""
        self._queue: WorkQueue[Work] = WorkQueue()
        self._relist = asyncio.Event()
        self._started_at = 0.0
        self._running: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._stop_watch = asyncio.Event()
        self._end_ticks: Callable[[], None] = lambda: None
        self.synced = False
        """Whether it knows the cluster."""

    def start(self, stop: asyncio.Event) -> None:
        """Begin to act. *stop* is what signals set, which kopf would take for itself."""
        self._running = [self._tasks.run("resync", lambda: self._know(stop), fatal=_FATAL)]

    async def stop(self) -> None:
        """End everything but the watches, which nothing depends on any more."""
        self._end_ticks()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._queue.close()

    async def end_watches(self, seconds: float = 10.0) -> None:
        """Have the watches end in good order, within *seconds*."""
        self._stop_watch.set()
        if self._watching is not None:
            await asyncio.wait([self._watching], timeout=seconds)
            self._watching.cancel()

    async def _know(self, stop: asyncio.Event) -> None:
        """Learn what there is, then start everything that acts on it, and keep knowing."""
        if not self.synced:
            await first_sync(self._client, self._store, self._watched)
            for namespace in self.occupied():
                self._gained(namespace)
            self._started_at, self.synced = time.monotonic(), True
            for _ in range(WORKERS):
                self._running.append(self._tasks.run("queue", self._work, fatal=_FATAL))
            self._running.append(
                self._tasks.run(
                    TERRITORY_TASK, lambda: self._territory.keep(self.occupied, self._gained), fatal=_FATAL
                )
            )
            self._watching = self._tasks.run("watches", lambda: self._watch(stop))
            self._end_ticks = self._tasks.every(
                SCALING_TASK, TICK_SECONDS, lambda: self._scaler.tick(self._decided)
            )
        await self._resync()

    def occupied(self) -> set[str]:
        """Return the namespaces that hold resources to act on."""
        return {
            key.namespace
            for kind in (LLM_DEPLOYMENT, LLM_ROUTE)
            for key in self._store.keys(kind)
            if not self._namespaces or key.namespace in self._namespaces
        }

    def _gained(self, namespace: str) -> None:
        """Have everything looked at in a namespace that this release acts in from now on."""
        for kind in (LLM_DEPLOYMENT, LLM_ROUTE):
            for key in self._store.keys(kind):
                if key.namespace == namespace:
                    self._add(kind, key)

    def _decided(self, key: Key) -> None:
        self._add(LLM_DEPLOYMENT, key)

    async def _watch(self, stop: asyncio.Event) -> None:
        """Watch until the watches are to end. Raise what ends them before that."""
        ready = asyncio.Event()
        signals = self._tasks.once("watches", _own_signals(ready, stop))
        try:
            await watch(
                self._see, self._connect, namespaces=self._watched, stop=self._stop_watch, ready=ready
            )
        finally:
            signals.cancel()
            own_signals(stop)
            self._relist.set()  # what happens until they run again is not seen
        if not self._stop_watch.is_set():
            raise WatchesEnded("the watches ended by themselves")

    def _see(self, kind: Kind, type_: str | None, raw: Raw) -> None:
        """Take in one event of a watch, whatever it is."""
        try:
            self._seen(kind, type_, raw)
        except Exception as error:  # noqa: BLE001 - the other events are still to come
            self._tasks.note("watches", error, detail=f"{kind.name} event")
            self._relist.set()

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
                present = self._store.get(work.kind, work.key) is not None
                if present and not await self._territory.claim(work.key.namespace):
                    pass  # another release acts there; once it is gone, all is looked at
                elif work.kind == LLM_DEPLOYMENT:
                    again = await self._reconciler.deployment(work.key)
                else:
                    await self._reconciler.route(work.key)
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
                self._relist.set()  # which waits for a moment
                continue
            except BaseException:
                self._relist.set()
                raise
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
