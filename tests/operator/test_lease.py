"""Taking, renewing or waiting for the lease: the decision, and the fence before every write."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.faults import errors_of_awaiting
from support.router_running import eventually
from turnout_operator.errors import LeadershipLost, NotFound
from turnout_operator.kube.client import KubeClient
from turnout_operator.lease import Lease, Observation, Timing, observe, record, step
from turnout_runtime.supervision import Backoff, Supervisor

TIMING = Timing()
WHEN = datetime(2026, 11, 1, tzinfo=UTC)


def made(before: dict[str, Any] | None, identity: str) -> dict[str, Any]:
    return record(before, namespace="ns", name="lease", identity=identity, timing=TIMING, now=WHEN)


@pytest.mark.parametrize(
    ("holder", "age", "expected"),
    [
        ("me", 0.0, "renew"),
        ("me", 99.0, "renew"),
        ("", 0.0, "take"),
        ("other", 0.0, "wait"),
        ("other", 14.9, "wait"),
        ("other", 15.0, "take"),
    ],
    ids=["own", "own though old", "released", "fresh", "nearly stale", "stale"],
)
def test_a_lease_is_taken_only_when_free_or_stale(holder: str, age: float, expected: str) -> None:
    """Another's lease is respected for a whole duration since it last changed."""
    assert step(Observation(holder, "7", 100.0), "me", TIMING, 100.0 + age) == expected


def test_age_counts_from_the_last_change_that_was_seen() -> None:
    """Times that others wrote are not read, so their clocks may be wrong by any amount."""
    lease = {
        "metadata": {"resourceVersion": "1"},
        "spec": {"holderIdentity": "other", "renewTime": "1999-01-01T00:00:00Z"},
    }
    first = observe(None, lease, 10.0)
    assert observe(first, lease, 20.0) == first
    renewed = {**lease, "metadata": {"resourceVersion": "2"}}
    assert observe(first, renewed, 20.0).since == 20.0


@given(renewals=st.lists(st.floats(0.1, 14.9), max_size=20))
def test_a_holder_that_renews_is_never_robbed(renewals: list[float]) -> None:
    """As long as the record changes within every duration, a waiting operator waits."""
    now, seen = 0.0, None
    for version, pause in enumerate(renewals):
        seen = observe(
            seen, {"metadata": {"resourceVersion": str(version)}, "spec": {"holderIdentity": "other"}}, now
        )
        now += pause
        assert step(seen, "me", TIMING, now) == "wait"


def test_a_holder_stops_before_another_may_take_over() -> None:
    """The renew deadline, with the longest wait for an answer, ends before the duration."""
    assert TIMING.renew_deadline_seconds + 3.0 < TIMING.duration_seconds
    assert TIMING.duration_seconds + 2 * TIMING.retry_seconds <= 20


def test_changes_of_holder_are_counted() -> None:
    """The field leaseTransitions says how often the acting operator changed; renewing does not count."""
    first = made(None, "a")
    assert first["spec"]["leaseTransitions"] == 0
    again = made({**first, "metadata": {"resourceVersion": "1"}}, "a")
    assert again["spec"]["leaseTransitions"] == 0
    assert made(made(again, ""), "b")["spec"]["leaseTransitions"] == 1


async def test_nothing_is_written_without_the_lease() -> None:
    """The fence is shut before the lease is held."""

    def nowhere() -> Any:
        raise AssertionError("no request may be made")

    lease = Lease(KubeClient(nowhere), namespace="ns", name="lease", identity="me")
    with pytest.raises(LeadershipLost):
        lease.fence()


ERRORS = errors_of_awaiting()
FAST = Timing(duration_seconds=2, renew_seconds=0.05, renew_deadline_seconds=1.0, retry_seconds=0.05)


class Records:
    """One lease, as an API server keeps it; each request raises the next of *errors* first."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.lease: dict[str, Any] | None = None
        self.renewals = 0

    async def get(self, *_: object) -> dict[str, Any]:
        self._fail()
        if self.lease is None:
            raise NotFound("there is none", status=404)
        return self.lease

    async def create(self, _: object, manifest: dict[str, Any], **__: object) -> dict[str, Any]:
        return await self.replace(None, manifest)

    async def replace(self, _: object, manifest: dict[str, Any]) -> dict[str, Any]:
        self._fail()
        self.renewals += 1
        self.lease = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.renewals)}}
        return self.lease

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_a_renewal_that_raises_is_made_again(error: BaseException) -> None:
    """Whatever it is: it is counted, the lease is kept, and the operator acts on."""
    records, counted = Records(), []
    tasks = Supervisor(counted.append, logging.getLogger(__name__), backoff=Backoff(0.01, 0.05))
    lease = Lease(
        cast("KubeClient", records),
        namespace="ns",
        name="lease",
        identity="me",
        timing=FAST,
        failed=lambda raised: tasks.note("lease", raised),
    )
    await lease.acquire()
    tasks.run("lease", lease.keep, fatal=(LeadershipLost,))
    records.errors.append(error)
    await eventually(lambda: not records.errors)
    renewals = records.renewals
    await eventually(lambda: records.renewals >= renewals + 3)
    assert counted == ["lease"]
    lease.fence()
    await tasks.stop()


async def test_a_lease_that_cannot_be_renewed_in_time_is_lost() -> None:
    """Then another operator may act, and this one ends, whatever keeps it from renewing."""
    records = Records()
    tasks = Supervisor(lambda _: None, logging.getLogger(__name__), backoff=Backoff(0.01, 0.05))
    lease = Lease(cast("KubeClient", records), namespace="ns", name="lease", identity="me", timing=FAST)
    await lease.acquire()
    tasks.run("lease", lease.keep, fatal=(LeadershipLost,))
    records.errors += [RuntimeError("broken")] * 10_000
    with pytest.raises(LeadershipLost, match="not renewed in time"):
        await asyncio.wait_for(tasks.ended(), 10)
    await tasks.stop()
