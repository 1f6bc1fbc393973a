"""The namespaces that are watched, each by itself: one that cannot be read is left out, and the others go on.

A scope is one namespace, or the whole cluster. It is listed, then watched by a kopf of its own; behind the watch stands
a full list every few minutes, and soon after a watch had to start over, which hides deletions. Where the API server
refuses (403, 404: the namespace or its Role is gone) the scope is tried again until it can be read. Where it does not
answer, what is known stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, Any, Final

from turnout_operator.errors import ApiError, Forbidden, NotFound, WatchesEnded
from turnout_operator.kube.kinds import CLAIMING, LLM_DEPLOYMENT, OPTIONAL, SELECTORS, WATCHED, Kind
from turnout_operator.observe.watch import watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import kopf

    from turnout_operator.kube.client import KubeClient, Raw
    from turnout_operator.metrics import Metrics
    from turnout_operator.observe.store import Key, Store

LOG: Final = logging.getLogger(__name__)

RETRY_SECONDS: Final = 3.0
"""Pause after a list or a watch that failed."""
REFUSED_SECONDS: Final = 5.0
"""How soon a namespace that was refused is tried again."""
MISSING_SECONDS: Final = 30.0
"""How soon a kind is tried again without which a namespace is looked after."""
RESYNC_SECONDS: Final = 300.0
"""Time between two full lists, the net below the watches."""
RELIST_SECONDS: Final = 2.0
"""How soon a full list follows when a watch had to start over."""
ALERT_SECONDS: Final = 10.0
"""Lists that kopf makes in this first time are its start, not a watch that starts over."""
FORGET_SECONDS: Final = 60.0
"""How long a namespace must be refused, while others can be read, before what is known of it is dropped.

