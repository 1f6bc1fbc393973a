"""One request on its way through an engine."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from turnout.simulation.kv import Holding
from turnout.simulation.request import Finished

if TYPE_CHECKING:
    from turnout.simulation.request import EngineRequest, FinishReason


class State(Enum):
    """Where a request stands."""

    WAITING = auto()
    """In the queue, without blocks."""
    FETCHING = auto()
    """Has its blocks; their content comes from a prefill worker."""
    READY = auto()
    """The content has arrived; it joins the next batch."""
    RUNNING = auto()
    """In the batch."""


class EngineSequence:
    """An engine's state of one request."""

    __slots__ = (
        "arrived_at",
        "cached",
        "computed",
        "external",
        "first_token_at",
        "generated",
        "holding",
        "request",
        "scheduled_at",
        "state",
        "target",
    )

    def __init__(self, request: EngineRequest, now: float) -> None:
        self.request = request
        self.arrived_at = now
        self.state = State.WAITING
        self.holding = Holding()
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.generated = 0
        """Output tokens so far."""
        self.computed = 0
        """Tokens with KV, as far as the prefill has come."""
        self.target = request.prompt_tokens
        """Tokens that must be computed before the next one can be drawn: the prompt, and after a preemption what
        had been generated too."""
        self.cached = 0
        """Prompt tokens found in the prefix cache at the first admission."""
        self.external = 0
        """Prompt tokens whose KV came from a prefill worker."""

    @property
    def decoding(self) -> bool:
        """Whether its prefill is complete."""
        return self.computed >= self.target

    @property
    def wants_fetch(self) -> bool:
        """Whether its KV is still with a prefill worker. After a preemption it is computed here."""
        return self.request.remote_tokens > 0 and self.scheduled_at is None

    def finished(self, at: float, reason: FinishReason, pinned_until: float | None) -> Finished:
        """Return the event of its end."""
        request = self.request
        return Finished(
            at=at,
            id=request.id,
            reason=reason,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=self.cached + self.external,
            output_tokens=self.generated,
            arrived_at=self.arrived_at,
            scheduled_at=self.scheduled_at,
            first_token_at=self.first_token_at,
            pinned_until=pinned_until,
        )
