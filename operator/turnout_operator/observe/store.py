"""The observed objects in memory, indexed by what they belong to.

Events may arrive twice, late, or not at all (a watch that had to start over does not report
what was deleted in between). So an object only moves forward in its ``resourceVersion``, one that is known to be
deleted does not come back, and a full list (`Store.replace`) settles the rest.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from turnout.terms import COMPONENT_ROUTER, LABEL_COMPONENT, LABEL_DEPLOYMENT
from turnout_operator.kube.kinds import CHILDREN, CLAIMING, LLM_DEPLOYMENT, POD, WATCHED, Kind
from turnout_operator.observe.compact import compact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnout_operator.kube.client import Raw

MAX_TOMBSTONES: Final = 8192
"""Deleted objects that are remembered by uid."""


class Key(NamedTuple):
    """Namespace and name of an object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """Return ``NAMESPACE/NAME``."""
        return f"{self.namespace}/{self.name}"


def key_of(raw: Raw) -> Key:
    """Key of an object."""
    return Key(raw["metadata"].get("namespace", ""), raw["metadata"]["name"])


def owner_of(raw: Raw) -> Key | None:
    """Key of the LLMDeployment that a child or worker pod belongs to, by its label."""
    name = (raw["metadata"].get("labels") or {}).get(LABEL_DEPLOYMENT)
    return None if name is None else Key(raw["metadata"].get("namespace", ""), name)


def version_of(raw: Raw) -> int:
    """``resourceVersion`` as a number: the API server promises that the greater is the later."""
    text = str(raw["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0


class Store:
    """All watched objects."""

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[Key, Raw]] = defaultdict(dict)
        self._owned: dict[Kind, dict[Key, set[Key]]] = defaultdict(dict)
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self._routers: dict[str, set[Key]] = {}
        """Router pods by namespace."""
        self._changes: dict[Key, int] = {}
        """By LLMDeployment: the number that its last change had among all changes."""
        self._counted = 0

    def put(self, kind: Kind, raw: Raw) -> bool:
        """Keep *raw*; return whether it is newer than what was known."""
        key, uid = key_of(raw), raw["metadata"].get("uid", "")
        before = self._objects[kind].get(key)
        if uid in self._tombstones:
            return False
        if (
            before is not None
            and before["metadata"].get("uid") == uid
            and version_of(before) >= version_of(raw)
        ):
            return False
        if before is not None:
            self._unindex(kind, key, before)
        kept = compact(kind, raw)
        self._objects[kind][key] = kept
        owner = owner_of(kept)
        if owner is not None:
            self._owned[kind].setdefault(owner, set()).add(key)
        if kind == POD and _is_router(kept):
            self._routers.setdefault(key.namespace, set()).add(key)
        self._count(kind, key, owner)
        return True

    def remove(self, kind: Kind, raw: Raw) -> None:
        """Forget the very object that *raw* was."""
        key, uid = key_of(raw), raw["metadata"].get("uid", "")
        if uid:
            self._tombstones[uid] = None
            if len(self._tombstones) > MAX_TOMBSTONES:
                self._tombstones.popitem(last=False)
        before = self._objects[kind].get(key)
        if before is not None and before["metadata"].get("uid", "") == uid:
            del self._objects[kind][key]
            self._unindex(kind, key, before)

    def revive(self, uid: str) -> None:
        """Take back that an object is gone: it was read, so it only left the selector for a while."""
        self._tombstones.pop(uid, None)

    def replace(self, kind: Kind, listed: Iterable[Raw], known_before: Iterable[Key]) -> set[Key]:
        """Settle *kind* by a full list; return the keys of the LLMDeployments and routes that it changed.

        *known_before* are the keys that were known when the list was asked for: what has come since is not
        missing from it.
        """
        touched: set[Key] = set()
        present: set[Key] = set()
        for raw in listed:
            present.add(key_of(raw))
            if self.put(kind, raw):
                touched.update(self.concerned(kind, raw))
        for key in set(known_before) - present:
            gone = self._objects[kind].get(key)
            if gone is not None:
                self.remove(kind, gone)
                touched.update(self.concerned(kind, gone))
        return touched

    def concerned(self, kind: Kind, raw: Raw) -> tuple[Key, ...]:
        """Return the LLMDeployments (or the route or budget) to look at after a change of *raw*."""
        if kind in CLAIMING:
            return (key_of(raw),)
        owner = owner_of(raw)
        return () if owner is None else (owner,)

    def forget(self, namespace: str) -> None:
        """Forget all of a namespace that can no longer be read. It may come back: nothing is remembered as deleted."""
        for kind in WATCHED:
            for key in [key for key in self._objects[kind] if key.namespace == namespace]:
                self._unindex(kind, key, self._objects[kind].pop(key))

    def get(self, kind: Kind, key: Key) -> Raw | None:
        """Return one object, or None."""
        return self._objects[kind].get(key)

    def keys(self, kind: Kind) -> tuple[Key, ...]:
        """Return the keys of all objects of *kind*."""
        return tuple(self._objects[kind])

    def all(self, kind: Kind, namespace: str | None = None) -> tuple[Raw, ...]:
        """Return all objects of *kind*, or those of one namespace."""
        found = self._objects[kind].items()
        return tuple(raw for key, raw in found if namespace is None or key.namespace == namespace)

    def owned(self, kind: Kind, owner: Key) -> tuple[Raw, ...]:
        """Return the objects of *kind* that belong to *owner*, by name."""
        return tuple(self._objects[kind][key] for key in sorted(self._owned[kind].get(owner, ())))

    def children(self, owner: Key) -> tuple[Raw, ...]:
        """Return what *owner* owns, pods aside."""
        return tuple(raw for kind in CHILDREN for raw in self.owned(kind, owner))

    def pods(self, owner: Key) -> tuple[Raw, ...]:
        """Return the worker pods of *owner*."""
        return self.owned(POD, owner)

    def routers(self, namespace: str) -> tuple[Raw, ...]:
        """Return the router pods of *namespace*."""
        return tuple(self._objects[POD][key] for key in sorted(self._routers.get(namespace, ())))

    def changes(self, deployment: Key) -> int:
        """Return a number that is another one whenever an LLMDeployment, or what belongs to it, has changed."""
        return self._changes.get(deployment, 0)

    def _count(self, kind: Kind, key: Key, owner: Key | None) -> None:
        deployment = key if kind == LLM_DEPLOYMENT else owner
        if deployment is None:
            return
        self._counted += 1
        if deployment in self._objects[LLM_DEPLOYMENT]:
            self._changes[deployment] = self._counted
        else:
            self._changes.pop(deployment, None)

    def _unindex(self, kind: Kind, key: Key, raw: Raw) -> None:
        owner = owner_of(raw)
        if kind == POD and _is_router(raw):
            self._routers[key.namespace].discard(key)
        self._count(kind, key, owner)
        if owner is not None and owner in self._owned[kind]:
            self._owned[kind][owner].discard(key)
            if not self._owned[kind][owner]:
                del self._owned[kind][owner]


def _is_router(pod: Raw) -> bool:
    return (pod["metadata"].get("labels") or {}).get(LABEL_COMPONENT) == COMPONENT_ROUTER
