"""What pods need from the API server: ConfigMaps, Secrets and service-account tokens, kept for a while."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout_devcluster.node.environment import Objects, Source, referenced
from turnout_devcluster.node.errors import NotFoundError
from turnout_devcluster.node.volumes import TokenRequest, Tokens, token_requests

if TYPE_CHECKING:
    from turnout_devcluster.node.api import Api
    from turnout_devcluster.node.model import Json

KEEP_SECONDS: Final = 4.0
"""How long an object that was read is used again. A change reaches a volume after at most this and
the period in which its pod looks."""
REFRESH_SHARE: Final = 0.8
"""A token is asked for anew when this share of its life is over, as the kubelet does."""
_COLLECTIONS: Final[dict[Source, str]] = {"ConfigMap": "configmaps", "Secret": "secrets"}


@dataclass(slots=True)
class _Kept:
    """An object as it was read, None where there was none, and until when that holds (monotonic)."""

    obj: Json | None
    until: float


@dataclass(slots=True)
class _Token:
    """A token and when to ask for another (monotonic)."""

    value: str
    refresh_at: float


class ConfigSource:
    """Reads each object once for all pods that name it at the same time."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._kept: dict[tuple[str, Source, str], _Kept] = {}
        self._reading: dict[tuple[str, Source, str], asyncio.Task[Json | None]] = {}
        self._tokens: dict[tuple[str, TokenRequest], _Token] = {}

    async def objects(self, pod: Json) -> Objects:
        """Return every ConfigMap and Secret that *pod* names. Raise ApiError or UnreachableError."""
        namespace = pod["metadata"]["namespace"]
        found: dict[tuple[Source, str], Json | None] = {}
        for kind, name in sorted(referenced(pod)):
            found[kind, name] = await self._object(namespace, kind, name) if name else None
        return found

    async def _object(self, namespace: str, kind: Source, name: str) -> Json | None:
        key = (namespace, kind, name)
        kept = self._kept.get(key)
        if kept is not None and kept.until > time.monotonic():
            return kept.obj
        task = self._reading.get(key)
        if task is None:
            task = self._reading[key] = asyncio.create_task(self._read(namespace, kind, name))
            task.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(task)

    async def _read(self, namespace: str, kind: Source, name: str) -> Json | None:
        obj: Json | None
        try:
            obj = {
                **await self._api.get(f"/api/v1/namespaces/{namespace}/{_COLLECTIONS[kind]}/{name}"),
                "kind": kind,
            }
        except NotFoundError:
            obj = None
        now = time.monotonic()
        self._kept = {k: v for k, v in self._kept.items() if v.until > now}
        # What is missing is read again at once: a pod waits for it.
        if obj is not None:
            self._kept[namespace, kind, name] = _Kept(obj, now + KEEP_SECONDS)
        return obj

    async def tokens(self, pod: Json) -> Tokens:
        """Return the tokens that *pod* asks for, bound to it. Raise ApiError or UnreachableError."""
        return {request: await self._token(pod, request) for request in token_requests(pod)}

    async def _token(self, pod: Json, request: TokenRequest) -> str:
        metadata = pod["metadata"]
        key = (metadata["uid"], request)
        known = self._tokens.get(key)
        if known is not None and known.refresh_at > time.monotonic():
            return known.value
        account = pod["spec"].get("serviceAccountName") or "default"
        bound_to = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec = {
            "audiences": [request.audience] if request.audience else [],
            "expirationSeconds": request.expiration_seconds,
            "boundObjectRef": bound_to,
        }
        answer = await self._api.create(
            f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        value: str = answer["status"]["token"]
        refresh_at = time.monotonic() + REFRESH_SHARE * request.expiration_seconds
        self._tokens[key] = _Token(value, refresh_at)
        return value

    def forget(self, uid: str) -> None:
        """Forget the tokens of the pod *uid*."""
        self._tokens = {k: v for k, v in self._tokens.items() if k[0] != uid}
