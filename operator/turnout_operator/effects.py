"""Plans made real: patches, applies, deletions, status and Events, in this order."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from turnout.terms import API_VERSION, FIELD_MANAGER
from turnout_operator.errors import ApiError, ChildNameTaken, Conflict, NotFound, OperatorError, Unreachable
from turnout_operator.kube.kinds import EVENT, LLM_DEPLOYMENT, POD, kind_of
from turnout_operator.observe.store import Key
from turnout_operator.plan import write_conflicts
from turnout_operator.plan.conditions import rfc3339
from turnout_operator.plan.drift import Deviation, deviations
from turnout_operator.plan.manifests import ANNOTATION_APPLIED
from turnout_operator.plan.ownership import owns
from turnout_operator.plan.plan import BUSY_REQUEUE_SECONDS
from turnout_operator.plan.status import is_minor
from turnout_operator.write_history import STATUS, WriteHistory, digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnout_operator.kube.client import KubeClient, Raw
    from turnout_operator.observe.store import Store
    from turnout_operator.plan.effects import Notice, Plan, PodPatch
    from turnout_operator.write_history import Owner, Target

LOG: Final = logging.getLogger(__name__)

MINOR_STATUS_SECONDS: Final = 1.0
"""Between two writes of a deployment's status that differ in counts and words alone."""
_OPTIONAL: Final = frozenset({"goodputPercent", "lastScaling", "prefill"})
"""Parts of a status that may go away again."""

_OF_NONE: Final = "1"
"""A resourceVersion that no object has: applied with it, one that is there is a Conflict, and one that is not is created."""


