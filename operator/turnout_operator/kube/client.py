"""Requests to the API server: a few verbs over raw JSON, counted, with deadlines and one error tree."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.config import ConfigException

from turnout.terms import FIELD_MANAGER
from turnout_operator.errors import (
    ApiError,
    ConfigurationError,
    Conflict,
    Forbidden,
    NotFound,
    Rejected,
    Unreachable,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kubernetes.aio.client import Configuration

    from turnout_operator.kube.kinds import Kind

Raw = dict[str, Any]
"""An object of the API as JSON has it."""

Objects = list[Raw]
"""What a list of them is called where `list` is the client's own method."""

PAGE: Final = 100
"""Objects per page of a list. Whole pages are in memory, and parsed at a stretch."""
MAX_PAGES: Final = 1000
CONNECTIONS: Final = 32
"""Requests of one session that are under way at the same time; the others wait."""

_UNAUTHORIZED: Final = 401
_OK: Final = range(200, 300)
_ERRORS: Final[dict[int, type[ApiError]]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: Unreachable,
}
_CONTENT_TYPES: Final = {
    "apply": "application/apply-patch+yaml",  # JSON is YAML
    "patch": "application/merge-patch+json",
}


def error_of(status: int, body: str, request: str) -> ApiError:
    """Map an answer that is no success to an error whose message names the request and the reason."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:300] or "no explanation"
    kind = _ERRORS.get(status, Unreachable if status >= 500 else Rejected)  # noqa: PLR2004 - 5xx
    return kind(f"{request}: {status}: {message}", status=status)


def _object(text: str, request: str) -> Raw:
    """Read an answer. Raise Unreachable where it is no object: something between here and the API server spoke."""
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise Unreachable(f"{request}: the answer is no JSON: {text[:100]!r}") from error
    if not isinstance(answer, dict):
        raise Unreachable(f"{request}: the answer is no object: {text[:100]!r}")
    return answer


class KubeClient:
    """One session with the API server. Use it as an async context manager."""

    def __init__(
        self,
        configure: Callable[[], Awaitable[Configuration]],
        *,
        count: Callable[[str, str, int], None] = lambda _verb, _plural, _status: None,
        fence: Callable[[str], None] = lambda _: None,
        timeout_seconds: float = 10.0,
    ) -> None:
        self._configure = configure
        self._count = count
        """Called with verb, resource and HTTP status (0: no answer) of every request."""
        self.fence = fence
        """Called with the namespace before every write; raises where this operator must not act (any more)."""
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._api: ApiClient | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._open(None)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._api is not None:
            await self._api.close()

    async def _open(self, refused: ApiClient | None) -> ApiClient:
        """Return a session other than *refused*: of those that find it refused at once, the first logs in again."""
        async with self._opening:
            if self._api is not None and self._api is not refused:
                return self._api
            configuration = await self._configure()
            configuration.connection_pool_maxsize = CONNECTIONS
            if self._api is not None:
                await self._api.close()
            self._api = ApiClient(configuration)
            self._api.user_agent = FIELD_MANAGER
            return self._api

    async def _request(
        self,
        verb: str,
        method: str,
        kind: Kind,
        path: str,
        *,
        params: dict[str, str] | None = None,
        body: Raw | None = None,
    ) -> Raw:
        refused: ApiClient | None = None
        while True:
            try:
                api = await self._open(refused)
                status, text = await self._send(api, verb, method, path, params=params, body=body)
            except (
                aiohttp.ClientError,
                TimeoutError,
                OSError,
                ConfigException,
                ConfigurationError,
            ) as error:
                self._count(verb, kind.plural, 0)
                raise Unreachable(f"{verb} {path}: {str(error) or 'timed out'}") from error
            self._count(verb, kind.plural, status)
            if status == _UNAUTHORIZED and refused is None:
                refused = api  # its token has expired, or was rotated: once more with a new one
                continue
            if status not in _OK:
                raise error_of(status, text, f"{verb} {path}")
            return _object(text, f"{verb} {path}")

    async def _send(
        self,
        api: ApiClient,
        verb: str,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None,
        body: Raw | None,
    ) -> tuple[int, str]:
        """Return status and text of one exchange. The library's own error classes would need its generated models."""
        request = await api.param_serialize(
            method,
            path,
            query_params=params,
            header_params={
                "Accept": "application/json",
                "Content-Type": _CONTENT_TYPES.get(verb, "application/json"),
            },
            body=body,
            auth_settings=["BearerToken"],
        )
        response = await api.call_api(*request, _request_timeout=self._timeout)
        return response.status, (await response.read()).decode(errors="replace")

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw:
        """Read one object."""
        return await self._request("get", "GET", kind, kind.path(namespace, name))

    async def list(self, kind: Kind, namespace: str | None = None, selector: str = "") -> Objects:
        """Read all objects of *kind*, page by page; ``apiVersion`` and ``kind`` are filled in, ``managedFields`` left out."""
        found: list[Raw] = []
        params = {"limit": str(PAGE)}
        if selector:
            params["labelSelector"] = selector
        for _ in range(MAX_PAGES):
            page = await self._request("list", "GET", kind, kind.path(namespace), params=params)
            for item in page["items"]:
                item["metadata"].pop("managedFields", None)
                found.append({**item, "apiVersion": kind.api_version, "kind": kind.name})
            token = page["metadata"].get("continue")
            if not token:
                break
            params["continue"] = token
        return found

    async def apply(
        self, kind: Kind, manifest: Raw, subresource: str | None = None, *, force: bool = True
    ) -> Raw:
        """Apply *manifest* on the server; fields it names become ours, whichever field manager owns them now.

        Without *force* that is a Conflict.
        """
        meta = manifest["metadata"]
        self.fence(meta["namespace"])
        return await self._request(
            "apply",
            "PATCH",
            kind,
            kind.path(meta["namespace"], meta["name"], subresource),
            params={"fieldManager": FIELD_MANAGER, "force": str(force).lower()},
            body=manifest,
        )

    async def patch(self, kind: Kind, namespace: str, name: str, body: Raw) -> Raw:
        """Merge *body* into an object."""
        self.fence(namespace)
        params = {"fieldManager": FIELD_MANAGER}
        return await self._request(
            "patch", "PATCH", kind, kind.path(namespace, name), params=params, body=body
        )

    async def create(self, kind: Kind, manifest: Raw, *, fenced: bool = True) -> Raw:
        """Create an object; Conflict where it exists. Leases, and what is said about them, are written without the fence."""
        if fenced:
            self.fence(manifest["metadata"]["namespace"])
        path = kind.path(manifest["metadata"]["namespace"])
        return await self._request(
            "create", "POST", kind, path, params={"fieldManager": FIELD_MANAGER}, body=manifest
        )

    async def replace(self, kind: Kind, manifest: Raw) -> Raw:
        """Replace an object that has not changed since it was read; Conflict where it has. Not fenced: the lease."""
        meta = manifest["metadata"]
        path = kind.path(meta["namespace"], meta["name"])
        return await self._request(
            "replace", "PUT", kind, path, params={"fieldManager": FIELD_MANAGER}, body=manifest
        )

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete exactly the object that was seen (*uid*); one that is gone already is as good."""
        self.fence(namespace)
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._request("delete", "DELETE", kind, kind.path(namespace, name), body=body)
        except NotFound:
            return
