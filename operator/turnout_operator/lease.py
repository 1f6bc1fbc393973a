"""Who acts: one operator holds a Lease, the others wait for it.

A holder renews every few seconds. A waiting operator takes over when the record has not
*changed* for a whole lease duration by its own monotonic clock, as client-go does: times that
others wrote are never compared with one's own, so skewed clocks do no harm. A holder that could
not renew for `Timing.renew_deadline_seconds` stops acting before anybody may take over.
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
    """Return the Lease that says *identity* holds it (empty: nobody does) from *now* on."""
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
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing or Timing()
        self._report = held
        self._seen: Observation | None = None
        self._renewed_at: float | None = None
        """Monotonic time at which the last successful renewal was sent. None: not held."""

    def fence(self) -> None:
        """Raise LeadershipLost unless the lease is held and fresh. Asked before every write."""
        at = self._renewed_at
        if at is None or time.monotonic() - at >= self._timing.renew_deadline_seconds:
            raise LeadershipLost(f"lease {self._namespace}/{self._name} was not renewed in time")

    async def acquire(self) -> None:
        """Return once the lease is held."""
        LOG.info("waiting for the lease %s/%s as %s", self._namespace, self._name, self._identity)
        while not await self._attempt():  # noqa: ASYNC110 - the API server is asked, not a local flag
            await asyncio.sleep(self._timing.retry_seconds)
        LOG.info("holding the lease %s/%s", self._namespace, self._name)
        self._report(True)

    async def keep(self) -> None:
        """Renew until cancelled. Raise LeadershipLost when it is another's, or cannot be renewed in time."""
        try:
            while True:
                await asyncio.sleep(self._timing.renew_seconds)
                while not await self._attempt():
                    if self._seen is not None and self._seen.holder not in {"", self._identity}:
                        self._renewed_at = None
                    self.fence()
                    await asyncio.sleep(1.0)
        finally:
            self._report(False)

    async def release(self) -> None:
        """Give the lease back, so that the next operator need not wait. Harmless where it is not held."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            lease = await self._client.get(LEASE, self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                await self._client.replace(LEASE, self._record(lease, ""))
                LOG.info("released the lease %s/%s", self._namespace, self._name)
        except ApiError as error:
            LOG.warning("the lease was not released, so the next operator waits until it is stale: %s", error)

    async def _attempt(self) -> bool:
        """Take or renew the lease if that is due; return whether it is held now."""
        started = time.monotonic()
        try:
            try:
                lease: Raw | None = await self._client.get(LEASE, self._namespace, self._name)
            except NotFound:
                lease = None
            if lease is None:
                written = await self._client.create(LEASE, self._record(None, self._identity), fenced=False)
            else:
                self._seen = observe(self._seen, lease, started)
                if step(self._seen, self._identity, self._timing, time.monotonic()) == "wait":
                    return False
                written = await self._client.replace(LEASE, self._record(lease, self._identity))
        except Conflict:
            return False
        except ApiError as error:
            LOG.warning("the lease cannot be read or written: %s", error)
            return False
        self._seen = observe(None, written, started)
        self._renewed_at = started
        return True

    def _record(self, before: Raw | None, identity: str) -> Raw:
        return record(
            before,
            namespace=self._namespace,
            name=self._name,
            identity=identity,
            timing=self._timing,
            now=datetime.now(UTC),
        )
