"""The last write of each object and its result. It is lost with the process, which costs one more write per object."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from turnout_operator.plan import write_conflicts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout_operator.errors import ApiError
    from turnout_operator.kube.kinds import Kind
    from turnout_operator.observe.store import Key
    from turnout_operator.plan.drift import Deviation
    from turnout_operator.plan.write_conflicts import WriteRecord

MAX_RECORDS: Final = 65_536
"""Objects that are remembered; with more, the one that was written longest ago is forgotten."""

FIRST_REFUSAL_SECONDS: Final = 5.0
"""How soon what was refused is asked for again; each further refusal doubles it."""
LAST_REFUSAL_SECONDS: Final = 60.0

STATUS: Final = "status"
Target = tuple["Kind", "Key", str]
"""An object, and the part of it that is written (``status``, ``metadata``, or empty for all that is applied)."""
Owner = tuple["Kind", "Key"]
"""The resource that it belongs to."""


def digest(content: Any) -> str:
    """Return a short name for *content*."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Refusal:
    content: str
    error: ApiError
    times: int
    """In a row, of the same content."""
    until: float
    """Monotonic time at which it may be asked for again."""


class WriteHistory:
    """What became of the last write to each object, by the resource that it belongs to."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: OrderedDict[Target, WriteRecord] = OrderedDict()
        self._owners: dict[Target, Owner] = {}
        self._owned: dict[Owner, set[Target]] = {}
        self._refusals: OrderedDict[Target, _Refusal] = OrderedDict()

    def due_in(self, target: Target, content: str, found: Sequence[Deviation]) -> float | None:
        """Return in how many seconds *content* is to be written; None: not at all (see `write_conflicts.due_in`)."""
        return write_conflicts.due_in(self._records.get(target), content, found, self._clock())

    def seconds_since(self, target: Target) -> float:
        """Return how long ago an object was written last; infinite where that is not known."""
        before = self._records.get(target)
        return math.inf if before is None else self._clock() - before.written_at

    def would_be_contested(self, target: Target, content: str) -> bool:
        """Return whether one more repair of *content* means that another controller, not a person, changes the object."""
        before = self._records.get(target)
        return (
            before is not None
            and before.content == content
            and before.repairs + 1 >= write_conflicts.FREE_REPAIRS
        )

    def left(self, target: Target, content: str, found: Sequence[Deviation]) -> tuple[Deviation, ...]:
        """Return what of *found* was not made by admission."""
        return write_conflicts.left(self._records.get(target), content, found)

    def written(
        self,
        target: Target,
        owner: Owner,
        content: str,
        *,
        found: Sequence[Deviation],
        answer: Sequence[Deviation],
        manager: str = "",
    ) -> None:
        """Take note of a write."""
        before = self._records.pop(target, None)
        self._records[target] = write_conflicts.written(
            before, content, found, answer, self._clock(), manager=manager
        )
        self._owners[target] = owner
        self._owned.setdefault(owner, set()).add(target)
        self._refusals.pop(target, None)
        while len(self._records) > MAX_RECORDS:
            self._drop(next(iter(self._records)))

    def sentences(self, owner: Owner) -> tuple[str, ...]:
        """Return what a person should know about the objects of *owner*, in the order of their names.

        Its status is not among them: a status that is overwritten cannot report its own overwriting.
        """
        now = self._clock()
        objects = (target for target in self._owned.get(owner, ()) if target[2] != STATUS)
        mine = sorted(objects, key=lambda target: (target[0].name, target[1], target[2]))
        return tuple(
            sentence
            for target in mine
            for sentence in write_conflicts.sentences(
                f"{target[0].name} {target[1].name}", self._records[target], now
            )
        )

    def changes_in(self, owner: Owner) -> float | None:
        """Return in how many seconds `sentences` of *owner* say something else without a further write; None: they do not."""
        now = self._clock()
        known = (self._records[target] for target in self._owned.get(owner, ()) if target[2] != STATUS)
        ends = (
            one.written_at + write_conflicts.quiet_seconds(one)
            for one in known
            if write_conflicts.is_contested(one, now)
        )
        return min((max(0.0, end - now) for end in ends), default=None)

    def refused(self, target: Target, content: str, error: ApiError) -> None:
        """Take note that the API server refuses *content* for what it is."""
        before = self._refusals.pop(target, None)
        times = before.times + 1 if before is not None and before.content == content else 1
        pause = min(LAST_REFUSAL_SECONDS, FIRST_REFUSAL_SECONDS * 2.0 ** min(times - 1, 16))
        self._refusals[target] = _Refusal(content, error, times, self._clock() + pause)
        while len(self._refusals) > MAX_RECORDS:
            self._refusals.popitem(last=False)

    def refusal(self, target: Target, content: str) -> ApiError | None:
        """Return why *content* was refused, while it is too early to ask again; None: it may be written."""
        known = self._refusals.get(target)
        return (
            known.error
            if known is not None and known.content == content and self._clock() < known.until
            else None
        )

    def forget(self, target: Target) -> None:
        """Forget one object that is gone."""
        self._refusals.pop(target, None)
        if target in self._records:
            self._drop(target)

    def forget_owner(self, owner: Owner) -> None:
        """Forget all objects of a resource that is gone."""
        for target in tuple(self._owned.get(owner, ())):
            self._drop(target)

    def _drop(self, target: Target) -> None:
        self._records.pop(target, None)
        owner = self._owners.pop(target)
        self._owned[owner].discard(target)
        if not self._owned[owner]:
            del self._owned[owner]
