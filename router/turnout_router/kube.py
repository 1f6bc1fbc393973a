"""Access to Kubernetes' API server: where it is and who we are, and following a collection by list and watch.

Small on purpose: the router only reads a few collections, and a full client costs more memory than the router itself.
In a pod its service account is all there is to know. Kubeconfigs are read by the `kubernetes` library, programs that
hand out credentials included; it is imported only then, for it costs 8 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import httpx
import orjson
import yaml

from turnout_router.errors import ConfigError, DiscoveryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from kubernetes.client.configuration import Configuration

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DEFAULT: Final = "~/.kube/config"
_LOGIN_SECONDS: Final = 15.0
"""For the credentials: a kubeconfig's program may ask somebody over the network."""
_LIST_LIMIT: Final = 500
_LIST_SECONDS: Final = 30.0
_WATCH_SECONDS: Final = 50
"""How long one watch lasts before it is renewed. A connection that died without a word is noticed by then."""
_WATCH_SLACK_SECONDS: Final = 15.0
_BACK_OFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
_GONE: Final = 410
_REFUSED: Final = frozenset({403, 404})
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to speak to it.

    `authorization` returns the field of that name, None where a certificate says who we are. It is asked each time,
    for tokens are replaced, and not on the event loop, for it may read files or run a program. It raises
    DiscoveryError or ConfigError.
    """

    server: str
    tls: ssl.SSLContext | None
    authorization: Callable[[], str | None]

    async def headers(self) -> dict[str, str]:
        """Return the header that says who we are. Raise DiscoveryError where nothing can be found out in time."""
        try:
            async with asyncio.timeout(_LOGIN_SECONDS):
                value = await _aside(self.authorization)
        except TimeoutError as error:
            raise DiscoveryError(f"no credentials within {_LOGIN_SECONDS:g} s") from error
        return {} if value is None else {"authorization": value}


async def _aside(function: Callable[[], str | None]) -> str | None:
    """Return what *function* does, from a thread that nobody has to wait for: not even the process's end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str | None] = loop.create_future()

    def tell(result: str | None, error: Exception | None) -> None:
        if done.done():
            return  # nobody waited so long
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result: str | None = None
        failure: Exception | None = None
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=work, name="credentials", daemon=True).start()
    return await done


def load_access(environ: Mapping[str, str] = os.environ) -> Access:
    """Return access from KUBECONFIG, else the pod's service account, else ~/.kube/config. Raise ConfigError without any."""
    paths = environ.get("KUBECONFIG")
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if not paths and host and (_ACCOUNT / "token").exists():
        host = f"[{host}]" if ":" in host else host
        return Access(
            server=f"https://{host}:{environ.get('KUBERNETES_SERVICE_PORT', '443')}",
            tls=ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt")),
            authorization=_account_token,
        )
    if not paths and not Path(_DEFAULT).expanduser().exists():
        raise ConfigError(
            "no Kubernetes to read the fleet from: set KUBECONFIG, run in a pod with a service account, "
            "or name a file with --config"
        )
    return _Kubeconfig(paths or _DEFAULT).access()


def _account_token() -> str:
    try:
        return f"Bearer {(_ACCOUNT / 'token').read_text().strip()}"
    except OSError as error:
        raise DiscoveryError(f"the token {_ACCOUNT / 'token'} cannot be read: {error.strerror}") from error


class _Kubeconfig:
    """The files that KUBECONFIG names, read anew whenever somebody asks; one at a time, for a program may hang."""

    def __init__(self, paths: str) -> None:
        self._paths = paths
        self._reading = threading.Lock()

    def access(self) -> Access:
        """Raise ConfigError where the files cannot be used."""
        found = self._read()
        return Access(found.host, self._tls(found), self._authorization)

    def _authorization(self) -> str | None:
        if not self._reading.acquire(timeout=_LOGIN_SECONDS):
            raise DiscoveryError(f"the kubeconfig {self._paths} still waits for its program's credentials")
        try:
            value: str | None = self._read().get_api_key_with_prefix("BearerToken")
        finally:
            self._reading.release()
        return value

    def _read(self) -> Configuration:
        from kubernetes.client.configuration import Configuration  # noqa: PLC0415 - see the module's docstring
        from kubernetes.config import ConfigException, load_kube_config  # noqa: PLC0415

        found = Configuration()
        try:
            load_kube_config(self._paths, client_configuration=found, persist_config=False)
        except (
            ConfigException,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            yaml.YAMLError,
        ) as error:
            raise ConfigError(f"the kubeconfig {self._paths} cannot be used: {error}") from error
        if found.tls_server_name:
            raise ConfigError(
                f"the kubeconfig {self._paths} sets tls-server-name, which cannot be honoured here: "
                "give the server's address as its certificate has it"
            )
        if not found.api_key and not found.cert_file and found.host.startswith("https:"):
            raise ConfigError(
                f"the kubeconfig {self._paths} has no credentials for its current context: give its user a token, "
                "a certificate or a program (why a program failed is logged above)"
            )
        return found

    def _tls(self, found: Configuration) -> ssl.SSLContext | None:
        if not found.host.startswith("https:"):
            return None
        try:
            context = ssl.create_default_context(cafile=found.ssl_ca_cert)
            if not found.verify_ssl:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if found.cert_file:
                context.load_cert_chain(found.cert_file, found.key_file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the certificates of the kubeconfig {self._paths} cannot be used: {error}"
            ) from error
        return context


class CollectionObserver(Protocol):
    """Is told what one collection holds."""

    def listed(self, objects: list[dict[str, Any]]) -> None:
        """Take all that there is."""

    def put(self, raw: dict[str, Any]) -> None:
        """Take an object that is new or has changed."""

    def removed(self, raw: dict[str, Any]) -> None:
        """Drop an object."""

    def reachable(self, reason: str, *, refused: bool = False) -> None:
        """Learn whether the collection can be followed now: why not, or an empty text.

        *refused*: the API server answers, but has no such collection or does not let us read it (403, 404).
        """


class _Expired(Exception):  # noqa: N818 - a turn of the loop, never seen outside
    """The version to watch from is too old: list again."""


class _Refused(DiscoveryError):  # noqa: N818 - a state of a collection
    """The API server answers, but not for this collection: 403 or 404."""


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

    An API server that is away, refuses or hangs is tried again, soon at first and every few seconds later on. Anything else
    that goes wrong, in the observer or in what the API server says, is raised: a supervisor runs this again.
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
            refused = isinstance(error, _Refused)
            if refused:
                version = None  # what was known may be dropped meanwhile: begin with a list
            observer.reachable(f"{path}: {str(error) or type(error).__name__}", refused=refused)
            pause = _BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)]
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, guards nothing
        except Exception as error:
            observer.reachable(f"{path}: {type(error).__name__}: {error}")
            raise


async def _list(
    client: httpx.AsyncClient, access: Access, path: str, selector: str | None, observer: CollectionObserver
) -> str:
    objects: list[dict[str, Any]] = []
    params: dict[str, str] = {"limit": str(_LIST_LIMIT)}
    if selector is not None:
        params["labelSelector"] = selector
    while True:
        response = await client.get(path, params=params, headers=await access.headers())
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
        "GET", path, params=params, headers=await access.headers(), timeout=timeout
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
    kind = _Refused if status in _REFUSED else DiscoveryError
    raise kind(f"the API server answered {status}: {message or body[:200].decode(errors='replace')}")