class Executor:
    """Carries plans out, and puts the results into the store."""

    def __init__(self, client: KubeClient, store: Store, identity: str) -> None:
        self._client = client
        self._store = store
        self._identity = identity
        self.write_history = WriteHistory()
        """What became of its writes."""

    def sift(self, plan: Plan) -> Plan:
        """Return *plan* without what admission has changed for good, and what it is too early to put back again."""
        delays: list[float] = []

        def is_due(delay: float | None) -> bool:
            if delay:
                delays.append(delay)
            return delay == 0.0

        patches = tuple(patch for patch in plan.patches if is_due(self._patch_due(patch)))
        apply = tuple(manifest for manifest in plan.apply if is_due(self._apply_due(manifest)))
        again = plan.requeue_seconds
        if plan.patches and not patches:
            again = BUSY_REQUEUE_SECONDS  # nothing was marked, so there is nothing to go on with at once
        waits = [*delays, *([again] if again is not None else [])]
        return replace(plan, patches=patches, apply=apply, requeue_seconds=min(waits, default=None))

    def _patch_due(self, patch: PodPatch) -> float | None:
        live = self._store.get(POD, Key(patch.namespace, patch.name))
        found = deviations(live, patch.body)
        return self.write_history.due_in(_pod_target(patch), _shape(patch.body), found)

    def _apply_due(self, manifest: Raw) -> float | None:
        target = _target(manifest)
        found = deviations(self._store.get(target[0], target[1]), manifest)
        return self.write_history.due_in(target, _content(manifest), found)

    async def change(self, raw: Raw, plan: Plan) -> ApiError | ChildNameTaken | None:
        """Patch pods, apply and delete children of *raw*.

        One that fails does not keep the others back: the first error is returned, a name that is taken before others.
        What the API server has just refused is not asked for again, and its error counts once more.
        """
        taken: ChildNameTaken | None = None
        failed: ApiError | None = None
        for patch in plan.patches:
            try:
                await self._patch(raw, patch)
            except NotFound:
                self.write_history.forget(
                    _pod_target(patch)
                )  # it has left meanwhile, which is what was wanted of it
            except ApiError as error:
                failed = failed or error
        for manifest in plan.apply:
            try:
                await self._apply_unless_refused(raw, manifest)
            except ChildNameTaken as error:
                taken = taken or error
            except ApiError as error:
                failed = failed or error
        for removal in plan.delete:
            kind = kind_of({"kind": removal.kind})
            try:
                await self._client.delete(kind, removal.namespace, removal.name, removal.uid)
            except ApiError as error:
                failed = failed or error
            else:
                gone = {"namespace": removal.namespace, "name": removal.name, "uid": removal.uid}
                self._store.remove(kind, {"metadata": gone})
                self.write_history.forget((kind, Key(removal.namespace, removal.name), ""))
        return taken or failed

    async def _patch(self, owner: Raw, patch: PodPatch) -> None:
        live = self._store.get(POD, Key(patch.namespace, patch.name))
        found = deviations(live, patch.body)
        answer = await self._client.patch(POD, patch.namespace, patch.name, patch.body)
        self._store.put(POD, answer)
        self.write_history.written(
            _pod_target(patch),
            _owner(owner),
            _shape(patch.body),
            found=found,
            answer=(),  # a mark that admission strips is still needed: it is tried again, ever more rarely
            manager=write_conflicts.ADMISSION if deviations(answer, patch.body) else "",
        )

    async def _apply_unless_refused(self, owner: Raw, manifest: Raw) -> None:
        target, content = _target(manifest), _content(manifest)
        known = self.write_history.refusal(target, content)
        if known is not None:
            raise known.with_traceback(None)
        try:
            await self._apply(owner, manifest)
        except ApiError as error:
            if not transient(error):
                self.write_history.refused(target, content, error)
            raise

    async def _apply(self, owner: Raw, manifest: Raw) -> None:
        """Apply a child of *owner*. Raise ChildNameTaken where an object that it does not own has that name.

        Only what carries our labels is watched, so an object that is not known may be there all the same: it is applied
        in a way that only creates it, and read where that is a Conflict.
        """
        kind, meta = kind_of(manifest), manifest["metadata"]
        target, content = _target(manifest), _content(manifest)
        live = self._store.get(kind, target[1])
        if live is None:
            new = {**manifest, "metadata": {**meta, "resourceVersion": _OF_NONE}}
            try:
                answer = await self._client.apply(kind, new, force=False)
            except Conflict:
                LOG.debug("there is a %s %s already", kind.name, target[1])
            else:
                self._applied(owner, manifest, deviations(None, manifest), answer)
                return
        if live is None or not owns(owner["metadata"], live):
            try:
                live = await self._client.get(kind, meta["namespace"], meta["name"])
            except NotFound:
                answer = await self._client.apply(kind, manifest, force=False)
                self._applied(owner, manifest, deviations(None, manifest), answer)
                return
            if not owns(owner["metadata"], live):
                raise ChildNameTaken(
                    f"there is a {kind.name} {meta['name']} that this deployment does not own, and it is left alone: "
                    f"delete it (kubectl --namespace {meta['namespace']} delete {kind.name.lower()} {meta['name']}) "
                    "or give one of the two another name"
                )
            self._store.revive(live["metadata"]["uid"])
        manager = ""
        if self.write_history.would_be_contested(target, content):
            # Who wrote which field is not kept: it is asked for where another writer insists.
            live = await self._client.get(kind, meta["namespace"], meta["name"])
            changed = self.write_history.left(target, content, deviations(live, manifest))
            if not changed:
                self._store.put(kind, live)
                return
            manager = write_conflicts.manager_of(live["metadata"].get("managedFields", []), changed)
        bound = {**manifest, "metadata": {**meta, "uid": live["metadata"]["uid"]}}
        found = deviations(live, manifest)
        self._applied(owner, manifest, found, await self._client.apply(kind, bound), manager)

    def _applied(
        self,
        owner: Raw,
        manifest: Raw,
        found: tuple[Deviation, ...],
        answer: Raw,
        manager: str = "",
    ) -> None:
        """Take note of what the API server made of *manifest*."""
        target = _target(manifest)
        self._store.put(target[0], answer)
        self.write_history.written(
            target,
            _owner(owner),
            _content(manifest),
            found=found,
            answer=deviations(answer, manifest),
            manager=manager,
        )

    def status_due_in(self, raw: Raw, status: dict[str, Any]) -> float | None:
        """Return in how many seconds *status* is to be written; None: not at all, for *raw* has it already.

        Of a deployment whose pods come and go, the counts wait for each other: one write is the dearest part of a pass.
        """
        target, content, found = _status_write(raw, status)
        due = self.write_history.due_in(target, content, found) if found else None
        if due == 0.0 and target[0] == LLM_DEPLOYMENT and is_minor(raw.get("status") or {}, status):
            return max(0.0, MINOR_STATUS_SECONDS - self.write_history.seconds_since(target))
        return due

    async def write_status(self, raw: Raw, status: dict[str, Any]) -> bool:
        """Apply *status* where it differs from what *raw* has, and is due; return whether it did. Raise ApiError."""
        if self.status_due_in(raw, status) != 0.0:
            return False
        kind, meta = kind_of(raw), raw["metadata"]
        target, content, found = _status_write(raw, status)
        if self.write_history.would_be_contested(target, content):
            LOG.warning(
                "the status of %s %s is overwritten again and again (%s): it is written ever more rarely",
                kind.name,
                target[1],
                ", ".join(item.field for item in found[: write_conflicts.MAX_FIELDS]),
            )
        body = {
            "apiVersion": API_VERSION,
            "kind": raw["kind"],
            # With the uid, a namesake that was created meanwhile does not get this status.
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "status": status,
        }
        try:
            answer = await self._client.apply(kind, body, "status")
        except NotFound:
            return False
        self._store.put(kind, answer)
        accepted = deviations({"status": answer.get("status") or {}}, {"status": status})
        self.write_history.written(target, _owner(raw), content, found=found, answer=accepted)
        return True

    async def post(self, raw: Raw, notices: Iterable[Notice], *, fenced: bool = True) -> None:
        """Post Events about *raw*. They are news, not state: one that cannot be posted is logged and dropped."""
        meta = raw["metadata"]
        for notice in notices:
            now = rfc3339(time.time())
            event = {
                "apiVersion": EVENT.api_version,
                "kind": EVENT.name,
                "metadata": {
                    "name": f"{meta['name']}.{uuid.uuid4().hex[:16]}",
                    "namespace": meta["namespace"],
                },
                "involvedObject": {
                    "apiVersion": raw["apiVersion"],
                    "kind": raw["kind"],
                    "name": meta["name"],
                    "namespace": meta["namespace"],
                    "uid": meta.get("uid", ""),
                    "resourceVersion": meta.get("resourceVersion", ""),
                },
                "type": notice.type,
                "reason": notice.reason,
                "message": notice.message[:1024],
                "source": {"component": FIELD_MANAGER, "host": self._identity},
                "reportingComponent": FIELD_MANAGER,
                "reportingInstance": self._identity,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
            try:
                await self._client.create(EVENT, event, fenced=fenced)
            except ApiError as error:
                LOG.warning(
                    "event %s about %s/%s was not posted: %s",
                    notice.reason,
                    meta["namespace"],
                    meta["name"],
                    error,
                )


def _owner(raw: Raw) -> Owner:
    return kind_of(raw), Key(raw["metadata"]["namespace"], raw["metadata"]["name"])


def _target(manifest: Raw) -> Target:
    meta = manifest["metadata"]
    return kind_of(manifest), Key(meta["namespace"], meta["name"]), ""


def _content(manifest: Raw) -> str:
    content: str = manifest["metadata"]["annotations"][ANNOTATION_APPLIED]
    return content


def _status_write(raw: Raw, status: dict[str, Any]) -> tuple[Target, str, tuple[Deviation, ...]]:
    """Return what a status is, as a write: where to, its content, and how what *raw* has differs from it."""
    live, meta = raw.get("status") or {}, raw["metadata"]
    gone = (Deviation(("status", name), live[name], None) for name in (set(live) - set(status)) & _OPTIONAL)
    found = (*deviations({"status": live}, {"status": status}), *gone)
    target = kind_of(raw), Key(meta["namespace"], meta["name"]), STATUS
    return target, digest(_timeless(status)) if found else "", found


def _timeless(value: Any) -> Any:
    """Return a status without its times, which are others each time that it is written."""
    if isinstance(value, dict):
        return {
            key: _timeless(item) for key, item in value.items() if key not in {"lastTransitionTime", "time"}
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _pod_target(patch: PodPatch) -> Target:
    return POD, Key(patch.namespace, patch.name), "metadata"


def _shape(body: Raw) -> str:
    """Name the fields of a patch, whatever is written to them: a time among them is another one at each attempt."""
    return ",".join(
        f"{part}/{name}" for part, values in sorted(body["metadata"].items()) for name in sorted(values)
    )


def transient(error: OperatorError) -> bool:
    """Whether *error* says nothing about what was asked, only about the moment."""
    return isinstance(error, (Unreachable, Conflict))
