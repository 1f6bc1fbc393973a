"""W3C Trace Context (the recommendation of 2021): what of a client's trace fields is passed on to workers.

The router takes no part in a trace. It passes a good `traceparent` on as it came, and `tracestate` with it; what does not
keep to the grammar is left out, as if it had not been sent, so that no worker has to parse unchecked text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from turnout_router.http1.http import Fields

PARENT: Final = b"traceparent"
STATE: Final = b"tracestate"

_PARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_PARENT_BYTES: Final = 55
_LATER_PARENT: Final = re.compile(rb"-[\x21-\x7e]*")
"""What versions after 00 may put behind the four parts that all of them begin with."""
_LONGEST_PARENT: Final = 256
_MEMBER: Final = re.compile(
    rb"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    rb"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_MOST_MEMBERS: Final = 32
_LONGEST_STATE: Final = 2048


def passed_on(fields: Fields) -> Fields:
    """Return what of the trace *fields*, in the order in which they came, workers are sent: both, the first, or nothing."""
    parents = [value for name, value in fields if name == PARENT]
    if len(parents) != 1 or not _is_parent(parents[0]):
        return ()
    parent = (PARENT, parents[0])
    state = b",".join([value for name, value in fields if name == STATE])
    return (parent, (STATE, state)) if _is_state(state) else (parent,)


def _is_parent(value: bytes) -> bool:
    if len(value) > _LONGEST_PARENT or not _PARENT.fullmatch(value[:_PARENT_BYTES]):
        return False
    rest = value[_PARENT_BYTES:]
    return not rest or (not value.startswith(b"00") and _LATER_PARENT.fullmatch(rest) is not None)


def _is_state(value: bytes) -> bool:
    if len(value) > _LONGEST_STATE:
        return False
    keys = []
    for member in value.split(b","):
        entry = member.strip(b" \t")
        if entry:  # empty ones are allowed
            match = _MEMBER.fullmatch(entry)
            if match is None:
                return False
            keys.append(match[1])
    return 0 < len(keys) <= _MOST_MEMBERS and len(set(keys)) == len(keys)
