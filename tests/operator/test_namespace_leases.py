"""Which of several releases acts in a namespace, and what the others do meanwhile. Over leases in memory."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from support.router_running import eventually
from turnout_operator.errors import Conflict, Forbidden, NotFound, NotOurs, Unreachable
from turnout_operator.lease import Timing
from turnout_operator.namespace_leases import CLUSTER, MARK, TIMING, NamespaceLeases

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from turnout_operator.kube.client import KubeClient

FAST = Timing(duration_seconds=2, renew_seconds=0.3, renew_deadline_seconds=1.6, retry_seconds=0.2)
"""The same in less time: the whole seconds of a record stay."""


@dataclass
class Leases:
    """What an API server would keep, and what it is asked."""

    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    writes: list[tuple[str, str]] = field(default_factory=list)
    """Namespace and holder of each write that was taken."""
    refused: dict[str, Exception] = field(default_factory=dict)
    """What is raised about a namespace."""
    version: int = 0

    async def get(self, _: object, namespace: str, name: str) -> dict[str, Any]:
        self._check(namespace)
        if (namespace, name) not in self.objects:
            raise NotFound("there is none", status=404)
        return self.objects[namespace, name]

    async def create(self, _: object, manifest: dict[str, Any], *, fenced: bool) -> dict[str, Any]:
        assert not fenced
        meta = manifest["metadata"]
        self._check(meta["namespace"])
        if (meta["namespace"], meta["name"]) in self.objects:
            raise Conflict("exists", status=409)
        return self._keep(manifest)

    async def replace(self, _: object, manifest: dict[str, Any]) -> dict[str, Any]:
        meta = manifest["metadata"]
        self._check(meta["namespace"])
        live = self.objects.get((meta["namespace"], meta["name"]))
        if live is None:
            raise NotFound("there is none", status=404)
        if live["metadata"]["resourceVersion"] != meta["resourceVersion"]:
            raise Conflict("changed", status=409)
        return self._keep(manifest)

    def holder(self, namespace: str) -> str:
        return str(self.objects[namespace, MARK]["spec"]["holderIdentity"])

    def write(self, namespace: str, holder: str) -> None:
        """Write a mark as another program."""
        self._keep({"metadata": {"namespace": namespace, "name": MARK}, "spec": {"holderIdentity": holder}})

    def _check(self, namespace: str) -> None:
        if namespace in self.refused:
            raise self.refused[namespace]

    def _keep(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        meta = {**manifest["metadata"], "resourceVersion": str(self.version)}
        kept = {**manifest, "metadata": meta}
        self.objects[meta["namespace"], meta["name"]] = kept
        self.writes.append((meta["namespace"], manifest["spec"]["holderIdentity"]))
        return kept


@dataclass
class Release:
    """One release, and what it says."""

    namespace_leases: NamespaceLeases
    gained: list[str]
    kept_out: list[tuple[str, str]]
    counts: list[tuple[int, int]]
    failures: list[BaseException]
    task: asyncio.Task[None] | None = None

    async def die(self) -> None:
        """End without giving anything back."""
        assert self.task is not None
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@asynccontextmanager
async def release(
    leases: Leases, name: str, *namespaces: str, occupied: set[str] | None = None
) -> AsyncIterator[Release]:
    """Run a release that looks after *namespaces*, or after all of them, of which some are *occupied*."""
    kept_out: list[tuple[str, str]] = []
    counts: list[tuple[int, int]] = []
    failures: list[BaseException] = []
    made = Release(
        NamespaceLeases(
            cast("KubeClient", leases),
            release=name,
            namespaces=namespaces,
            failed=failures.append,
            kept_out=lambda namespace, by: kept_out.append((namespace, by)),
            changed=lambda own, others: counts.append((own, others)),
            timing=FAST,
        ),
        [],
        kept_out,
        counts,
        failures,
    )
    made.task = asyncio.create_task(
        made.namespace_leases.keep(lambda: occupied or set(namespaces), made.gained.append)
    )
    try:
        yield made
    finally:
        await made.die()


def test_a_release_stops_before_another_may_take_over() -> None:
    """With the longest request about a mark (3 s) its deadline ends before the others' wait."""
    assert TIMING.renew_deadline_seconds + 3.0 < TIMING.duration_seconds
    assert 2 * TIMING.renew_seconds < TIMING.renew_deadline_seconds


async def test_the_second_stands_still_until_the_first_is_gone() -> None:
    """It writes nothing and names the acting release; the first dies, and within the mark's time it acts there."""
    leases = Leases()
    async with release(leases, "first/op", "w") as first:
        await eventually(lambda: first.namespace_leases.holds("w"))
        async with release(leases, "second/op", "w") as second:
            await eventually(lambda: bool(second.kept_out))
            assert second.kept_out == [("w", "the operator of release first/op acts there")]
            assert "first/op acts there" in second.namespace_leases.sentence()
            with pytest.raises(NotOurs):
                second.namespace_leases.fence("w")
            assert not await second.namespace_leases.claim("w")
            begun = len(leases.writes)
            await eventually(lambda: len(leases.writes) >= begun + 5)
            assert {holder for _, holder in leases.writes} == {"first/op"}
            assert second.counts[-1] == (0, 1)
            await first.die()
            await eventually(lambda: second.namespace_leases.holds("w"))
            assert second.gained == ["w"]
            assert second.namespace_leases.sentence() == ""
            assert not first.namespace_leases.holds("w")


