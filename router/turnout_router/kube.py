"""Access to Kubernetes' API server: where it is and who we are, and following a collection by list and watch.

Small on purpose: the router only reads four collections, and a full client costs more memory than the router itself.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import httpx
import orjson
import yaml

from turnout_router.errors import ConfigError, DiscoveryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LIST_LIMIT: Final = 500
_LIST_SECONDS: Final = 30.0
_WATCH_SECONDS: Final = 50
"""How long one watch lasts before it is renewed. A connection that died without a word is noticed by then."""
_WATCH_SLACK_SECONDS: Final = 15.0
_BACK_OFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
_GONE: Final = 410
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to speak to it. The token is read anew, for kubelets replace it."""

    server: str
    tls: ssl.SSLContext | None = None
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """Return the header that says who we are. Raise DiscoveryError where the token's file cannot be read."""
        token = self.token
        if self.token_file is not None:
            try:
                token = self.token_file.read_text().strip()
            except OSError as error:
                raise DiscoveryError(
                    f"the token {self.token_file} cannot be read: {error.strerror}"
                ) from error
        return {} if token is None else {"authorization": f"Bearer {token}"}


def load_access(environ: Mapping[str, str] = os.environ) -> Access:
    """Return access from KUBECONFIG, else the pod's service account, else ~/.kube/config. Raise ConfigError without any."""
    path = environ.get("KUBECONFIG")
    if path:
        return _from_kubeconfig(Path(path.split(os.pathsep)[0]))
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if host and (_ACCOUNT / "token").exists():
        host = f"[{host}]" if ":" in host else host
        return Access(
            server=f"https://{host}:{environ.get('KUBERNETES_SERVICE_PORT', '443')}",
            tls=ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt")),
            token_file=_ACCOUNT / "token",
        )
    home = Path("~/.kube/config").expanduser()
    if home.exists():
        return _from_kubeconfig(home)
    raise ConfigError(
        "no Kubernetes to read the fleet from: set KUBECONFIG, run in a pod with a service account, "
        "or name a file with --config"
    )


