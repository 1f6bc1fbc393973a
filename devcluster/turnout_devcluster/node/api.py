"""A small asynchronous client of the Kubernetes API: JSON objects in, JSON objects out."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx
import yaml

from turnout_devcluster.node.errors import (
    ApiError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    UnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STRATEGIC: Final = "application/strategic-merge-patch+json"
MERGE: Final = "application/merge-patch+json"
TIMEOUT_SECONDS: Final = 15.0
USER_AGENT: Final = "turnout-node/1"
CONFLICT, NOT_FOUND, BAD = 409, 404, 400


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the API server is, and the agent's credentials."""

    server: str
    """Base URL."""
    ca_pem: str
    tls: ssl.SSLContext
    token: str

    @property
    def host(self) -> str:
        """Host of the API server."""
        return urlsplit(self.server).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        """Port of the API server."""
        return urlsplit(self.server).port or 443


def _pem(section: Mapping[str, Any], key: str, base: Path) -> str:
    """Return the text that a kubeconfig gives inline (KEY-data) or as a file (KEY)."""
    if section.get(f"{key}-data"):
        return base64.b64decode(str(section[f"{key}-data"])).decode()
    if section.get(key):
        return (base / str(section[key])).read_text(encoding="utf-8")
    return ""


def load_kubeconfig(path: Path) -> Endpoint:
    """Return the endpoint of the current context of *path*. Raise ConfigurationError."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        context = next(c["context"] for c in raw["contexts"] if c["name"] == raw["current-context"])
        cluster = next(c["cluster"] for c in raw["clusters"] if c["name"] == context["cluster"])
        user = next(u["user"] for u in raw["users"] if u["name"] == context["user"])
        ca_pem = _pem(cluster, "certificate-authority", path.parent)
        if not ca_pem:
            raise ConfigurationError(f"kubeconfig {path} names no certificate-authority: add the cluster's")
        tls = ssl.create_default_context(cadata=ca_pem)
        certificate, key = (
            _pem(user, "client-certificate", path.parent),
            _pem(user, "client-key", path.parent),
        )
        if certificate:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(f"{certificate}\n{key}")
                file.flush()
                tls.load_cert_chain(file.name)
        return Endpoint(cluster["server"], ca_pem, tls, user.get("token", ""))
    except (OSError, ValueError, KeyError, TypeError, StopIteration, yaml.YAMLError, ssl.SSLError) as error:
        raise ConfigurationError(f"kubeconfig {path} cannot be used: {error!r}") from error


def _raise_for(status: int, body: bytes) -> None:
    if status < BAD:
        return
    try:
        message = json.loads(body).get("message") or body.decode(errors="replace")
    except (ValueError, AttributeError):
        message = body.decode(errors="replace")[:500]
    kinds = {NOT_FOUND: NotFoundError, CONFLICT: ConflictError}
    raise kinds.get(status, ApiError)(status, message)


class Api:
    """Requests to one API server over a few kept connections; `client` makes others of the same user."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        if endpoint.token:
            headers["Authorization"] = f"Bearer {endpoint.token}"
        self.client = httpx.AsyncClient(
            base_url=endpoint.server,
            verify=endpoint.tls,
            headers=headers,
            trust_env=False,
            timeout=TIMEOUT_SECONDS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self.client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Send one request and return the object that answers it. Raise ApiError or UnreachableError."""
        try:
            response = await self.client.request(
                method,
                path,
                params=params,
                content=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": content_type} if body is not None else None,
            )
        except (httpx.TransportError, OSError) as error:
            raise UnreachableError(f"{method} {path}: {error!r}") from error
        _raise_for(response.status_code, response.content)
        try:
            answer: dict[str, Any] = response.json()
        except ValueError as error:
            raise UnreachableError(f"{method} {path}: the answer is no JSON") from error
        return answer

    async def get(self, path: str) -> dict[str, Any]:
        """Read one object."""
        return await self.request("GET", path)

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object in the collection *path*."""
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: Mapping[str, Any], content_type: str = MERGE) -> dict[str, Any]:
        """Change parts of an object."""
        return await self.request("PATCH", path, body, content_type=content_type)

    async def delete(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Delete an object with DeleteOptions *body*."""
        return await self.request("DELETE", path, body)


async def pause(event: asyncio.Event, seconds: float) -> None:
    """Wait for *event*, at most *seconds*."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
