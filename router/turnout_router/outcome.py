"""The outcome of a request: one value, made once for every request, however it ends.

Metrics, goodput, decisions and claims read it, and nothing else of a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from turnout_router.errors import UpstreamFault

Ending = Literal["finished", "refused", "failed", "broken", "client_left", "deadline", "shed", "shutdown"]
"""`finished`: the client has a whole answer. `refused`: 4xx, the request is wrong. `failed`: 5xx before anything of an
answer was sent. `broken`: the answer broke off after its beginning. `client_left`: nothing wanted the answer any more.
`deadline`: the client's own time was over. `shed`: a claim was not granted. `shutdown`: the router's grace period was over."""

CountedBy = Literal["engine", "router"]


@mypyc_attr(acyclic=True)
class TokenUsage:
    """Tokens that a request has used.

    `cached` is the part of `prompt` that the engine had in its cache, None where it did not say.
    `counted_by`: "engine" if the answer has usage. Else "router": `prompt` is its estimate from the time at which a worker
    was sent the request (0 before), `output` the number of events with text that have come.
    """

    __slots__ = ("cached", "counted_by", "output", "prompt")

    def __init__(self, prompt: int, output: int, cached: int | None, counted_by: CountedBy) -> None:
        self.prompt: Final = prompt
        self.output: Final = output
        self.cached: Final = cached
        self.counted_by: Final = counted_by


@mypyc_attr(acyclic=True)
class Outcome:
    """How a request ended. Times are on the router's clock.

    `status` is the HTTP status that counts for it: 499 where the client left, 502 where its answer broke off. `fault` is
    the last failure of a worker, if there was one. `first_token_at` and `last_token_at` are known of streams alone.
    """

    __slots__ = (
        "began",
        "ended_at",
        "ending",
        "fault",
        "first_token_at",
        "last_token_at",
        "retries",
        "status",
        "usage",
    )

    def __init__(  # noqa: PLR0917 - made once for every request
        self,
        ending: Ending,
        status: int,
        usage: TokenUsage,
        began: float,
        ended_at: float,
        first_token_at: float | None,
        last_token_at: float,
        retries: int,
        fault: UpstreamFault | None,
    ) -> None:
        self.ending: Final = ending
        self.status: Final = status
        self.usage: Final = usage
        self.began: Final = began
        self.ended_at: Final = ended_at
        self.first_token_at: Final = first_token_at
        self.last_token_at: Final = last_token_at
        self.retries: Final = retries
        self.fault: Final = fault
