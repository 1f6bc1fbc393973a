"""List and watch: keeps telling a listener how a collection of the API server is."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from turnout_devcluster.node.errors import ApiError, GoneError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_devcluster.node.api import Api

MAX_WAIT_SECONDS = 2.0
"""Longest wait between attempts. Short, for an API server that comes back must find its node."""

GONE_CODE = 410

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """Hears how a collection is. Called in order, never at the same time."""

    def replaced(self, objects: list[dict[str, Any]]) -> None:
        """All there is: whatever is not among *objects* is gone."""

    def changed(self, obj: dict[str, Any]) -> None:
        """One object is new or has changed."""

    def deleted(self, obj: dict[str, Any]) -> None:
        """One object is gone."""


def _apply(event: dict[str, Any], listener: Listener) -> str:
    """Tell *listener* of *event*; return the resource version reached. Raise ApiError."""
    obj = event["object"]
    if event["type"] == "ERROR":
        code = int(obj.get("code", 500))
        kind = GoneError if code == GONE_CODE else ApiError
        raise kind(code, str(obj.get("message", "")))
    if event["type"] == "DELETED":
        listener.deleted(obj)
    elif event["type"] != "BOOKMARK":
        listener.changed(obj)
    return str(obj["metadata"]["resourceVersion"])


async def follow(api: Api, path: str, listener: Listener, params: Mapping[str, str] | None = None) -> None:
    """List *path*, then watch it, until cancelled. Outages and expired versions are met by trying again."""
    version = ""
    wait = 0.0
    while True:
        try:
            if not version:
                listing = await api.request("GET", path, params=params)
                kind = str(listing.get("kind", "")).removesuffix("List")
                listener.replaced([{**item, "kind": kind} for item in listing.get("items") or ()])
                version = listing["metadata"]["resourceVersion"]
            async for event in api.watch(path, {**(params or {}), "resourceVersion": version}):
                version = _apply(event, listener)
                wait = 0.0
        except GoneError:
            version = ""
        except ApiError as error:
            _log.warning("watch of %s: %s", path, error)
            version = ""
            wait = min(MAX_WAIT_SECONDS, wait * 2 or 0.1)
        except UnreachableError as error:
            if wait == 0:
                _log.warning("%s; trying again", error)
            wait = min(MAX_WAIT_SECONDS, wait * 2 or 0.1)
        await asyncio.sleep(wait)
