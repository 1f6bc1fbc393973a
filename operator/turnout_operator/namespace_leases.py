"""The namespaces in which this release acts: one release at a time in each, by a Lease that all releases share.

The lease of `lease.py` lies in the release's own namespace and settles which of its replicas acts. It says nothing to
another release, which would write to the same objects. So a release marks every namespace that it acts in with a Lease
there, under one name for all releases, and one that looks after all namespaces first marks the whole cluster. Where
another release holds a mark, this one does nothing and says so; it takes over once the mark has not changed for
`TIMING.duration_seconds` by its own clock.

Marks are kept over a restart: they name the release, not the process, and are not given back when it stops. Otherwise
each restart would be a chance for the other release to take the namespace, with its own image and all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from turnout_operator.errors import NotOurs
from turnout_operator.lease import Lease, Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from turnout_operator.kube.client import KubeClient

LOG: Final = logging.getLogger(__name__)

TASK: Final = "namespaces"
"""Name under which failures are counted."""
MARK: Final = "operator.turnout.dev"
"""Name of the Lease in every namespace. No release's own lease has a dot in its name."""
CLUSTER: Final = "kube-public"
"""Where the mark of the whole cluster lies: a namespace that every cluster has and no tenant may write to. Managed
clusters that close kube-system leave it open."""
TIMING: Final = Timing(duration_seconds=30, renew_seconds=8.0, renew_deadline_seconds=20.0, retry_seconds=4.0)
"""Slower than the election of replicas: a mark costs a request per namespace each time."""
LOOKS: Final = 8
"""How often within a retry the operator checks which marks are due."""
CONCURRENCY: Final = 16
"""Marks that are read or written at the same time."""
_LONGEST_NAME: Final = 256
"""Longest name of a holder that is shown: a tenant that may write to the namespace may write anything there."""
_SHOWN: Final = 5
"""Namespaces that a sentence names."""


@dataclass(slots=True)
class _Mark:
    """One mark, as this release sees it."""

    lease: Lease
    held: bool = False
    """Whether it was held when it was last looked at."""
    looked_at: float = -math.inf
    """Monotonic time of the last attempt."""
    renewed: bool = False
    """Whether that succeeded."""
    kept_out_by: str = ""
    """The release or the error that kept this release out when that was last reported; empty: none."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class NamespaceLeases:
    """The namespaces that this release may act in."""

    def __init__(
        self,
        client: KubeClient,
        *,
        release: str,
        namespaces: Iterable[str] = (),
        failed: Callable[[BaseException], None] = lambda _: None,
        kept_out: Callable[[str, str], None] = lambda _namespace, _by: None,
        changed: Callable[[int, int], None] = lambda _own, _others: None,
        timing: Timing = TIMING,
    ) -> None:
        self._client = client
        self._release = release
        """Name of the holder: the same for all replicas, different for each release."""
        self._fixed = tuple(namespaces)
        """Namespaces that are marked whether or not there is anything in them. Empty: it looks after all of them."""
        self._failed = failed
        self._kept_out = kept_out
        """Called with the namespace (empty: all) and what keeps this release out, each time that changes."""
        self._changed = changed
        """Called with the number of namespaces that are this release's, and of those that are others'."""
        self._timing = timing
        self._marks: dict[str, _Mark] = {}
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._gained: Callable[[str], None] = lambda _: None

    def holds(self, namespace: str) -> bool:
        """Return whether this release may act in *namespace* now."""
        return self._fresh(namespace) and (bool(self._fixed) or self._fresh(CLUSTER))

    def fence(self, namespace: str) -> None:
        """Raise NotOurs unless this release may act in *namespace*. Asked before every write."""
        if not self.holds(namespace):
            raise NotOurs(f"another release acts in namespace {namespace}, or may do so by now")

    async def claim(self, namespace: str) -> bool:
        """Return whether this release may act in *namespace*, having tried to make it so if that is due."""
        if self.holds(namespace):
            return True
        for each in (namespace,) if self._fixed else (CLUSTER, namespace):
            if not self._fresh(each):
                await self._look(each)
            if not self._fresh(each):
                return False
        return self.holds(namespace)

    async def keep(self, wanted: Callable[[], Iterable[str]], gained: Callable[[str], None]) -> None:
        """Renew the marks of all namespaces that are *wanted*, and try for those that are others', until cancelled.

        *gained* is called with each namespace in which this release may act from now on.
        """
        self._gained = gained
        while True:
            namespaces = set(self._fixed or wanted())
            if not self._fixed:
                await self._look(CLUSTER)
            reachable = namespaces if self._fixed or self._fresh(CLUSTER) else set()
            await asyncio.gather(*(self._look(namespace) for namespace in reachable))
            for namespace in self._marks.keys() - namespaces - {CLUSTER}:
                await self._marks.pop(namespace).lease.release()
            self._count()
            await asyncio.sleep(self._timing.retry_seconds / LOOKS)

    def others(self) -> Mapping[str, str]:
        """Return what keeps this release out, by namespace; that of the whole cluster is the empty one."""
        return {
            "" if namespace == CLUSTER and not self._fixed else namespace: mark.kept_out_by
            for namespace, mark in self._marks.items()
            if mark.kept_out_by
        }

    def sentence(self) -> str:
        """Return where this release stands still, and why; empty where it does not."""
        others = self.others()
        if not others:
            return ""
        if "" in others:
            return f"stands still: {others['']}"
        shown = sorted(others.items())[:_SHOWN]
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        listed = ", ".join(f"{namespace} ({by})" for namespace, by in shown)
        return f"stands still in {listed}{more}"

    def _fresh(self, namespace: str) -> bool:
        mark = self._marks.get(namespace)
        return mark is not None and mark.lease.fresh()

    async def _look(self, namespace: str) -> None:
        """Renew the mark of *namespace*, or try for it, if that is due."""
        mark = self._marks.get(namespace)
        if mark is None:
            lease = Lease(
                self._client,
                namespace=namespace,
                name=MARK,
                identity=self._release,
                timing=self._timing,
                failed=self._failed,
            )
            mark = self._marks[namespace] = _Mark(lease)
        async with mark.lock:
            pause = self._timing.renew_seconds if mark.renewed else self._timing.retry_seconds
            now = time.monotonic()
            if now - mark.looked_at < pause:
                self._report(namespace, mark)
                return
            mark.looked_at = now
            async with self._slots:
                mark.renewed = await mark.lease.attempt()
            self._report(namespace, mark)

    def _report(self, namespace: str, mark: _Mark) -> None:
        """Log and report a change: the mark is this release's, or why it is not."""
        held = mark.lease.fresh()
        by = "" if held else self._obstacle(mark.lease)
        gained, mark.held = held and not mark.held, held
        if by and by != mark.kept_out_by:
            where = "" if namespace == CLUSTER and not self._fixed else namespace
            LOG.warning("standing still in %s: %s", where or "all namespaces", by)
            self._kept_out(where, by)
        mark.kept_out_by = by
        if gained:
            LOG.info("acting in %s", namespace if namespace != CLUSTER else "the cluster")
            self._gained(namespace)

    def _obstacle(self, lease: Lease) -> str:
        holder = lease.holder
        if holder and holder != self._release:
            return f"the operator of release {holder[:_LONGEST_NAME]} acts there"
        return lease.problem

    def _count(self) -> None:
        counted = [mark for namespace, mark in self._marks.items() if self._fixed or namespace != CLUSTER]
        own = sum(mark.held for mark in counted)
        self._changed(own, len(self.others()))
