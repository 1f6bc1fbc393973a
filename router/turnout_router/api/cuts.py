"""Whole answers that say that they are not whole: vLLM ends with 200 what it aborts.

`abort` and `error` are engines' reasons for the end of a choice, of which OpenAI's API has neither; a message without a
`stop_reason` has not ended; a response says so in its status.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from turnout_router.api.untrusted import loads

_FINISH: Final = b'"finish_reason"'
_CUT_CHOICE: Final = re.compile(rb'"finish_reason"\s*:\s*"(?:abort|error)"')
_STOP: Final = b'"stop_reason"'
_NO_STOP: Final = re.compile(rb'"stop_reason"\s*:\s*null')
_STATUSES: Final = frozenset({"cancelled", "failed", "in_progress", "queued"})
_UNFINISHED: Final = tuple(b'"%b"' % status.encode() for status in sorted(_STATUSES))


def choices_are_cut(body: bytes, several: bool) -> bool:  # noqa: FBT001 - called through a value of this type
    """Return whether a completion was cut; *several*: it may have more than one choice. Names in a text have escaped quotes."""
    if several:
        return _CUT_CHOICE.search(body) is not None
    at = body.rfind(_FINISH)
    return at >= 0 and _CUT_CHOICE.match(body, at) is not None


def message_is_cut(body: bytes, _several: bool) -> bool:  # noqa: FBT001 - as above
    """Return whether an answer of the Messages API was cut."""
    at = body.rfind(_STOP)
    return at >= 0 and _NO_STOP.match(body, at) is not None


def response_is_cut(body: bytes, _several: bool) -> bool:  # noqa: FBT001 - as above
    """Return whether an answer of the Responses API was cut, or has failed."""
    if not any(body.find(mark) >= 0 for mark in _UNFINISHED):
        return False
    try:
        value = loads(body)
    except orjson.JSONDecodeError:
        return False  # a part of an answer
    return isinstance(value, dict) and value.get("status") in tuple(_STATUSES)


def nothing_is_cut(_body: bytes, _several: bool) -> bool:  # noqa: FBT001 - as above
    """Return False: what is computed in one step is whole or an error."""
    return False
