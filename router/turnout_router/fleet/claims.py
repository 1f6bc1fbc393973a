"""What a request needs of a deployment before it is served, and gives back when it has ended, however it has ended.

Admission and the dispatch queue are claims. A deployment's claims are acquired in their order and released in the opposite
one, each with the request's `Outcome`. A claim that is acquired is released exactly once; one that is not is never released.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout.routing import WorkerPair
    from turnout.routing.admission import Tier
    from turnout.routing.load_tracker import Prompt
    from turnout_router.outcome import Outcome


class Claimant(ABC):
    """A request, as claims see it.

    `tokens` are those of its prompt and of the answer that is expected; `tier` is its priority; `pair` are the workers that
    would serve it, None before they are chosen; `queued_seconds` is how long it has waited for a worker that can start it.
    """

    __slots__ = ("pair", "prompt", "queued_seconds", "tier", "tokens")

    def __init__(self, tokens: int, tier: Tier, prompt: Prompt) -> None:
        self.tokens = tokens
        self.tier = tier
        self.prompt = prompt
        self.pair: WorkerPair | None = None
        self.queued_seconds = 0.0

    @abstractmethod
    def choose(self) -> WorkerPair | None:
        """Return the workers that would serve it now, None where none can."""


class Claim(ABC):
    """One thing that requests need. A base class: mypyc calls its methods faster than a protocol's."""

    @abstractmethod
    def try_acquire(self, request: Claimant) -> bool:
        """Grant it at once, or return False: see `acquire`."""

    @abstractmethod
    async def acquire(self, request: Claimant) -> None:
        """Return once it is granted. Raise ApiError where it will not be: that is the answer to the client."""

    @abstractmethod
    def release(self, request: Claimant, outcome: Outcome) -> None:
        """Take it back from a request that has ended with *outcome*."""
