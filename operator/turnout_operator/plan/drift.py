"""Drift: what of a live object is not as it was applied.

Others may add to our objects (labels, annotations, defaults of the API server): that is theirs and stays. What
we set must stand as we set it, and nothing that we used to set may linger; the latter shows in a digest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnout_operator.plan.manifests import Manifest

Path = tuple[str, ...]
"""Keys from the root of an object to a field. An item of a list of named things is written ``[name=worker]``."""

_AMOUNTS: Final = frozenset({"limits", "requests", "hard"})
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(m|k|[KMGTPE]i?|)")
_FACTORS: Final = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    "k": Fraction(1000),
    **{unit: Fraction(1000) ** power for power, unit in enumerate("KMGTPE", 1)},
    **{f"{unit}i": Fraction(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}


@dataclass(frozen=True, slots=True)
class Deviation:
    """One field that is not as it was applied."""

    path: Path
    """Empty: the whole object is not there."""
    live: Any
    """None: it is not there."""
    wanted: Any

    @property
    def field(self) -> str:
        """The path as people write it: ``spec.template.spec.containers[name=worker].image``."""
        return ".".join(self.path).replace(".[", "[") or "the object"


def differs(live: Manifest | None, wanted: Manifest) -> bool:
    """Return whether *live* lacks anything of *wanted*, whose digest stands in an annotation."""
    return live is None or not holds(live, wanted)


def deviations(live: Manifest | None, wanted: Manifest) -> tuple[Deviation, ...]:
    """Return what *live* lacks of *wanted*, in the order of *wanted*."""
    if live is None:
        return (Deviation((), None, None),)
    return tuple(_deviations(live, wanted, ()))


def holds(live: Any, wanted: Any) -> bool:
    """Return whether *live* has everything that *wanted* has.

    Mappings may have more keys. Lists of named things (containers, ports, variables) and of owners may have more
    items, as in a server-side merge; any other list must be equal. What is empty may be missing, and amounts of
    resources may be written differently: the API server does both.
    """
    return next(_deviations(live, wanted, ()), None) is None


def shown(value: Any) -> str:
    """Return a value as it may stand in a message, at most 80 characters of it."""
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004 - as the docstring says


def _deviations(live: Any, wanted: Any, path: Path) -> Iterator[Deviation]:
    if _is_empty(wanted) and _is_empty(live):
        return
    if isinstance(wanted, dict) and isinstance(live, dict):
        for key, value in wanted.items():
            yield from _deviations(live.get(key), value, (*path, str(key)))
        return
    if isinstance(wanted, list) and isinstance(live, list):
        key = next((key for key in ("uid", "name") if _keyed(wanted, key) and _keyed(live, key)), None)
        if key is not None:
            by_key = {item[key]: item for item in live}
            for item in wanted:
                yield from _deviations(by_key.get(item[key]), item, (*path, f"[{key}={item[key]}]"))
            return
        if len(live) == len(wanted) and all(map(holds, live, wanted)):
            return
    elif live == wanted or _same_amount(live, wanted, path):
        return
    yield Deviation(path, live, wanted)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (dict, list, str)) and not value)


def _same_amount(live: Any, wanted: Any, path: Path) -> bool:
    if len(path) < 2 or path[-2] not in _AMOUNTS:  # noqa: PLR2004 - limits.cpu
        return False
    one, other = _amount(live), _amount(wanted)
    return one is not None and one == other


def _amount(value: Any) -> Fraction | None:
    match = _QUANTITY.fullmatch(str(value))
    return None if match is None else Fraction(match[1].rstrip(".")) * _FACTORS[match[2]]


def _keyed(items: list[Any], key: str) -> bool:
    return bool(items) and all(isinstance(item, dict) and key in item for item in items)
