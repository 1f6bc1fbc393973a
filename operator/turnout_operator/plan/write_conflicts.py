"""Writes that do not last: admission changed them, or another writer changes them back afterwards.

Where the API server's answer differs from our own write, a policy or a webhook changed it on admission: writing it again
would change nothing, so it is accepted and reported. A later change is repaired, as every drift. Repeated changes of the
same object within a short time come from another controller: the pause before each further repair grows, so that two
controllers that disagree do not write without end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from turnout.terms import FIELD_MANAGER
from turnout_operator.plan.drift import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from turnout_operator.plan.drift import Deviation, Path

FREE_REPAIRS: Final = 3
"""Repairs in a row that are made at once: people edit an object more than once."""
FIRST_PAUSE_SECONDS: Final = 10.0
"""Before the next one; each further one doubles it."""
LAST_PAUSE_SECONDS: Final = 600.0
QUIET_SECONDS: Final = 60.0
"""How long an object must have stayed as it was written before a change of it counts as a first one again."""
ADMISSION: Final = "admission"
"""Stands for a field manager where the answer to our own write shows that it was changed on the way in."""
MAX_FIELDS: Final = 5
"""Fields of one object that are named."""
_MAX_NAME: Final = 128


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """What became of the last write to an object. Times are monotonic seconds."""

    content: str
    """Digest of what was written."""
    written_at: float
    accepted: tuple[Deviation, ...] = ()
    """What the API server's answer lacked of it."""
    repairs: int = 0
    """How often in a row the same content was written because another writer had changed it."""
    changed: tuple[Deviation, ...] = ()
    """What was put back last."""
    manager: str = ""
    """Field manager that had changed it; empty: not known."""


def pause(repairs: int) -> float:
    """Return how long after the last write an object may be written once more, after *repairs* in a row."""
    if repairs < FREE_REPAIRS:
        return 0.0
    return min(LAST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(repairs - FREE_REPAIRS, 16))


def quiet_seconds(record: WriteRecord) -> float:
    """Return how long after the last write the object counts as left alone."""
    return max(QUIET_SECONDS, 2.0 * pause(record.repairs))


def left(record: WriteRecord | None, content: str, found: Sequence[Deviation]) -> tuple[Deviation, ...]:
    """Return what of *found* was not made by admission."""
    if record is None or record.content != content:
        return tuple(found)
    return tuple(deviation for deviation in found if deviation not in record.accepted)


def due_in(record: WriteRecord | None, content: str, found: Sequence[Deviation], now: float) -> float | None:
    """Return in how many seconds *content* is to be written, given how the object differs from it now.

    None: not at all, for all that differs was made by admission.
    """
    if not left(record, content, found):
        return None
    if record is None or record.content != content or now - record.written_at > quiet_seconds(record):
        return 0.0
    return max(0.0, record.written_at + pause(record.repairs) - now)


def written(
    before: WriteRecord | None,
    content: str,
    found: Sequence[Deviation],
    answer: Sequence[Deviation],
    now: float,
    *,
    manager: str = "",
) -> WriteRecord:
    """Return what is known after *content* was written at *now*.

    *found* is how the object differed from it before, *answer* how the API server's answer did.
    """
    fresh = WriteRecord(content, now, tuple(answer))
    if before is None or before.content != content:
        return fresh
    lasted = now - before.written_at > quiet_seconds(before)
    return replace(
        fresh,
        repairs=1 if lasted else before.repairs + 1,
        changed=left(before, content, found),
        manager=manager or before.manager,
    )


def is_contested(record: WriteRecord, now: float) -> bool:
    """Return whether another writer changes the object again and again."""
    return record.repairs >= FREE_REPAIRS and now - record.written_at <= quiet_seconds(record)


def sentences(what: str, record: WriteRecord, now: float) -> tuple[str, ...]:
    """Return what a person should know about the object called *what*; empty where its writes last."""
    said = []
    accepted = [item for item in record.accepted if item.path and not _is_omitted(item)]
    if accepted:
        fields = "; ".join(
            f"{item.field} is {shown(item.live)}, not {shown(item.wanted)}" for item in accepted[:MAX_FIELDS]
        )
        said.append(f"{what}: changed on admission and left so: {fields}{_more(accepted)}")
    if is_contested(record, now):
        # Without values, which may be others each time: the sentence is news once.
        fields = ", ".join(sorted({item.field for item in record.changed})[:MAX_FIELDS])
        writer = f'field manager "{record.manager[:_MAX_NAME]}"' if record.manager else "another writer"
        writer = ADMISSION if record.manager == ADMISSION else writer
        said.append(
            f"{what}: {writer} changes {fields or 'it'} again and again; it is put back ever more rarely"
        )
    return tuple(said)


def manager_of(managed: Iterable[Mapping[str, Any]], changed: Iterable[Deviation]) -> str:
    """Return the field manager that wrote one of the *changed* fields last, by ``metadata.managedFields``.

    Empty where none but this operator did.
    """
    paths = [item.path for item in changed]
    found = [
        (str(entry.get("time") or ""), str(entry.get("manager") or ""))
        for entry in managed
        if entry.get("manager") != FIELD_MANAGER
        and any(_covers(entry.get("fieldsV1") or {}, path) for path in paths if path)
    ]
    return max(found)[1] if found else ""


def _covers(fields: Mapping[str, Any], path: Path) -> bool:
    """Return whether a tree of ``fieldsV1`` has *path*, a part of it that is owned whole, or something below it."""
    if not path:
        return True
    head, rest = path[0], path[1:]
    if not head.startswith("["):
        child = fields.get(f"f:{head}")
        return child is not None and (not child or _covers(child, rest))
    key, _, value = head[1:-1].partition("=")
    for name, child in fields.items():
        if not name.startswith("k:"):
            continue
        try:
            item = json.loads(name[2:])
        except ValueError:
            continue
        # Ports are keyed by their number: then which of them it is cannot be seen.
        if str(item.get(key, value)) == value and (not child or _covers(child, rest)):
            return True
    return False


def _is_omitted(item: Deviation) -> bool:
    """Whether the API server only leaves out a value that means the same when it is left out."""
    return item.live is None and item.wanted in (False, 0)


def _more(items: Sequence[Deviation]) -> str:
    return f"; and {len(items) - MAX_FIELDS} more" if len(items) > MAX_FIELDS else ""
