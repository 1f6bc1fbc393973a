"""Drift: whether a live object still holds everything that was applied to it.

Others may add to our objects (labels, annotations, defaults of the API server): that is theirs and stays. What
we set must stand as we set it, and nothing that we used to set may linger; the latter shows in a digest.
"""

from __future__ import annotations

from typing import Any

from turnout_operator.plan.manifests import ANNOTATION_APPLIED, Manifest


def differs(live: Manifest | None, wanted: Manifest) -> bool:
    """Return whether *wanted* has to be applied to make *live* hold it."""
    if live is None:
        return True
    applied = live["metadata"].get("annotations", {}).get(ANNOTATION_APPLIED)
    return applied != wanted["metadata"]["annotations"][ANNOTATION_APPLIED] or not holds(live, wanted)


def holds(live: Any, wanted: Any) -> bool:
    """Return whether *live* has everything that *wanted* has.

    Mappings may have more keys. Lists of named things (containers, ports, variables) and of owners may have more
    items, as in a server-side merge; any other list must be equal.
    """
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            key in live and holds(live[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return False
        key = next((key for key in ("uid", "name") if _keyed(wanted, key) and _keyed(live, key)), None)
        if key is not None:
            by_key = {item[key]: item for item in live}
            return all(item[key] in by_key and holds(by_key[item[key]], item) for item in wanted)
        return len(live) == len(wanted) and all(map(holds, live, wanted))
    return bool(live == wanted)


def _keyed(items: list[Any], key: str) -> bool:
    return bool(items) and all(isinstance(item, dict) and key in item for item in items)
