"""The simulator's interface of a routing policy: it receives what a router could know, and returns the engine that serves a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as a router sees it: the length of its answer is not known yet."""

    number: int
    """Unique within a replay."""
    at: float
    """Seconds of virtual time."""
    prompt_tokens: int
    blocks: tuple[int, ...]
    """Chain hashes of its full prefix blocks."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Who serves: engine numbers. Without `prefill`, `decode` computes the prompt itself."""

    decode: int
    prefill: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What a scrape of one engine's metrics says."""

    running: int
    waiting: int
    kv_usage: float
    """0 to 1."""
    queried_tokens: int = 0
    """Prompt tokens of all requests ever admitted."""
    hit_tokens: int = 0
    """Of these, those found in the prefix cache."""
    computed_tokens: int = 0
    """Prompt tokens computed for requests whose prefill is complete."""


class EnginePolicy(Protocol):
    """Chooses an engine out of a pool of ``0 .. N-1``; one object per router and run."""

    name: str
    scrape_seconds: float | None
    """How often it scrapes metrics; None: never."""

    def choose(self, arrival: Arrival) -> int | None:
        """Return the engine for *arrival*. The policy counts it as sent. None, from a `HoldingPolicy`: it waits."""
        ...

    def first_token(self, number: int, now: float) -> None:
        """Take note: the prompt of request *number* has been computed."""
        ...

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:
        """Request *number* has ended; *cached_tokens* and *output_tokens* as its usage says."""
        ...

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:
        """Take note: a scrape of all engines has come in."""
        ...


class PairPolicy(Protocol):
    """Chooses a prefill and a decode engine, or one that does both; one object per router and run."""

    name: str
    scrape_seconds: float | None

    def place(self, arrival: Arrival) -> Placement | None:
        """Return the engines that serve *arrival*, prefill engines numbered from 0, decode engines from 0. None: as `EnginePolicy`."""
        ...

    def prefilled(self, number: int, now: float, cached_tokens: int) -> None:
        """Take note: the prefill engine of request *number* is done with it; *cached_tokens* were not computed."""
        ...

    def first_token(self, number: int, now: float) -> None:
        """Take note: the client of request *number* has its first token."""
        ...

    def finished(self, number: int, now: float, cached_tokens: int, output_tokens: int) -> None:
        """Request *number* has ended on its decode engine."""
        ...

    def scraped(self, now: float, samples: Sequence[Sample]) -> None:
        """Take note: a scrape has come in: prefill engines first, then decode engines."""
        ...


@runtime_checkable
class HoldingPolicy(EnginePolicy, Protocol):
    """A policy whose router holds requests back. It is asked after each arrival and after each report on an engine."""

    def released(self, now: float) -> Iterable[tuple[int, int]]:
        """Return the requests that wait no longer, by number, and the engine of each. They count as sent."""
        ...


@runtime_checkable
class HoldingPairPolicy(PairPolicy, Protocol):
    """The same for pairs."""

    def released(self, now: float) -> Iterable[tuple[int, Placement]]:
        """Return the requests that wait no longer, by number, and the engines that serve each. They count as sent."""
        ...
