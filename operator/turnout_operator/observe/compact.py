"""Objects as they are kept in memory: only what the operator reads, with strings that are shared between them.

Of ten thousand objects most keys and many values are the same. JSON makes each anew for each object: twice the memory.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from turnout_operator.kube.kinds import CLAIMING, DEPLOYMENT, JOB, POD, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_operator.kube.client import Raw

_SHARED_LENGTH: Final = 64
"""Longest string that is worth sharing: longer ones are unique to one object."""
_OF_POD: Final = {
    "spec": frozenset({"nodeName"}),
    "status": frozenset(
        {"phase", "reason", "message", "podIP", "conditions", "containerStatuses", "initContainerStatuses"}
    ),
}

_OF_CONTAINER: Final = frozenset({"name", "args"})


def compact(kind: Kind, raw: Raw) -> Raw:
    """Return what is kept of an object of *kind*."""
    kept = {part: value for part, value in raw.items() if part != "metadata"}
    if kind == POD:
        containers = [
            _only(container, _OF_CONTAINER) for container in (raw.get("spec") or {}).get("containers") or ()
        ]
        kept = {part: _only(kept.get(part), names) for part, names in _OF_POD.items()}
        kept["spec"]["containers"] = containers
    elif kind in {DEPLOYMENT, JOB}:
        kept["status"] = _only(kept.get("status"), frozenset({"conditions"}))
    elif kind not in CLAIMING:
        kept.pop("status", None)
    # managedFields is the greater part of an object, and the operator does not read it.
    meta = {name: value for name, value in raw["metadata"].items() if name != "managedFields"}
    shared: Raw = _shared({**kept, "metadata": meta})
    return {**shared, "apiVersion": kind.api_version, "kind": kind.name}


def _only(value: Mapping[str, Any] | None, names: frozenset[str]) -> dict[str, Any]:
    return {name: item for name, item in (value or {}).items() if name in names}


def _shared(value: Any) -> Any:
    if type(value) is dict:
        return {sys.intern(key): _shared(item) for key, item in value.items()}
    if type(value) is list:
        return [_shared(item) for item in value]
    if type(value) is str and len(value) <= _SHARED_LENGTH:
        return sys.intern(value)
    return value
