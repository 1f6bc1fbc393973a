"""One pod: its address, volumes and containers, its status in the API server, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from turnout_devcluster.node import decide
from turnout_devcluster.node.api import STRATEGIC, Api, pause
from turnout_devcluster.node.attempts import PodDisk, PodRecord
from turnout_devcluster.node.container import Container
from turnout_devcluster.node.errors import ApiError, ConflictError, NodeError, NotFoundError, UnreachableError
from turnout_devcluster.node.fields import PodFacts
from turnout_devcluster.node.model import Json, Refusal, shape_of
from turnout_devcluster.node.plan import ContainerPlan, PodFolder, refused
from turnout_devcluster.node.pod_files import PodFiles
from turnout_devcluster.node.status import Placement, differs, pod_status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from turnout_devcluster.node.addresses import AddressPool
    from turnout_devcluster.node.config_source import ConfigSource
    from turnout_devcluster.node.context import Runtime
    from turnout_devcluster.node.nodes import NodePlan

REFRESH_SECONDS: Final = 5.0
"""How often a pod's volumes are compared with what they come from."""
RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts to set a pod up; the last one repeats."""
PUBLISH_RETRY_SECONDS: Final = 1.0
ENDED: Final = frozenset({"Succeeded", "Failed"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What all pods of this node share."""

    api: Api
    config_source: ConfigSource
    addresses: AddressPool
    node: NodePlan
    runtime: Runtime
    state_dir: Path


def deletion_deadline(pod: Json) -> float | None:
    """Return when the grace period of a pod that is being deleted ends (Unix seconds), else None.

    The API server cuts times to whole seconds; the second is given back.
    """
    stamp = pod["metadata"].get("deletionTimestamp")
    return None if stamp is None else datetime.fromisoformat(stamp).timestamp() + 1.0


