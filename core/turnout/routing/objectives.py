"""Goodput: whether a request met its deployment's objectives, in the deployment's own seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from turnout.routing.fleet import DeploymentRoute


class Timing:
    """How one request that ran to its end went, in the deployment's seconds.

    `first_token_seconds` and `inter_token_seconds` are None where they could not be seen: an answer that is not
    streamed comes in one piece, and a single token has no successor.
    """

    __slots__ = ("duration_seconds", "first_token_seconds", "inter_token_seconds", "output_tokens")

    def __init__(
        self,
        duration_seconds: float,
        output_tokens: int,
        first_token_seconds: float | None = None,
        inter_token_seconds: float | None = None,
    ) -> None:
        self.duration_seconds: Final = duration_seconds
        self.output_tokens: Final = output_tokens
        self.first_token_seconds: Final = first_token_seconds
        self.inter_token_seconds: Final = inter_token_seconds


def mean_inter_token_seconds(first: float, last: float, output_tokens: int) -> float | None:
    """Return the mean time between tokens: (last - first) / (tokens - 1). None for fewer than two tokens.

    Tokens are those of the usage, never the number of events: a lagging engine puts several into one event.
    """
    if output_tokens <= 1:
        return None
    return max(0.0, last - first) / (output_tokens - 1)


def is_good(timing: Timing, route: DeploymentRoute) -> bool:
    """Return whether *timing* meets both objectives of *route*.

    A streamed request: time to first token and mean inter-token latency, each against its objective. One that is
    not streamed shows neither, so its whole duration is held against what both objectives allow together,
    TTFT + (tokens - 1) * ITL.
    """
    tokens_after_first = max(0, timing.output_tokens - 1)
    if timing.first_token_seconds is None:
        allowed = route.time_to_first_token_seconds + tokens_after_first * route.inter_token_seconds
        return timing.duration_seconds <= allowed
    if timing.first_token_seconds > route.time_to_first_token_seconds:
        return False
    return timing.inter_token_seconds is None or timing.inter_token_seconds <= route.inter_token_seconds
