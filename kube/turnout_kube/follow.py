"""Follows a collection of the API server: lists it, watches it from there on, and begins again where that breaks off.

What a collection holds is given to an observer, whatever the API server does meanwhile. The caller brings the credentials:
a certificate in the client, or a header that is computed before each request.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from typing import TYPE_CHECKING, Any, Final, Protocol

import httpx
import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_LIST_LIMIT: Final = 500
_LIST_SECONDS: Final = 30.0
_WATCH_SECONDS: Final = 50
"""How long one watch lasts before it is renewed. A connection that died without a word is noticed by then."""
_WATCH_SLACK_SECONDS: Final = 15.0
BACK_OFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses between attempts that fail one after the other; the last one from then on. Each is varied by a quarter."""
_GONE: Final = 410
_REFUSED: Final = frozenset({403, 404})
_OK: Final = 200


class Unavailable(Exception):  # noqa: N818 - a state of the API server or of the credentials
    """The API server answered with an error, or there are no credentials for it at present."""


class Login(Protocol):
    """The client's credentials."""

    async def headers(self) -> dict[str, str]:
        """Return the header fields that hold them; none where the client presents a certificate. Raise Unavailable."""


class NoHeaders:
    """The client has them: a certificate, or a header that it always sends."""

    async def headers(self) -> dict[str, str]:
        """Return no header fields."""
        return {}


class CollectionObserver(Protocol):
    """Receives what one collection holds."""

    def listed(self, objects: list[dict[str, Any]]) -> None:
        """Take all that there is."""

    def put(self, raw: dict[str, Any]) -> None:
        """Take an object that is new or has changed."""

    def removed(self, raw: dict[str, Any]) -> None:
        """Drop an object."""

    def reachable(self, reason: str, *, refused: bool = False) -> None:
        """Learn whether the collection can be followed now: why not, or an empty text.

        *refused*: the API server answers, but has no such collection or does not let the client read it (403, 404).
        """


class _Expired(Exception):  # noqa: N818 - a turn of the loop, never seen outside
    """The version to watch from is too old: list again."""


class _Refused(Unavailable):
    """The API server answers, but not for this collection: 403 or 404."""


async def follow(
    client: httpx.AsyncClient,
    login: Login,
    path: str,
    selector: str | None,
    observer: CollectionObserver,
    *,
    fields: str | None = None,
    back_off_seconds: Sequence[float] = BACK_OFF_SECONDS,
) -> None:
    """Keep *observer* informed of the collection at *path* until cancelled: list, then watch, and again where that breaks off.

    *selector* and *fields* choose objects by their labels and fields.

    An API server that is away, refuses or hangs is tried again, soon at first and every few seconds later on. Anything else
    that goes wrong, in the observer or in what the API server says, is raised: a supervisor runs this again.
    """
    query = {
        **({} if selector is None else {"labelSelector": selector}),
        **({} if fields is None else {"fieldSelector": fields}),
    }
    version: str | None = None
    failures = 0
    while True:
        try:
            if version is None:
                version = await _list(client, login, path, query, observer)
                observer.reachable("")
                failures = 0
            async for latest in _watch(
                client, login, path, params=_watching(query, version), observer=observer
            ):
                version = latest
                failures = 0
        except _Expired:
            version = None
        except (
            httpx.HTTPError,
            httpx.StreamError,
            Unavailable,
            orjson.JSONDecodeError,
            ssl.SSLError,
        ) as error:
            refused = isinstance(error, _Refused)
            if refused:
                version = None  # what was known may be dropped meanwhile: begin with a list
            observer.reachable(f"{path}: {str(error) or type(error).__name__}", refused=refused)
            pause = back_off_seconds[min(failures, len(back_off_seconds) - 1)]
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, guards nothing
        except Exception as error:
            observer.reachable(f"{path}: {type(error).__name__}: {error}")
            raise


async def _list(
    client: httpx.AsyncClient, login: Login, path: str, query: dict[str, str], observer: CollectionObserver
) -> str:
    objects: list[dict[str, Any]] = []
    params: dict[str, str] = {"limit": str(_LIST_LIMIT), **query}
    while True:
        response = await client.get(path, params=params, headers=await login.headers())
        if response.status_code == _GONE:
            raise _Expired
        _check(response.status_code, response.content)
        page = orjson.loads(response.content)
        kind = str(page.get("kind", "")).removesuffix("List")
        for raw in page.get("items") or ():
            raw.setdefault(
                "kind", kind
            )  # lists of Kubernetes' own kinds say it once, watches with each object
            objects.append(raw)
        following = page["metadata"].get("continue")
        if not following:
            observer.listed(objects)
            return str(page["metadata"]["resourceVersion"])
        params["continue"] = following


def _watching(query: dict[str, str], version: str) -> dict[str, str]:
    return {
        "watch": "1",
        "resourceVersion": version,
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(_WATCH_SECONDS),
        **query,
    }


async def _watch(
    client: httpx.AsyncClient,
    login: Login,
    path: str,
    *,
    params: dict[str, str],
    observer: CollectionObserver,
) -> AsyncIterator[str]:
    """Give *observer* the changes and yield the version reached, until the API server ends the watch."""
    timeout = httpx.Timeout(_LIST_SECONDS, connect=5.0, read=_WATCH_SECONDS + _WATCH_SLACK_SECONDS)
    async with client.stream(
        "GET", path, params=params, headers=await login.headers(), timeout=timeout
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
                raise Unavailable(str(raw.get("message") or raw))
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
    kind = _Refused if status in _REFUSED else Unavailable
    raise kind(f"the API server answered {status}: {message or body[:200].decode(errors='replace')}")
