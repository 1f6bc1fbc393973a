"""The fleet from Kubernetes: LLMDeployments, LLMRoutes, TokenBudgets and worker Pods, watched.

While the API server is away the last fleet stays in use: workers do not need it to answer. A resource that becomes
invalid keeps its last valid form here; one that never was valid is left out.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from turnout.api import names
from turnout.api.loading import InvalidResource
from turnout.routing import build_fleet
from turnout_router.discovery.translate import backend_of, deployment_of, grants_of, route_of
from turnout_router.kube import Access, follow, new_client
from turnout_router.tasks import FLEET, WATCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.discovery.port import FleetObserver
    from turnout_router.tasks import Note
    from turnout_runtime.supervision import Supervisor

_SETTLE_SECONDS: Final = 0.02
"""Changes that come together (a rollout, a list) lead to one new fleet."""
_SELECTOR: Final = f"{names.LABEL_DEPLOYMENT},{names.LABEL_ROLE},{names.LABEL_REVISION}"

_Value = TypeVar("_Value")


class _Collection(Generic[_Value]):
    """What one collection holds, translated into the core's values; see `CollectionObserver`."""

    def __init__(
        self,
        translate: Callable[[dict[str, Any]], _Value],
        source: KubernetesSource,
        observer: FleetObserver,
        note: Note,
    ) -> None:
        self._translate = translate
        self._note = note
        self._source = source
        self._observer = observer
        self.values: dict[str, _Value] = {}
        self.synced = False
        self.unreachable = ""

    def listed(self, objects: list[dict[str, Any]]) -> None:
        """Take all that there is."""
        before, self.values = self.values, {}
        for raw in objects:
            key = _key(raw)
            if key in before:
                self.values[key] = before[key]
            self._take(key, raw)
        self.synced = True
        self._source.dirty()

    def put(self, raw: dict[str, Any]) -> None:
        """Take an object that is new or has changed."""
        self._take(_key(raw), raw)
        self._source.dirty()

    def removed(self, raw: dict[str, Any]) -> None:
        """Drop an object."""
        self.values.pop(_key(raw), None)
        self._source.dirty()

    def reachable(self, reason: str) -> None:
        """Note whether the API server lets us follow."""
        self.unreachable = reason
        self._source.tell_stale()

    def _take(self, key: str, raw: dict[str, Any]) -> None:
        try:
            self.values[key] = self._translate(raw)
        except InvalidResource as error:
            self._observer.rejected(f"{raw.get('kind', 'object')} {key}: {error}")
        except Exception as error:  # noqa: BLE001 - one object that cannot be understood keeps none of the others away
            self._note(WATCH, error)
            self._observer.rejected(f"{raw.get('kind', 'object')} {key}: {type(error).__name__}: {error}")


class KubernetesSource:
    """Watches the API server. *namespaces* empty: all of them."""

    def __init__(self, access: Access, namespaces: tuple[str, ...]) -> None:
        self._access = access
        self._namespaces = namespaces
        self._observer: FleetObserver
        self._collections: list[_Collection[Any]] = []
        self._changed = asyncio.Event()

    async def run(self, observer: FleetObserver, supervisor: Supervisor) -> None:
        """Tell *observer* of the fleet, once all of it has been listed, and of every change, until cancelled."""
        self._observer = observer
        api, note = f"/apis/{names.API_VERSION}", supervisor.note
        self._deployments = [_Collection(deployment_of, self, observer, note) for _ in self._scopes()]
        self._routes = [_Collection(route_of, self, observer, note) for _ in self._scopes()]
        self._grants = [_Collection(grants_of, self, observer, note) for _ in self._scopes()]
        self._pods = [_Collection(backend_of, self, observer, note) for _ in self._scopes()]
        self._collections = [*self._deployments, *self._routes, *self._grants, *self._pods]
        async with new_client(self._access) as client, supervisor.group() as group:
            for index, scope in enumerate(self._scopes()):
                for path, selector, collection in (
                    (f"{api}{scope}/llmdeployments", None, self._deployments[index]),
                    (f"{api}{scope}/llmroutes", None, self._routes[index]),
                    (f"{api}{scope}/tokenbudgets", None, self._grants[index]),
                    (f"/api/v1{scope}/pods", _SELECTOR, self._pods[index]),
                ):
                    watch = partial(follow, client, self._access, path, selector, collection)
                    group.run(WATCH, watch, detail=path)
            await group.run(FLEET, self._keep_building)

    def reload(self) -> None:
        """Do nothing: what is watched is never out of date for want of looking."""

    def dirty(self) -> None:
        """Build a new fleet soon."""
        self._changed.set()

    def tell_stale(self) -> None:
        """Say whether any collection cannot be followed now, and why."""
        reasons = [c.unreachable for c in self._collections if c.unreachable]
        self._observer.stale(reasons[0] if reasons else "")

    def _scopes(self) -> list[str]:
        return [f"/namespaces/{name}" for name in self._namespaces] or [""]

    async def _keep_building(self) -> None:
        self._build()  # where the last time failed, what has changed since is still to be told
        while True:
            await self._changed.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            self._changed.clear()
            self._build()

    def _build(self) -> None:
        if not all(collection.synced for collection in self._collections):
            return
        self._observer.changed(
            build_fleet(
                deployments=[d for c in self._deployments for d in c.values.values()],
                routes=[r for c in self._routes for r in c.values.values()],
                grants=[g for c in self._grants for group in c.values.values() for g in group],
                backends=[b for c in self._pods for b in c.values.values() if b is not None],
            )
        )


def _key(raw: dict[str, Any]) -> str:
    metadata = raw["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"