def _from_kubeconfig(path: Path) -> Access:
    try:
        config = yaml.safe_load(path.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        server = cluster["server"]
    except OSError as error:
        raise ConfigError(f"the kubeconfig {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError, LookupError) as error:
        raise ConfigError(f"the kubeconfig {path} is not complete: {error!r}") from error
    if "exec" in user or "auth-provider" in user:
        raise ConfigError(
            f"the kubeconfig {path} asks a program for its credentials; use a token or a certificate"
        )
    token_file = user.get("tokenFile")
    return Access(
        server=str(server).rstrip("/"),
        tls=_tls(path, cluster, user) if str(server).startswith("https:") else None,
        token=user.get("token"),
        token_file=None if token_file is None else path.parent / token_file,
    )


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for entry in entries:
        if entry["name"] == name:
            return entry
    raise LookupError(f"nothing is called {name!r}")


def _tls(path: Path, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    try:
        authority = _material(path, cluster, "certificate-authority")
        context = ssl.create_default_context(cadata=None if authority is None else authority.decode())
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate = _material(path, user, "client-certificate")
        key = _material(path, user, "client-key")
        if certificate is not None and key is not None:
            with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # mode 0600; ssl reads files only
                file.write(certificate + b"\n" + key)
                file.flush()
                context.load_cert_chain(file.name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the certificates of the kubeconfig {path} cannot be used: {error}") from error
    return context


def _material(path: Path, entry: dict[str, Any], name: str) -> bytes | None:
    if f"{name}-data" in entry:
        return base64.b64decode(entry[f"{name}-data"])
    return (path.parent / entry[name]).read_bytes() if name in entry else None


class CollectionObserver(Protocol):
    """Is told what one collection holds."""

    def listed(self, objects: list[dict[str, Any]]) -> None:
        """Take all that there is."""

    def put(self, raw: dict[str, Any]) -> None:
        """Take an object that is new or has changed."""

    def removed(self, raw: dict[str, Any]) -> None:
        """Drop an object."""

    def reachable(self, reason: str) -> None:
        """Learn whether the collection can be followed now: why not, or an empty text."""


class _Expired(Exception):  # noqa: N818 - a turn of the loop, never seen outside
    """The version to watch from is too old: list again."""


def new_client(access: Access) -> httpx.AsyncClient:
    """Return an HTTP client for *access*, which the caller closes."""
    return httpx.AsyncClient(
        base_url=access.server,
        verify=access.tls if access.tls is not None else False,
        timeout=httpx.Timeout(_LIST_SECONDS, connect=5.0),
        trust_env=False,
    )


async def follow(
    client: httpx.AsyncClient, access: Access, path: str, selector: str | None, observer: CollectionObserver
) -> None:
    """Tell *observer* of the collection at *path* until cancelled: list, then watch, and again where that breaks off.

    An API server that is away, refuses or hangs is tried again, soon at first and every few seconds later on.
    """
    version: str | None = None
    failures = 0
    while True:
        try:
            if version is None:
                version = await _list(client, access, path, selector, observer)
                observer.reachable("")
                failures = 0
            async for latest in _watch(
                client, access, path, params=_watching(selector, version), observer=observer
            ):
                version = latest
                failures = 0
        except _Expired:
            version = None
        except (
            httpx.HTTPError,
            httpx.StreamError,
            DiscoveryError,
            orjson.JSONDecodeError,
            ssl.SSLError,
        ) as error:
            observer.reachable(f"{path}: {str(error) or type(error).__name__}")
            pause = _BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)]
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, guards nothing


async def _list(
    client: httpx.AsyncClient, access: Access, path: str, selector: str | None, observer: CollectionObserver
) -> str:
    objects: list[dict[str, Any]] = []
    params: dict[str, str] = {"limit": str(_LIST_LIMIT)}
    if selector is not None:
        params["labelSelector"] = selector
    while True:
        response = await client.get(path, params=params, headers=access.headers())
        if response.status_code == _GONE:
            raise _Expired
        _check(response.status_code, response.content)
        page = orjson.loads(response.content)
        objects += page.get("items") or ()
        following = page["metadata"].get("continue")
        if not following:
            observer.listed(objects)
            return str(page["metadata"]["resourceVersion"])
        params["continue"] = following


def _watching(selector: str | None, version: str) -> dict[str, str]:
    return {
        "watch": "1",
        "resourceVersion": version,
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(_WATCH_SECONDS),
        **({} if selector is None else {"labelSelector": selector}),
    }


async def _watch(
    client: httpx.AsyncClient,
    access: Access,
    path: str,
    *,
    params: dict[str, str],
    observer: CollectionObserver,
) -> AsyncIterator[str]:
    """Tell *observer* of changes and yield the version reached, until the API server ends the watch."""
    timeout = httpx.Timeout(_LIST_SECONDS, connect=5.0, read=_WATCH_SECONDS + _WATCH_SLACK_SECONDS)
    async with client.stream(
        "GET", path, params=params, headers=access.headers(), timeout=timeout
    ) as response:
        if response.status_code == _GONE:
            raise _Expired
        if response.status_code != _OK:
            _check(response.status_code, await response.aread())
        observer.reachable("")
        async for line in response.aiter_lines():
            event = orjson.loads(line)
            kind, raw = event["type"], event["object"]
            if kind == "ERROR":
                if raw.get("code") == _GONE:
                    raise _Expired
                raise DiscoveryError(str(raw.get("message") or raw))
            if kind == "DELETED":
                observer.removed(raw)
            elif kind != "BOOKMARK":
                observer.put(raw)
            yield str(raw["metadata"]["resourceVersion"])


def _check(status: int, body: bytes) -> None:
    if status == _OK:
        return
    try:
        message = orjson.loads(body).get("message")
    except (orjson.JSONDecodeError, AttributeError):
        message = None
    raise DiscoveryError(
        f"the API server answered {status}: {message or body[:200].decode(errors='replace')}"
    )
