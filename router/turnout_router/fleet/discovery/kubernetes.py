"""The fleet from Kubernetes: LLMDeployments, LLMRoutes, TokenBudgets and worker Pods, watched.

While the API server is away the last fleet stays in use: workers do not need it to answer. A resource that becomes
invalid keeps its last valid form here; one that never was valid is left out. A namespace that alone is refused is
left out after a while, and taken up again by itself.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from turnout import terms
from turnout.api.loading import InvalidResource
from turnout.routing import build_fleet
from turnout_kube.follow import follow
from turnout_router.collector import LARGE_BYTES, collector_off
from turnout_router.fleet.discovery.translate import backend_of, deployment_of, grants_of, route_of
from turnout_router.fleet.kube import Access, new_client
from turnout_router.tasks import FLEET, WATCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing import Fleet
    from turnout_router.fleet.discovery.port import FleetObserver
    from turnout_router.tasks import Note
    from turnout_runtime.supervision import Supervisor

_SETTLE_SECONDS: Final = 0.02
"""Changes that come together (a rollout, a list) lead to one new fleet."""
_REST: Final = 10
"""A fleet so large that it takes long to put together is put together anew after so many times as long, so that changes
without end in one namespace do not take up the router's time."""
_LONGEST_PAUSE_SECONDS: Final = 5.0
_SLICE_SECONDS: Final = 0.005
"""How long translating may keep requests waiting."""
FORGET_SECONDS: Final = 60.0
"""How long a namespace must be refused, while others can be read, before its fleet is dropped.

An API server that has just started refuses for some seconds what it allows later: rights and CRDs are not loaded yet.
A namespace that is created anew by whatever keeps it has its Role back within that time, too.
"""
_PATIENCE_SECONDS: Final = 30.0
"""How long a router that starts waits for a collection that fails for other reasons, while others can be read."""
_SELECTOR: Final = f"{terms.LABEL_DEPLOYMENT},{terms.LABEL_ROLE},{terms.LABEL_REVISION}"

_Value = TypeVar("_Value")


class _Collection(Generic[_Value]):
    """What one collection of one scope holds, translated into the core's values; see `CollectionObserver`.

    `namespace` is empty where the scope is the whole cluster.
    """

    def __init__(
        self,
        namespace: str,
        resource: str,
        translate: Callable[[dict[str, Any]], _Value],
        source: KubernetesSource,
    ) -> None:
        self.namespace = namespace
        self.resource = resource
        self.values: dict[str, _Value] = {}
        self.synced = False
        self.unreachable = ""
        self.refused = False
        """Whether the API server answered so, rather than not at all."""
        self.since = asyncio.get_running_loop().time()
        """Since when it has been as it is: followed, refused, or out of reach."""
        self._translate = translate
        self._source = source
        self._new: dict[str, dict[str, Any]] = {}
        """Objects that are not translated yet."""

    def listed(self, objects: list[dict[str, Any]]) -> None:
        """Take all that there is."""
        self._new = {_key(raw): raw for raw in objects}
        self.values = {key: value for key, value in self.values.items() if key in self._new}
        self.synced = True
        self._source.dirty()

    def put(self, raw: dict[str, Any]) -> None:
        """Take an object that is new or has changed."""
        self._new[_key(raw)] = raw
        self._source.dirty()

    def removed(self, raw: dict[str, Any]) -> None:
        """Drop an object."""
        self._new.pop(_key(raw), None)
        self.values.pop(_key(raw), None)
        self._source.dirty()

    def translate_one(self) -> bool:
        """Translate an object that is new; return whether there was one."""
        if not self._new:
            return False
        key = next(iter(self._new))
        self._take(key, self._new.pop(key))
        return True

    def reachable(self, reason: str, *, refused: bool = False) -> None:
        """Note whether the API server lets us follow."""
        if refused != self.refused or bool(reason) != bool(self.unreachable):
            self.since = asyncio.get_running_loop().time()
        if refused != self.refused:
            self._source.observer.unreadable(self.namespace, self.resource, reason if refused else "")
        self.unreachable = reason
        self.refused = refused
        self._source.looked()

    def forget(self) -> None:
        """Drop all that was known: it is not there any more, or no longer ours to read."""
        self._new = {}
        self.values = {}
        self.synced = False
        self._source.dirty()

    def _take(self, key: str, raw: dict[str, Any]) -> None:
        try:
            self.values[key] = self._translate(raw)
        except InvalidResource as error:
            self._source.observer.rejected(f"{raw.get('kind', 'object')} {key}: {error}")
        except Exception as error:  # noqa: BLE001 - one object that cannot be understood keeps none of the others away
            self._source.note(WATCH, error)
            self._source.observer.rejected(
                f"{raw.get('kind', self.resource)} {key}: {type(error).__name__}: {error}"
            )


