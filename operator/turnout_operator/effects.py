"""Plans made real: patches, applies, deletions, status and Events, in this order."""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from turnout.api.names import API_VERSION, FIELD_MANAGER
from turnout_operator.errors import ApiError, ChildNameTaken, Conflict, NotFound, OperatorError, Unreachable
from turnout_operator.kube.kinds import EVENT, POD, kind_of
from turnout_operator.observe.store import Key
from turnout_operator.plan.conditions import rfc3339
from turnout_operator.plan.drift import holds
from turnout_operator.plan.ownership import owns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnout_operator.kube.client import KubeClient, Raw
    from turnout_operator.observe.store import Store
    from turnout_operator.plan.effects import Notice, Plan

LOG: Final = logging.getLogger(__name__)

_OPTIONAL: Final = frozenset({"goodputPercent", "lastScaling", "prefill"})
"""Parts of a status that may go away again."""


class Executor:
    """Carries plans out, and tells the store what came of it."""

    def __init__(self, client: KubeClient, store: Store, identity: str) -> None:
        self._client = client
        self._store = store
        self._identity = identity

    async def change(self, raw: Raw, plan: Plan) -> ApiError | ChildNameTaken | None:
        """Patch pods, apply and delete children of *raw*.

        One that fails does not keep the others back: the first error is returned, a name that is taken before others.
        """
        taken: ChildNameTaken | None = None
        failed: ApiError | None = None
        for patch in plan.patches:
            try:
                self._store.put(POD, await self._client.patch(POD, patch.namespace, patch.name, patch.body))
            except NotFound:
                continue  # it has left meanwhile, which is what was wanted of it
            except ApiError as error:
                failed = failed or error
        for manifest in plan.apply:
            try:
                await self._apply(raw["metadata"], manifest)
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
        return taken or failed

    async def _apply(self, owner: Raw, manifest: Raw) -> None:
        """Apply a child of *owner*. Raise ChildNameTaken where its name is somebody else's object's.

        Only what carries our labels is watched, so an object that is not known is asked for before the first apply;
        and one that comes in between is not forced.
        """
        kind, meta = kind_of(manifest), manifest["metadata"]
        live = self._store.get(kind, Key(meta["namespace"], meta["name"]))
        if live is None or not owns(owner, live):
            try:
                live = await self._client.get(kind, meta["namespace"], meta["name"])
            except NotFound:
                self._store.put(kind, await self._client.apply(kind, manifest, force=False))
                return
            if not owns(owner, live):
                raise ChildNameTaken(
                    f"there is a {kind.name} {meta['name']} that this deployment does not own, and it is left alone: "
                    f"delete it (kubectl --namespace {meta['namespace']} delete {kind.name.lower()} {meta['name']}) "
                    "or give one of the two another name"
                )
            self._store.revive(live["metadata"]["uid"])
        bound = {**manifest, "metadata": {**meta, "uid": live["metadata"]["uid"]}}
        self._store.put(kind, await self._client.apply(kind, bound))

    async def write_status(self, raw: Raw, status: dict[str, Any]) -> bool:
        """Apply *status* where it differs from what *raw* has; return whether it did. Raise ApiError."""
        live = raw.get("status") or {}
        if holds(live, status) and not (set(live) - set(status)) & _OPTIONAL:
            return False
        kind, meta = kind_of(raw), raw["metadata"]
        body = {
            "apiVersion": API_VERSION,
            "kind": raw["kind"],
            # With the uid, a namesake that was created meanwhile does not get this status.
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "status": status,
        }
        try:
            self._store.put(kind, await self._client.apply(kind, body, "status"))
        except NotFound:
            return False
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


def transient(error: OperatorError) -> bool:
    """Whether *error* says nothing about what was asked, only about the moment."""
    return isinstance(error, (Unreachable, Conflict))
