"""Traffic traces: requests with arrival, lengths and prefix blocks; read, windowed, clipped, spread out.

The format is Mooncake's (kvcache-ai/Mooncake, FAST'25), one JSON object a line: `timestamp` in milliseconds,
`input_length` and `output_length` in tokens, `hash_ids` naming the prompt's blocks of 512 tokens, the last of
them possibly partial. Two prompts that begin with the same ids begin with the same tokens.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BLOCK_TOKENS: Final = 512
"""Tokens of one prefix block in Mooncake's traces."""

QUANTUM_SECONDS: Final = 3.0
"""Mooncake's timestamps are rounded down to multiples of this."""

MAX_REQUESTS: Final = 1_000_000
"""Longest trace that is read: about 2 GB as objects."""


class TraceError(Exception):
    """A trace cannot be read. The message names the file, the line and what was expected there."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: when it arrives, how long it is, which prefix blocks its prompt is made of."""

    arrival_seconds: float
    """Since the trace's beginning."""
    input_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...]
    """At least as many blocks of `BLOCK_TOKENS` as the prompt needs; the last may be used in part."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival, and what they are."""

    name: str
    """Description of the traffic for people: file name or generator, and what was done to it."""
    requests: tuple[TraceRequest, ...]

    @property
    def duration_seconds(self) -> float:
        """Arrival of the last request; 0 for a trace without any."""
        return self.requests[-1].arrival_seconds if self.requests else 0.0


def read_trace(path: Path) -> Trace:
    """Read a trace in Mooncake's format.

    Raise TraceError, naming the line, where the file is missing, empty or has another form.
    """
    requests: list[TraceRequest] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                if len(requests) >= MAX_REQUESTS:
                    raise TraceError(f"{path}: more than {MAX_REQUESTS:,} requests; cut the file into parts")
                try:
                    requests.append(_request(line))
                except ValueError as error:
                    raise TraceError(f"{path}, line {number}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    if not requests:
        raise TraceError(
            f"{path} holds no request: expected one JSON object a line in Mooncake's trace format"
        )
    return Trace(path.name, _in_order(requests))


def window(trace: Trace, *, duration_seconds: float, offset_seconds: float = 0.0) -> Trace:
    """Return the part of *trace* that arrives within *duration_seconds* from *offset_seconds*, rebased to 0."""
    end = offset_seconds + duration_seconds
    return replace(
        trace,
        requests=tuple(
            replace(request, arrival_seconds=request.arrival_seconds - offset_seconds)
            for request in trace.requests
            if offset_seconds <= request.arrival_seconds < end
        ),
    )


def spread(trace: Trace, *, seed: int, quantum_seconds: float = QUANTUM_SECONDS) -> Trace:
    """Spread arrivals that were rounded down to *quantum_seconds* evenly over it, by *seed*.

    Replayed as they stand, some ten requests would arrive in one instant every three seconds: a burst that
    the rounding made, not the users.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible shuffle, no secret
    return replace(
        trace,
        requests=_in_order(
            replace(request, arrival_seconds=request.arrival_seconds + rng.random() * quantum_seconds)
            for request in trace.requests
        ),
    )


def clip(trace: Trace, *, max_tokens: int) -> tuple[Trace, int]:
    """Shorten prompts until prompt and output fit *max_tokens*; return how many were shortened, too.

    The output keeps its length up to half of *max_tokens*, and the prompt gives way from its end, as chat
    front ends do with documents that are too long.
    """
    if max_tokens < 2:  # noqa: PLR2004 - one token in, one out
        raise ValueError(f"a request has at least one token in and one out: {max_tokens} cannot hold them")
    clipped = 0
    requests = []
    for request in trace.requests:
        output = min(request.output_tokens, max_tokens // 2)
        shorter = replace(
            request, input_tokens=min(request.input_tokens, max_tokens - output), output_tokens=output
        )
        clipped += (shorter.input_tokens, shorter.output_tokens) != (
            request.input_tokens,
            request.output_tokens,
        )
        blocks = -(-shorter.input_tokens // BLOCK_TOKENS)
        requests.append(replace(shorter, block_ids=shorter.block_ids[:blocks]))
    return replace(trace, requests=tuple(requests)), clipped


def _in_order(requests: Iterable[TraceRequest]) -> tuple[TraceRequest, ...]:
    return tuple(sorted(requests, key=lambda request: request.arrival_seconds))


def _request(line: str) -> TraceRequest:
    """Parse one line. Raise ValueError that says what was expected."""
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON object: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError("expected a JSON object with timestamp, input_length, output_length and hash_ids")  # noqa: TRY004 - the reader maps one kind
    timestamp = _whole(raw, "timestamp", "milliseconds since the beginning", minimum=0)
    input_tokens = _whole(raw, "input_length", "tokens of the prompt", minimum=1)
    output_tokens = _whole(raw, "output_length", "tokens of the answer", minimum=1)
    ids = raw.get("hash_ids")
    if not isinstance(ids, list) or not all(type(each) is int and each >= 0 for each in ids):
        raise ValueError(f"hash_ids must be a list of whole numbers, one per {BLOCK_TOKENS} prompt tokens")
    needed = -(-input_tokens // BLOCK_TOKENS)
    if len(ids) != needed:
        raise ValueError(
            f"input_length {input_tokens} takes {needed} blocks of {BLOCK_TOKENS} tokens, hash_ids names {len(ids)}"
        )
    return TraceRequest(timestamp / 1000, input_tokens, output_tokens, tuple(ids))


def _whole(raw: dict[str, Any], field: str, meaning: str, *, minimum: int) -> int:
    value = raw.get(field)
    if type(value) is not int or value < minimum:
        raise ValueError(f"{field} must be a whole number of at least {minimum} ({meaning}), not {value!r}")
    return value
