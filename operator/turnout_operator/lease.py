"""Who acts: one operator holds a Lease, the others wait for it.

A holder renews every few seconds. A waiting operator takes over when the record has not
*changed* for a whole lease duration by its own monotonic clock, as client-go does: times that
others wrote are never compared with one's own, so skewed clocks do no harm. A holder that could
not renew for `Timing.renew_deadline_seconds` stops acting before another may take over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from turnout_operator.errors import ApiError, Conflict, LeadershipLost, NotFound
from turnout_operator.kube.kinds import LEASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_operator.kube.client import KubeClient, Raw

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of the election, in seconds."""

    duration_seconds: int = 15
    """How long a record that does not change keeps the others away."""
    renew_seconds: float = 5.0
    """How often the holder renews."""
    renew_deadline_seconds: float = 11.0
    """How long after its last renewal a holder still acts. Below the duration, by more than a request takes."""
    retry_seconds: float = 2.0
    """How often the others look. Duration plus two of these bounds the time to take over: 19 s."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A lease as it was seen, and since when it has looked like that."""

    holder: str
    """Identity of the holder; empty: released."""
    version: str
    """``resourceVersion``: any write changes it."""
    since: float
    """Own monotonic time, in seconds, at which this version was first seen."""


Step = Literal["take", "renew", "wait"]


def observe(before: Observation | None, lease: Raw, now: float) -> Observation:
    """Return what *lease* looks like; the time of an unchanged record is kept."""
    holder = lease.get("spec", {}).get("holderIdentity") or ""
    version = lease["metadata"]["resourceVersion"]
    if before is not None and before.version == version:
        return before
    return Observation(holder, version, now)


def step(seen: Observation, identity: str, timing: Timing, now: float) -> Step:
    """Decide what *identity* does about a lease: take it where it is free or stale, renew its own, or wait."""
    if seen.holder == identity:
        return "renew"
    if not seen.holder or now - seen.since >= timing.duration_seconds:
        return "take"
    return "wait"


def record(
    before: Raw | None, *, namespace: str, name: str, identity: str, timing: Timing, now: datetime
) -> Raw:
    """Return the Lease that says *identity* holds it (empty: no operator does) from *now* on."""
    spec: dict[str, Any] = dict((before or {}).get("spec", {}))
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if spec.get("holderIdentity", "") != identity:
        if identity:
            spec["leaseTransitions"] = spec.get("leaseTransitions", -1 if before is None else 0) + 1
        spec["acquireTime"] = stamp
    spec |= {"holderIdentity": identity, "leaseDurationSeconds": timing.duration_seconds, "renewTime": stamp}
    meta = (before or {}).get("metadata") or {"namespace": namespace, "name": name}
    return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": meta, "spec": spec}


class Lease:
    """The Lease of this installation, as one candidate sees it."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing | None = None,
        held: Callable[[bool], None] = lambda _: None,
        failed: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing or Timing()
        self._report = held
        self._failed = failed
        """Called with what an attempt raised that is no answer of the API server's."""
        self.problem = ""
        """Why the lease could not be read or written at the last attempt; empty: it could."""
        self._written: Raw | None = None
        """The record as it was written last, while nothing else is known: renewed without being read."""
        self._seen: Observation | None = None
        self._renewed_at: float | None = None
        """Monotonic time at which the last successful renewal was sent. None: not held."""

    @property
    def holder(self) -> str:
        """Who held the lease when it was last seen; empty: it was free, or never seen."""
        return "" if self._seen is None else self._seen.holder

    def fresh(self) -> bool:
        """Return whether the lease is held, and was renewed in time."""
        at = self._renewed_at
        return at is not None and time.monotonic() - at < self._timing.renew_deadline_seconds

    def fence(self) -> None:
        """Raise LeadershipLost unless the lease is held and fresh. Asked before every write."""
        if not self.fresh():
            raise LeadershipLost(f"lease {self._namespace}/{self._name} was not renewed in time")

    async def acquire(self) -> None:
        """Return once the lease is held."""
        LOG.info("waiting for the lease %s/%s as %s", self._namespace, self._name, self._identity)
        while not await self.attempt():  # noqa: ASYNC110 - the API server is asked, not a local flag
            await asyncio.sleep(self._timing.retry_seconds)
        LOG.info("holding the lease %s/%s", self._namespace, self._name)
        self._report(True)

    async def keep(self) -> None:
        """Renew until cancelled. Raise LeadershipLost when it is another's, or cannot be renewed in time."""
        try:
            while True:
                self.fence()
                await asyncio.sleep(self._timing.renew_seconds)
                while not await self.attempt():
                    self.fence()
                    await asyncio.sleep(1.0)
        finally:
            self._report(False)

    async def release(self) -> None:
        """Give the lease back, so that the next operator need not wait. Harmless where it is not held."""
        if self._renewed_at is None:
            return
        self._renewed_at = self._written = None
        try:
            lease = await self._client.get(LEASE, self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                await self._client.replace(LEASE, self._record(lease, ""))
                LOG.info("released the lease %s/%s", self._namespace, self._name)
        except NotFound:
            return
        except ApiError as error:
            LOG.warning("the lease was not released, so the next operator waits until it is stale: %s", error)

    async def attempt(self) -> bool:
        """Take or renew the lease if that is due; return whether it is held now. Whatever goes wrong, it is not."""
        started = time.monotonic()
        problem = ""
        try:
            written = await self._write(started)
        except Conflict:
            written = None
        except ApiError as error:
            written, problem = None, str(error)
        except Exception as error:  # noqa: BLE001 - the next attempt must come: without it the lease is lost
            written, problem = None, f"{type(error).__name__}: {error}"
            self._failed(error)
        if problem and problem != self.problem:
            LOG.warning("the lease %s/%s cannot be read or written: %s", self._namespace, self._name, problem)
        self.problem, self._written = problem, written
        if written is None:
            if self.holder not in {"", self._identity}:
                self._renewed_at = None
            return False
        self._seen = observe(None, written, started)
        self._renewed_at = started
        return True

    async def _write(self, started: float) -> Raw | None:
        """Write the record if that is due, and return it; None where it is another's. Raise ApiError."""
        if self._written is not None:
            # No other client has written since: otherwise this is a Conflict, and the next attempt reads.
            return await self._client.replace(LEASE, self._record(self._written, self._identity))
        try:
            lease = await self._client.get(LEASE, self._namespace, self._name)
        except NotFound:
            return await self._client.create(LEASE, self._record(None, self._identity), fenced=False)
        self._seen = observe(self._seen, lease, started)
        if step(self._seen, self._identity, self._timing, time.monotonic()) == "wait":
            return None
        return await self._client.replace(LEASE, self._record(lease, self._identity))

    def _record(self, before: Raw | None, identity: str) -> Raw:
        return record(
            before,
            namespace=self._namespace,
            name=self._name,
            identity=identity,
            timing=self._timing,
            now=datetime.now(UTC),
        )