async def test_a_release_that_starts_again_goes_on_at_once() -> None:
    """Its mark names the release: no other may slip in between, and there is nothing to wait for."""
    leases = Leases()
    async with release(leases, "first/op", "w") as before:
        await eventually(lambda: before.namespace_leases.holds("w"))
    async with release(leases, "second/op", "w") as second, release(leases, "first/op", "w") as after:
        await eventually(lambda: after.namespace_leases.holds("w"))
        assert not second.namespace_leases.holds("w")
        assert leases.holder("w") == "first/op"


async def test_namespaces_that_overlap_in_part_are_shared_out() -> None:
    """Each serves what is its own alone, and of what both want the first keeps what it has."""
    leases = Leases()
    async with release(leases, "first/op", "w1", "w2") as first:
        await eventually(lambda: first.namespace_leases.holds("w1") and first.namespace_leases.holds("w2"))
        async with release(leases, "second/op", "w2", "w3") as second:
            await eventually(lambda: second.namespace_leases.holds("w3") and bool(second.kept_out))
            assert not second.namespace_leases.holds("w2")
            assert list(second.namespace_leases.others()) == ["w2"]
            assert second.counts[-1] == (1, 1)


async def test_of_two_that_look_after_all_namespaces_one_stands_still_wholly() -> None:
    """Also in namespaces that come later, whichever sees them first."""
    leases, occupied = Leases(), {"w1"}
    async with release(leases, "first/op", occupied=occupied) as first:
        await eventually(lambda: first.namespace_leases.holds("w1"))
        async with release(leases, "second/op", occupied=occupied) as second:
            await eventually(lambda: bool(second.kept_out))
            occupied.add("w2")
            assert not await second.namespace_leases.claim("w2")
            await eventually(lambda: first.namespace_leases.holds("w2"))
            assert second.kept_out == [("", "the operator of release first/op acts there")]
            assert second.namespace_leases.sentence().startswith("stands still: ")
            assert {holder for _, holder in leases.writes} == {"first/op"}
            await first.die()
            await eventually(
                lambda: second.namespace_leases.holds("w1") and second.namespace_leases.holds("w2")
            )
            assert leases.holder(CLUSTER) == "second/op"


async def test_one_for_all_and_one_for_some() -> None:
    """A release for all namespaces leaves those out in which another release acts."""
    leases = Leases()
    async with release(leases, "some/op", "w1") as some:
        await eventually(lambda: some.namespace_leases.holds("w1"))
        async with release(leases, "all/op", occupied={"w1", "w2"}) as everywhere:
            await eventually(lambda: everywhere.namespace_leases.holds("w2") and bool(everywhere.kept_out))
            assert not everywhere.namespace_leases.holds("w1")
            assert list(everywhere.namespace_leases.others()) == ["w1"]


async def test_a_namespace_that_empties_is_given_back() -> None:
    """The next release need not wait for it."""
    leases, occupied = Leases(), {"w1", "w2"}
    async with release(leases, "all/op", occupied=occupied) as everywhere:
        await eventually(
            lambda: everywhere.namespace_leases.holds("w1") and everywhere.namespace_leases.holds("w2")
        )
        occupied.discard("w2")
        await eventually(lambda: leases.holder("w2") == "")
        assert everywhere.namespace_leases.holds("w1")


@pytest.mark.parametrize(
    "refusal",
    [Forbidden("no right", status=403), Unreachable("no answer"), RuntimeError("broken"), KeyError("spec")],
    ids=lambda refusal: type(refusal).__name__,
)
async def test_a_mark_that_cannot_be_had_stops_its_namespace_alone(refusal: Exception) -> None:
    """Without it nothing is written there, why is said, and the other namespaces do not notice; later it is taken."""
    leases = Leases(refused={"w1": refusal})
    async with release(leases, "first/op", "w1", "w2") as first:
        await eventually(lambda: first.namespace_leases.holds("w2") and bool(first.kept_out))
        assert not await first.namespace_leases.claim("w1")
        assert str(refusal.args[0]) in first.namespace_leases.others()["w1"]
        assert bool(first.failures) == (not isinstance(refusal, (Forbidden, Unreachable)))
        leases.refused.clear()
        await eventually(lambda: first.namespace_leases.holds("w1"))


async def test_a_mark_that_is_written_over_is_respected_at_once() -> None:
    """A tenant with a forged mark stops the operator in its own namespace, and in no other."""
    leases = Leases()
    async with release(leases, "first/op", "w1", "w2") as first:
        await eventually(lambda: first.namespace_leases.holds("w1") and first.namespace_leases.holds("w2"))
        leases.write("w1", "x" * 100_000)
        await eventually(lambda: bool(first.kept_out))
        assert not first.namespace_leases.holds("w1")
        assert len(first.namespace_leases.sentence()) < 500
        assert first.namespace_leases.holds("w2")
        await eventually(lambda: first.namespace_leases.holds("w1"))  # the other never renews it


async def test_a_mark_that_is_deleted_is_made_again() -> None:
    """Its place is not free for another release while this one is alive."""
    leases = Leases()
    async with release(leases, "first/op", "w") as first:
        await eventually(lambda: first.namespace_leases.holds("w"))
        del leases.objects["w", MARK]
        await eventually(lambda: ("w", MARK) in leases.objects)
        assert leases.holder("w") == "first/op"


async def test_a_renewal_is_one_request() -> None:
    """What was written last is known, so it is not read first."""
    leases = Leases()
    async with release(leases, "first/op", "w") as first:
        await eventually(lambda: first.namespace_leases.holds("w"))
        leases.get = None  # type: ignore[method-assign,assignment]
        begun = len(leases.writes)
        await eventually(lambda: len(leases.writes) >= begun + 3)
        assert first.failures == []
