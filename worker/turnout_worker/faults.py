"""Faults to order, for tests: ``POST /admin/faults`` with one of these, ``GET`` shows what is set.

- ``{"kind": "slow", "factor": 5}``: every iteration takes so many times as long
- ``{"kind": "error", "status": 500, "count": 3}``: the next *count* completions are answered with *status*
- ``{"kind": "hang"}``: the engine stands still; requests are taken and nothing comes
- ``{"kind": "crash", "afterTokens": 10}``: the process dies (status 1) once that many more tokens are generated
- ``{"kind": "reset", "afterTokens": 10, "count": 1}``: of the next *count* completions the connection is cut after
  that many tokens
- ``{"kind": "abort", "afterTokens": 10, "count": 1}``: the engine gives up the next *count* completions after that many
  tokens, as it does at SIGTERM without a time-out: their answers end as if they were whole
- ``{"kind": "garbage", "count": 1}``: the next *count* completions are answered with bytes that are not HTTP
- ``{"kind": "none"}``: all of it ends

A fault replaces the one before.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from turnout_worker.errors import BadRequestError

KINDS: Final = ("none", "slow", "error", "hang", "crash", "reset", "abort", "garbage")
GARBAGE: Final = b"\x00\xff<html>this is no HTTP\r\n\r\n"


@dataclass(slots=True)
class Fault:
    """What is wrong with this worker."""

    kind: str = "none"
    factor: float = 1.0
    status: int = 500
    count: int = 1
    """Completions that it still strikes."""
    after_tokens: int = 0

    def strike(self, kind: str) -> bool:
        """Whether a completion that arrives now is struck by a fault of this *kind*; counts it."""
        if self.kind != kind or self.count <= 0:
            return False
        self.count -= 1
        return True

    def body(self) -> bytes:
        """Return it as JSON."""
        values = asdict(self)
        values["afterTokens"] = values.pop("after_tokens")
        return orjson.dumps(values)


def parse_fault(body: bytes) -> Fault:
    """Understand *body*. Raise BadRequestError, saying what is allowed."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("kind") not in KINDS:
        raise BadRequestError(f"kind must be one of {', '.join(KINDS)}", "kind")
    unknown = set(fields) - {"kind", "factor", "status", "count", "afterTokens"}
    if unknown:
        raise BadRequestError(f"unknown fields: {', '.join(sorted(unknown))}")
    return Fault(
        kind=fields["kind"],
        factor=float(_number(fields, "factor", 5, 0.01, 1e6)),
        status=int(_number(fields, "status", 500, 400, 599)),
        count=int(_number(fields, "count", 1, 1, 1e9)),
        after_tokens=int(_number(fields, "afterTokens", 0, 0, 1e9)),
    )


def _number(fields: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequestError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}", name)
    return value