An API server that has just started refuses for some seconds what it allows later: rights and CRDs are not loaded yet.
A namespace that is created anew by whatever keeps it has its Role back within that time, too.
"""
PATIENCE_SECONDS: Final = 30.0
"""How long an operator that starts waits for a namespace that is neither read nor refused, while others are read."""
STOP_SECONDS: Final = 10.0
_LISTS: Final = 4
"""Scopes that are listed at the same time: many namespaces must not load the API server at once, and a large one must not delay the others."""


class Scope:
    """One namespace, or the whole cluster (None), and how far it can be read."""

    def __init__(self, namespace: str | None) -> None:
        self.namespace = namespace
        self.kinds: frozenset[Kind] = frozenset()
        """Kinds that could be listed last time."""
        self.synced = False
        """Whether it has been listed, and what is known of it is worth acting on."""
        self.refused_since: float | None = None
        """Since when the API server refuses it (monotonic); None: it does not."""
        self.asked_at = 0.0
        """When it was last asked for (monotonic)."""
        self.touched: set[Key] = set()
        """LLMDeployments and routes that lists have changed and that were not reported yet: a list that fails may have stored
        other kinds before."""
        self.relist = asyncio.Event()
        self.watched_since = 0.0

    def __str__(self) -> str:
        """Return how people read it."""
        return "the cluster" if self.namespace is None else f"namespace {self.namespace}"


class Scopes:
    """Keeps the store up to date with the cluster, scope by scope.

    *seen* is called with the kind, the type and the object of each watch event; *listed* with the keys that a full list has
    changed, and with all keys where a scope has become readable; *dropped* with the
    LLMDeployments of a namespace that was refused for so long that the store has forgotten it; *signals* after each start of kopf, which takes the process' signals for itself.
    """

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        metrics: Metrics,
        namespaces: Sequence[str],
        *,
        connect: Callable[[], Awaitable[kopf.ConnectionInfo]],
        seen: Callable[[Kind, str | None, Raw], None],
        listed: Callable[[set[Key]], None],
        dropped: Callable[[list[Key]], None],
        signals: Callable[[], None],
        failed: Callable[[BaseException, str], None],
    ) -> None:
        self._client = client
        self._store = store
        self._metrics = metrics
        self._connect = connect
        self._seen = seen
        self._listed = listed
        self._dropped = dropped
        self._signals = signals
        self._failed = failed
        self.scopes = [Scope(namespace) for namespace in namespaces] or [Scope(None)]
        self._slots = asyncio.Semaphore(_LISTS)
        self._unreadable: dict[tuple[str, str], None] = {}
        self._news = asyncio.Event()
        self._started_at = time.monotonic()
        self._first_at = math.inf
        """When the first scope was read."""

    def is_readable(self, namespace: str) -> bool:
        """Return whether *namespace* is listed and watched."""
        return any(
            scope.synced and scope.refused_since is None and scope.namespace in {None, namespace}
            for scope in self.scopes
        )

    async def first(self) -> None:
        """Wait until all that can be listed is listed: before that, a name could be assigned that another resource holds.

        What is refused is not waited for, what only fails is for `PATIENCE_SECONDS`; at least one scope must be read. A
        refusal counts only from then on: before, the rights or the CRDs may not have been there for any of them.
        """
        patience = self._started_at + PATIENCE_SECONDS
        while True:
            left = patience - time.monotonic()
            waiting = [
                scope
                for scope in self.scopes
                if not scope.synced and (scope.refused_since is None or scope.asked_at < self._first_at)
            ]
            if self._first_at < math.inf and (not waiting or left <= 0):
                return
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left if left > 0 else RETRY_SECONDS)

    def relist(self, namespace: str) -> None:
        """Have what holds *namespace* listed soon."""
        for scope in self.scopes:
            if scope.namespace in {None, namespace}:
                scope.relist.set()

    async def follow(self, scope: Scope) -> None:
        """List and watch *scope* until cancelled."""
        stop, watching = asyncio.Event(), None
        kinds: frozenset[Kind] = frozenset()
        try:
            while True:
                pause = await self._look(scope)
                if watching is not None and (watching.done() or scope.kinds != kinds or not scope.synced):
                    await self._end(scope, watching, stop)
                    watching = None
                if watching is None and scope.synced and scope.refused_since is None:
                    stop, kinds = asyncio.Event(), scope.kinds
                    scope.watched_since = time.monotonic()
                    watching = asyncio.create_task(
                        watch(
                            self._report(scope),
                            self._connect,
                            namespace=scope.namespace,
                            kinds=kinds,
                            stop=stop,
                            spawned=self._signals,
                        ),
                        name=f"watches of {scope}",
                    )
                await self._wait(scope, watching, pause)
        finally:
            if watching is not None:
                await self._end(scope, watching, stop)

    async def _look(self, scope: Scope) -> float:
        """List *scope*, and take note of how that went; return how soon to look again."""
        try:
            async with self._slots:
                scope.asked_at = time.monotonic()
                touched = await self._list(scope)
        except (Forbidden, NotFound) as error:
            self._is_refused(scope, error)
            return REFUSED_SECONDS
        except ApiError as error:
            LOG.warning("%s cannot be listed, trying again: %s", scope, error)
            if scope.refused_since is not None:
                scope.refused_since = time.monotonic()  # silence is no refusal: it counts from the next one
            return RETRY_SECONDS
        fresh = not scope.synced or scope.refused_since is not None
        scope.synced, scope.refused_since = True, None
        self._first_at = min(self._first_at, time.monotonic())
        self._news.set()
        if fresh:
            LOG.info("%s is looked after", scope)
            touched = {
                key
                for kind in WATCHED
                for key in self._store.keys(kind)
                if scope.namespace in {None, key.namespace}
            }
        self._listed(touched)
        return MISSING_SECONDS if len(scope.kinds) < len(WATCHED) else RESYNC_SECONDS

    async def _list(self, scope: Scope) -> set[Key]:
        """List all kinds of *scope* into the store. Raise ApiError where one cannot be listed that must be."""
        kinds: set[Kind] = set()
        claiming: list[tuple[Kind, list[Raw], list[Key]]] = []
        for kind in WATCHED:
            known = [key for key in self._store.keys(kind) if scope.namespace in {None, key.namespace}]
            try:
                found = await self._client.list(kind, scope.namespace, SELECTORS.get(kind, ""))
            except (Forbidden, NotFound) as error:
                self._note(scope, kind, error)
                if kind not in OPTIONAL:
                    raise
            else:
                self._note(scope, kind, None)
                kinds.add(kind)
                if kind in CLAIMING:
                    claiming.append((kind, found, known))
                else:
                    # At once, for all kinds together would need twice the memory.
                    scope.touched |= self._store.replace(kind, found, known)
                del found
        for kind, listed, known in claiming:  # all or none, for names are assigned by them
            scope.touched |= self._store.replace(kind, listed, known)
        scope.kinds = frozenset(kinds)
        touched, scope.touched = scope.touched, set()
        return touched

    def _is_refused(self, scope: Scope, error: ApiError) -> None:
        now = time.monotonic()
        if scope.refused_since is None:
            scope.refused_since = now
            hint = "; are Turnout's CRDs installed?" if isinstance(error, NotFound) else ""
            LOG.warning("%s cannot be read and is left out until it can be: %s%s", scope, error, hint)
        self._news.set()
        others = any(other.synced and other.refused_since is None for other in self.scopes)
        if (
            scope.namespace is not None
            and scope.synced
            and others
            and now - scope.refused_since >= FORGET_SECONDS
        ):
            LOG.warning(
                "%s has been refused for %.0f s: what is known of it is dropped", scope, FORGET_SECONDS
            )
            scope.synced = False
            gone = [key for key in self._store.keys(LLM_DEPLOYMENT) if key.namespace == scope.namespace]
            self._store.forget(scope.namespace)
            self._dropped(gone)

    def _note(self, scope: Scope, kind: Kind, error: ApiError | None) -> None:
        """Show that *kind* cannot be read, or that it can; say so once."""
        label = scope.namespace or "", kind.plural
        if error is not None and label not in self._unreadable:
            self._unreadable[label] = None
            self._metrics.unreadable.labels(*label).set(1)
            LOG.warning("%s of %s cannot be read: %s", kind.plural, scope, error)
        elif error is None and label in self._unreadable:
            del self._unreadable[label]
            self._metrics.unreadable.remove(*label)
            LOG.info("%s of %s can be read", kind.plural, scope)

    def _report(self, scope: Scope) -> Callable[[Kind, str | None, dict[str, Any]], None]:
        def report(kind: Kind, type_: str | None, raw: Raw) -> None:
            if type_ is None and time.monotonic() - scope.watched_since > ALERT_SECONDS:
                scope.relist.set()
            self._seen(kind, type_, raw)

        return report

    async def _wait(self, scope: Scope, watching: asyncio.Task[None] | None, seconds: float) -> None:
        """Wait until it is time to look at *scope* again, or something says that it should be sooner."""
        relist = asyncio.create_task(scope.relist.wait())
        try:
            waited = {relist} if watching is None else {relist, watching}
            done, _ = await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            relist.cancel()
        if done:
            scope.relist.clear()
            await asyncio.sleep(RELIST_SECONDS)

    async def _end(self, scope: Scope, watching: asyncio.Task[None], stop: asyncio.Event) -> None:
        """End the watches of *scope*, and report what has ended them where they have ended already."""
        asked = not watching.done()
        stop.set()
        _, left = await asyncio.wait({watching}, timeout=STOP_SECONDS)
        if left:
            watching.cancel()
            await asyncio.wait({watching}, timeout=STOP_SECONDS)
        if asked or not watching.done():
            return
        error = asyncio.CancelledError() if watching.cancelled() else watching.exception()
        self._failed(error or WatchesEnded("the watches ended by themselves"), str(scope))
