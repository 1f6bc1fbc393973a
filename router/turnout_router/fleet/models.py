"""`GET /v1/models`: what a client may call, in OpenAI's form, or in Anthropic's for clients that name its version."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote

import orjson

from turnout.routing.facts import ModelCard
from turnout_router.api.endpoints import MODELS
from turnout_router.errors import malformed, model_not_found

if TYPE_CHECKING:
    from turnout.routing import Fleet, Grant, Served
    from turnout_router.fleet.learning import Facts

_PAGE: Final = 20
_LARGEST_PAGE: Final = 1000
"""Anthropic's page sizes. OpenAI's form knows no pages."""


def models_body(fleet: Fleet, facts: Facts, grant: Grant | None, target: bytes, *, anthropic: bool) -> bytes:
    """Return the answer to GET *target*: the list, or the one that the path names. *facts* is what workers report.

    Raise ApiError: 404 for a name that does not exist or that *grant* does not hold, 400 for a page that is none.
    """
    path, _, query = target.partition(b"?")

    def describe(name: str, served: Served) -> dict[str, Any]:
        return _anthropic_model(name, served) if anthropic else _openai_model(name, served, fleet, facts)

    if path != MODELS:
        name = unquote(path[len(MODELS) + 1 :].decode("latin-1"))
        found = fleet.names.get(name)
        if found is None or (grant is not None and not grant.allows(name, found.namespace)):
            raise model_not_found(name[:256])
        return orjson.dumps(describe(name, found))
    names = [
        name
        for name, served in sorted(fleet.names.items())
        if served.listed and (grant is None or grant.allows(name, served.namespace))
    ]
    if not anthropic:
        return orjson.dumps({"object": "list", "data": [describe(name, fleet.names[name]) for name in names]})
    page, has_more = _page(names, query)
    return orjson.dumps(
        {
            "data": [describe(name, fleet.names[name]) for name in page],
            "has_more": has_more,
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }
    )


def _page(names: list[str], query: bytes) -> tuple[list[str], bool]:
    """Return the names on the page that *query* selects, and whether there are more in its direction."""
    asked = parse_qs(query.decode("latin-1"))
    size = _size(asked.get("limit", [str(_PAGE)])[-1])
    if "before_id" in asked:
        end = _place(names, asked["before_id"][-1], "before_id")
        return names[max(0, end - size) : end], end > size
    begin = _place(names, asked["after_id"][-1], "after_id") + 1 if "after_id" in asked else 0
    return names[begin : begin + size], begin + size < len(names)


def _size(text: str) -> int:
    size = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(_LARGEST_PAGE)) else 0
    if not 1 <= size <= _LARGEST_PAGE:
        raise malformed(f"`limit` must be a whole number from 1 to {_LARGEST_PAGE}.", "limit")
    return size


def _place(names: list[str], name: str, param: str) -> int:
    try:
        return names.index(name)
    except ValueError as error:
        raise malformed(f"`{param}` is none of the models: take it from a page's ids.", param) from error


def _openai_model(name: str, served: Served, fleet: Fleet, facts: Facts) -> dict[str, Any]:
    """Return *name* with vLLM's further fields: null is what is not known, or not the same wherever the name leads."""
    lengths: set[int] = set()
    created: set[int] = set()
    cards: set[tuple[str | None, str | None]] = set()  # root and parent
    for key, _ in served.targets:
        known, route = facts.of(key), fleet.deployments.get(key)
        if known is None or route is None:
            continue
        adapter = known.adapters.get(name, ModelCard(name)) if name in route.adapters else None
        cards.add((known.root, None) if adapter is None else (adapter.root, adapter.parent))
        if known.max_model_len is not None:
            lengths.add(known.max_model_len)
        if known.created is not None:
            created.add(known.created)
    root, parent = cards.pop() if len(cards) == 1 else (None, None)
    return {
        "id": name,
        "object": "model",
        "created": int(served.created) or min(created, default=0),
        "owned_by": "turnout",
        "root": root,
        "parent": parent,
        "max_model_len": min(lengths, default=None),
    }


def _anthropic_model(name: str, served: Served) -> dict[str, Any]:
    created = datetime.fromtimestamp(int(served.created), UTC).isoformat().replace("+00:00", "Z")
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": created,
        "lifecycle": "active",
    }