class KubernetesSource:
    """Watches the API server. *namespaces* empty: all of them.

    *own_namespace* is the router's: TokenBudgets in it may open names of every namespace, so those are read as well.
    A namespace that cannot be read (it was deleted, or rights are missing) is left out until it can be.
    """

    observer: FleetObserver
    note: Note

    def __init__(self, access: Access, namespaces: tuple[str, ...], own_namespace: str = "") -> None:
        self._access = access
        self._namespaces = namespaces
        self._own = own_namespace
        self._collections: list[_Collection[Any]] = []
        self._changed = asyncio.Event()
        self._fleet: Fleet | None = None
        self._began_at = 0.0
        self._pause = _SETTLE_SECONDS

    async def run(self, observer: FleetObserver, supervisor: Supervisor) -> None:
        """Pass *observer* the fleet, once it has been listed, and of every change, until cancelled."""
        self.observer, self.note = observer, supervisor.note
        self._began_at = asyncio.get_running_loop().time()
        scopes = self._namespaces or ("",)
        beside = {self._own} - {"", *scopes} if self._namespaces else set()
        grants = partial(grants_of, own_namespace=self._own)
        self._deployments = [_Collection(s, "llmdeployments", deployment_of, self) for s in scopes]
        self._routes = [_Collection(s, "llmroutes", route_of, self) for s in scopes]
        self._grants = [_Collection(s, "tokenbudgets", grants, self) for s in (*scopes, *beside)]
        self._pods = [_Collection(s, "pods", backend_of, self) for s in scopes]
        self._collections = [*self._deployments, *self._routes, *self._grants, *self._pods]
        async with new_client(self._access) as client, supervisor.group() as group:
            for collection in self._collections:
                path, selector = _path(collection)
                watch = partial(follow, client, self._access, path, selector, collection)
                group.run(WATCH, watch, detail=path)
            await group.run(FLEET, self._keep_building)

    def reload(self) -> None:
        """Do nothing: what is watched is never out of date for want of looking."""

    def dirty(self) -> None:
        """Build a new fleet soon."""
        self._changed.set()

    def looked(self) -> None:
        """Take note of what a collection has learnt of its reach: drop what is gone, report what is stale."""
        now = asyncio.get_running_loop().time()
        refused = [c for c in self._collections if self._is_left_out(c)]
        for collection in refused:
            if collection.synced and now - collection.since >= FORGET_SECONDS:
                collection.forget()
        reasons = [c.unreachable for c in self._collections if c.unreachable and c not in refused]
        self.observer.stale(reasons[0] if reasons else "")
        if self._fleet is None:
            self.dirty()  # one collection less may be all that was waited for

    def _is_left_out(self, collection: _Collection[Any]) -> bool:
        """Return whether one namespace alone is refused, while the API server lets us read others.

        A refusal everywhere is a matter of the router's own rights, or of a server that is just starting, not of a namespace.
        """
        return bool(collection.namespace and collection.refused) and any(
            c.synced and not c.unreachable for c in self._collections
        )

    def _can_begin(self) -> bool:
        """Return whether there is a fleet to serve: some scope's deployments and workers, and all else that can be read.

        What is refused is not waited for; what only fails is, for a while.
        """
        now = asyncio.get_running_loop().time()
        patient = now < self._began_at + _PATIENCE_SECONDS
        if patient and any(not c.synced and not c.refused for c in self._collections):
            return False
        return any(
            deployments.synced and pods.synced
            for deployments, pods in zip(self._deployments, self._pods, strict=True)
        )

    async def _keep_building(self) -> None:
        await self._build()  # where the last time failed, later changes have not been passed on yet
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._pause)
            self._changed.clear()
            await self._build()

    async def _build(self) -> None:
        await self._translate()
        if self._fleet is None and not self._can_begin():
            return
        began = asyncio.get_running_loop().time()
        with collector_off(LARGE_BYTES):  # many objects and no cycles
            self._fleet = build_fleet(
                deployments=[d for c in self._deployments for d in c.values.values()],
                routes=[r for c in self._routes for r in c.values.values()],
                grants=[g for c in self._grants for group in c.values.values() for g in group],
                backends=[b for c in self._pods for b in c.values.values() if b is not None],
                before=self._fleet,
            )
        self.observer.changed(self._fleet)
        spent = asyncio.get_running_loop().time() - began
        self._pause = min(max(_SETTLE_SECONDS, spent * _REST), _LONGEST_PAUSE_SECONDS)

    async def _translate(self) -> None:
        """Translate what is new, a few milliseconds at a time: requests go on while a large list is read."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _SLICE_SECONDS
        while any(collection.translate_one() for collection in self._collections):
            if loop.time() >= until:
                await asyncio.sleep(0)
                until = loop.time() + _SLICE_SECONDS


def _path(collection: _Collection[Any]) -> tuple[str, str | None]:
    """Return the path of a collection and the labels that its objects are picked by."""
    scope = f"/namespaces/{collection.namespace}" if collection.namespace else ""
    if collection.resource == "pods":
        return f"/api/v1{scope}/pods", _SELECTOR
    return f"/apis/{terms.API_VERSION}{scope}/{collection.resource}", None


def _key(raw: dict[str, Any]) -> str:
    metadata = raw["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"