class Pod:
    """Runs one pod until it is gone from the API server or this agent ends."""

    def __init__(self, pod: Json, disk: PodDisk, context: NodeContext) -> None:
        self.pod = pod
        self.disk = disk
        self._context = context
        self._shape = shape_of(pod)
        self._containers = {c.name: Container(c.name, self, context.runtime) for c in self._shape.containers}
        self._record: PodRecord | None = None
        self._prepared = False
        self._files = PodFiles(
            PodFolder(str(disk.path)), context.api.endpoint, context.config_source, context.state_dir
        )
        self._over = (pod.get("status") or {}).get("phase") in ENDED
        self._refresh_at = 0.0
        self._removed = False
        self._failed: Refusal | None = None
        self._final = False
        self._wake = asyncio.Event()
        self._dirty = asyncio.Event()
        self._attempts = 0
        self._failed_deadline = 0.0
        self.begun = False
        """Whether `run` has been called."""

    def again(self) -> Pod:
        """Return the same pod as one that has not begun: what runs of it is found by its record."""
        fresh = Pod(self.pod, self.disk, self._context)
        if self._removed:
            fresh.removed()
        return fresh

    # Input

    @property
    def record(self) -> PodRecord:
        """What is stored of it. Raise NodeError before it has an address."""
        if self._record is None:
            raise NodeError(f"pod {self.pod['metadata']['name']} has no address yet")
        return self._record

    @property
    def deleting(self) -> bool:
        """Whether nothing may be started any more."""
        return (
            self._removed or self._failed is not None or bool(self.pod["metadata"].get("deletionTimestamp"))
        )

    @property
    def address(self) -> str:
        """The pod's address, empty where it has none yet."""
        return self._record.ip if self._record else ""

    def wake(self) -> None:
        """Look at everything again."""
        self._wake.set()
        self._dirty.set()

    def changed(self, pod: Json) -> None:
        """Handle a new version of the pod."""
        if int(pod["metadata"]["resourceVersion"]) >= int(self.pod["metadata"]["resourceVersion"]):
            old, self.pod = self.pod, pod
            moved = old["metadata"].get("deletionTimestamp") != pod["metadata"].get("deletionTimestamp")
            if moved:
                self._hurry()
            if old["metadata"].get("labels") != pod["metadata"].get("labels") or old["metadata"].get(
                "annotations"
            ) != pod["metadata"].get("annotations"):
                self._refresh_at = 0.0
            self.wake()

    def removed(self) -> None:
        """Handle that the pod is gone from the API server, by force or regularly."""
        self._removed = True
        self._hurry()
        self.wake()

    def _hurry(self) -> None:
        for container in self._containers.values():
            container.hurry()

    # Life

    async def run(self) -> None:
        """Do what the pod needs until it is gone. Cancelled, it leaves its processes running."""
        self.begun = True
        publisher = self._context.runtime.supervisor.run(
            "pod_status", self._publish_until_gone, detail=str(self.pod["metadata"]["name"])
        )
        try:
            self._adopt()
            while not self.deleting and self._failed is None:
                self._wake.clear()
                await pause(self._wake, max(0.0, await self._advance() - time.time()))
            await self._terminate()
            self._final = True
            self._dirty.set()
            await publisher
            self._clean_up()
        finally:
            publisher.cancel()
            await asyncio.gather(publisher, return_exceptions=True)
            await asyncio.gather(*(c.detach() for c in self._containers.values()))

    def _adopt(self) -> None:
        """Adopt the containers of this pod that an earlier agent started."""
        record = self.disk.load()
        if record is None:
            return
        self._record = record
        self._context.addresses.keep(record.ip)
        statuses = self._statuses()
        for name, container in self._containers.items():
            container.adopt(statuses.get(name, {}))

    def _statuses(self) -> dict[str, Json]:
        status = self.pod.get("status") or {}
        lists = (status.get("initContainerStatuses") or ()), (status.get("containerStatuses") or ())
        return {s["name"]: s for statuses in lists for s in statuses}

    async def _advance(self) -> float:
        """Take one step. Return when to look again (Unix seconds)."""
        now = time.time()
        if self._over:
            return now + 3600.0
        if not self._prepared or now >= self._refresh_at:
            retry_at = await self._prepare()
            if not self._prepared:
                return retry_at
        states = {name: c.state for name, c in self._containers.items()}
        step = decide.decide(self._shape, states, self._context.runtime.back_off, now)
        for name in step.start:
            self._containers[name].start()
        for name in step.stop:
            self._containers[name].stop_within(self._grace())
        self._dirty.set()
        return min(self._refresh_at, step.wake_at or self._refresh_at, self._check_deadline(now))

    def _grace(self) -> float:
        grace = self.pod["spec"].get("terminationGracePeriodSeconds")
        return 30.0 if grace is None else float(grace)

    def _check_deadline(self, now: float) -> float:
        """Fail the pod where its activeDeadlineSeconds have passed. Return when they will have."""
        limit = self.pod["spec"].get("activeDeadlineSeconds")
        if limit is None:
            return now + 3600.0
        ends = self.record.start_time + float(limit)
        running = any(c.state.running or c.state.starting for c in self._containers.values())
        if now >= ends and running:
            self._failed = Refusal(
                "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
            )
            self._context.runtime.events.record(self.pod, "Normal", "DeadlineExceeded", self._failed.message)
            self.wake()
        return ends if now < ends else now + 3600.0

    # Setting up

    async def _prepare(self) -> float:
        """Give the pod its address and volumes, or bring these up to date. Return when to try again."""
        problems: list[Refusal] = []
        if not self._prepared:
            problems = list(refused(self.pod))
        if not problems:
            try:
                if self._record is None:
                    self._assign_address()
                problems = await self._files.fill_volumes(self._facts())
            except (NodeError, OSError) as error:
                problems = [Refusal("FailedMount", str(error))]
        for problem in problems:
            self._context.runtime.events.record(self.pod, "Warning", problem.reason, problem.message)
        now = time.time()
        if not problems:
            self._prepared = True
        wait = RETRY_SECONDS[min(self._attempts, len(RETRY_SECONDS) - 1)]
        self._attempts += 1
        has_sources = bool(self.pod["spec"].get("volumes"))
        self._refresh_at = now + (REFRESH_SECONDS if has_sources else 3600.0)
        return now + wait

    def _assign_address(self) -> None:
        metadata = self.pod["metadata"]
        self._record = PodRecord(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            node=self._context.node.name,
            ip=self._context.addresses.take(),
            start_time=time.time(),
        )
        self.disk.save(self._record)

    def _facts(self) -> PodFacts:
        node = self._context.node
        return PodFacts(self.pod, self.record.ip, node.address, node.capacity)

    async def plan(self, name: str) -> ContainerPlan | Refusal:
        """Return how to run the container *name*. Raise NodeError where the API server cannot be asked."""
        return await self._files.plan(self._facts(), name)

    # Status

    def status(self) -> dict[str, Any]:
        """Return the status as of now."""
        placement = None
        if self._record is not None and (self._prepared or self._record.runs):
            placement = Placement(self._record.ip, self._context.node.address, self._record.start_time)
        states = {name: c.state for name, c in self._containers.items()}
        return pod_status(
            self.pod,
            self._shape,
            states,
            placement,
            back_off=self._context.runtime.back_off,
            now=time.time(),
            failed=self._failed,
        )

    async def _publish_until_gone(self) -> None:
        """Keep the API server's status right; at the end delete the object there."""
        while not self._removed:
            self._dirty.clear()
            final = self._final
            try:
                await self._publish()
                if final and self.pod["metadata"].get("deletionTimestamp"):
                    await self._delete()
                    return
            except NotFoundError:
                self.removed()
            except (ApiError, UnreachableError) as error:
                _log.warning("status of pod %s: %s", self.pod["metadata"]["name"], error)
                await asyncio.sleep(PUBLISH_RETRY_SECONDS)
                continue
            await self._dirty.wait()

    async def _publish(self) -> None:
        """Write the status where the API server has another. Raise NotFoundError where the pod is gone."""
        if self._over:
            return
        desired = self.status()
        if not differs(desired, self.pod.get("status") or {}):
            return
        uid = self.pod["metadata"]["uid"]
        body = {"metadata": {"uid": uid}, "status": desired}
        try:
            answer = await self._context.api.patch(f"{self._path}/status", body, STRATEGIC)
        except ConflictError as error:
            # Another pod has its name, or another client wrote at the same time.
            if (await self._context.api.get(self._path))["metadata"]["uid"] != uid:
                raise NotFoundError(error.status, error.message) from error
            raise
        if int(answer["metadata"]["resourceVersion"]) > int(self.pod["metadata"]["resourceVersion"]):
            self.changed(answer)

    @property
    def _path(self) -> str:
        metadata = self.pod["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"

    async def _delete(self) -> None:
        uid = self.pod["metadata"]["uid"]
        options: Mapping[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid},
        }
        with contextlib.suppress(NotFoundError, ConflictError):
            await self._context.api.delete(self._path, options)

    # Logs

    def log_of(self, container: str, *, previous: bool) -> tuple[Path, int] | None:
        """Return the log and the number of the newest run, or of the one before; None where there is none."""
        if container not in self._containers:
            return None
        state = self._containers[container].state
        run = state.previous if previous else state.run
        if run is None or not (path := self.disk.log_path(container, run.attempt)).exists():
            return None
        return path, run.attempt

    def is_over(self, container: str, attempt: int) -> bool:
        """Return whether a run has ended."""
        run = self._containers[container].state.run
        return run is None or run.attempt != attempt or not run.running

    # The end

    def _deadline(self) -> float:
        if self._removed:
            return 0.0
        return deletion_deadline(self.pod) or self._failed_deadline

    async def _terminate(self) -> None:
        """Stop what runs: main containers together, then the sidecars in reverse order."""
        self._failed_deadline = time.time() + self._grace()
        mains = [self._containers[c.name] for c in self._shape.of_kind("init", "main")]
        await asyncio.gather(*(c.stop(self._deadline) for c in mains))
        for shape in reversed(self._shape.of_kind("sidecar")):
            await self._containers[shape.name].stop(self._deadline)
        if self._failed is not None:
            self._dirty.set()
            while not self._removed and not self.pod["metadata"].get("deletionTimestamp"):
                self._wake.clear()
                await self._wake.wait()

    def _clean_up(self) -> None:
        """Delete the folder and free the address."""
        if self._record is not None:
            self._context.addresses.free(self._record.ip)
        self._context.config_source.forget(self.pod["metadata"]["uid"])
        shutil.rmtree(self.disk.path, ignore_errors=True)
