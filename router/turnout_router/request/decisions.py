"""The decisions about recent requests, for people: a ring, bounded in requests and in figures.

A request costs a few appends here; sentences and tables are made when they are read. A client may use one id for
several requests: then the last of them is found.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing import Backend, WorkerPair
    from turnout.routing.reason import Phase
    from turnout_router.errors import UpstreamError
    from turnout_router.outcome import Outcome, TokenUsage

MAX_DECISIONS: Final = 1000
MAX_FIGURES: Final = 40_000
"""Costs of backends kept in all, some 200 bytes each: 8 MB."""
MAX_SENTENCE: Final = 2000
"""Characters of the reason in a header field."""


@mypyc_attr(acyclic=True)
class Chosen:
    """A choice without the figures that it was made from: only its description is kept."""

    __slots__ = ("at", "decode", "local", "prefill", "reason")

    def __init__(self, at: float, pair: WorkerPair) -> None:
        self.at: Final = at
        self.decode: Final = pair.decode
        self.prefill: Final = pair.prefill
        self.local: Final = pair.local_reason
        self.reason: Final = pair.reason


@mypyc_attr(acyclic=True)
class Failed:
    """A worker failed its phase of a request."""

    __slots__ = ("at", "backend", "fault", "message", "phase")

    def __init__(self, at: float, phase: Phase, backend: Backend, fault: str, message: str) -> None:
        self.at: Final = at
        self.phase: Final = phase
        self.backend: Final = backend
        self.fault: Final = fault
        self.message: Final = message


@mypyc_attr(acyclic=True)
class RouteDecision:
    """One request's way. Times are on the router's clock; tokens are estimates; what was used stands in `outcome`.

    `weight` is about how many figures it holds.
    """

    __slots__ = (
        "began",
        "deployment",
        "expected_output_tokens",
        "held_seconds",
        "id",
        "model",
        "outcome",
        "path",
        "prefilled_at",
        "prompt_tokens",
        "steps",
        "stream",
        "weight",
    )

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - what it is called everywhere else
        path: str,
        model: str,
        deployment: str,
        stream: bool,
        prompt_tokens: int,
        expected_output_tokens: int,
        began: float,
    ) -> None:
        self.id: Final = id
        self.path: Final = path
        self.model: Final = model
        self.deployment: Final = deployment
        self.stream: Final = stream
        self.prompt_tokens: Final = prompt_tokens
        self.expected_output_tokens: Final = expected_output_tokens
        self.began: Final = began
        self.steps: list[Chosen | Failed] = []
        self.held_seconds = 0.0
        """How long it stood in line until a worker could begin with it."""
        self.prefilled_at: float | None = None
        self.outcome: Outcome | None = None
        """How it ended, None while it is under way."""
        self.weight = 0

    def ended(self, outcome: Outcome) -> None:
        """Note how it ended."""
        self.outcome = outcome

    def failed(self, at: float, phase: Phase, backend: Backend, error: UpstreamError) -> None:
        """Note a failure; of the error only its words are kept, for it would keep its frames."""
        self.steps.append(Failed(at, phase, backend, error.fault, str(error)))

    @property
    def sentence(self) -> str:
        """The last choice's reason, and the failures before it."""
        parts, failures = "", []
        for step in self.steps:
            if isinstance(step, Failed):
                failures.append(f"{step.phase} on {step.backend.id} failed before ({step.fault})")
            elif step.reason is not None:
                parts = step.reason.sentence
        held = (
            f"held {self.held_seconds:.3f} s until a worker could begin with it" if self.held_seconds else ""
        )
        return "; ".join([*filter(None, [parts, held]), *failures]) or "no worker could be chosen"

    def header(self) -> bytes:
        """Return the sentence as the value of a header field: one line of ASCII."""
        return " ".join(self.sentence.split())[:MAX_SENTENCE].encode("ascii", "replace")


class Decisions:
    """The ring. *clock* is the router's, *wall* Unix time in seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        wall: Callable[[], float],
        *,
        most: int = MAX_DECISIONS,
        most_figures: int = MAX_FIGURES,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._most = most
        self._most_figures = most_figures
        self._figures = 0
        self._kept: OrderedDict[str, RouteDecision] = OrderedDict()

    def begin(self, decision: RouteDecision) -> None:
        """Keep *decision*, which has just begun, and forget what is too old."""
        before = self._kept.pop(decision.id, None)
        if before is not None:
            self._figures -= before.weight
        self._kept[decision.id] = decision
        self._figures += decision.weight
        self._shrink()

    def chosen(self, decision: RouteDecision, pair: WorkerPair) -> None:
        """Note a choice."""
        reason = pair.reason
        decision.steps.append(Chosen(self._clock(), pair))
        weight = 1 if reason is None else reason.weight
        decision.weight += weight
        if self._kept.get(decision.id) is decision:
            self._figures += weight
            self._shrink()

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._kept)

    def find(self, request_id: str) -> dict[str, Any] | None:
        """Return all that is known of one request, None where it is not kept (any more)."""
        decision = self._kept.get(request_id)
        return None if decision is None else self._details(decision)

    def recent(self, most: int, deployment: str | None = None) -> list[dict[str, Any]]:
        """Return the last *most* decisions in short, newest first."""
        wanted = (d for d in reversed(self._kept.values()) if deployment in {None, d.deployment})
        return [self._summary(decision) for decision, _ in zip(wanted, range(most), strict=False)]

    def _shrink(self) -> None:
        while len(self._kept) > self._most or (self._figures > self._most_figures and len(self._kept) > 1):
            _, oldest = self._kept.popitem(last=False)
            self._figures -= oldest.weight

    def _summary(self, decision: RouteDecision) -> dict[str, Any]:
        began = self._wall() - (self._clock() - decision.began)
        outcome = decision.outcome
        return {
            "id": decision.id,
            "at": datetime.fromtimestamp(began, UTC).isoformat(timespec="milliseconds"),
            "path": decision.path,
            "model": decision.model,
            "deployment": decision.deployment,
            "status": None if outcome is None else outcome.status,
            "ending": None if outcome is None else outcome.ending,
            "seconds": None if outcome is None else round(outcome.ended_at - decision.began, 4),
            "sentence": decision.sentence,
        }

    def _details(self, decision: RouteDecision) -> dict[str, Any]:
        def after(at: float | None) -> float | None:
            return None if at is None else round(at - decision.began, 4)

        outcome = decision.outcome
        return {
            **self._summary(decision),
            "stream": decision.stream,
            "estimated": {
                "promptTokens": decision.prompt_tokens,
                "outputTokens": decision.expected_output_tokens,
            },
            "retries": None if outcome is None else outcome.retries,
            "usage": None if outcome is None else _usage(outcome.usage),
            "heldSeconds": round(decision.held_seconds, 4),
            "prefilledAfterSeconds": after(decision.prefilled_at),
            "firstTokenAfterSeconds": after(None if outcome is None else outcome.first_token_at),
            "steps": [_step(step, after(step.at)) for step in decision.steps],
        }


def _usage(usage: TokenUsage) -> dict[str, Any]:
    return {
        "promptTokens": usage.prompt,
        "cachedTokens": usage.cached,
        "outputTokens": usage.output,
        "countedBy": usage.counted_by,
    }


def _step(step: Chosen | Failed, seconds: float | None) -> dict[str, Any]:
    if isinstance(step, Failed):
        return {
            "kind": "failed",
            "afterSeconds": seconds,
            "role": step.phase,
            "backend": step.backend.id,
            "fault": step.fault,
            "message": step.message,
        }
    reason = step.reason
    return {
        "kind": "chosen",
        "afterSeconds": seconds,
        "decode": step.decode.id,
        "prefill": None if step.prefill is None else step.prefill.id,
        "local": step.local,
        "sentence": "" if reason is None else reason.sentence,
        "candidates": [
            {
                "backend": candidate.backend,
                "role": candidate.phase,
                "chosen": candidate.chosen,
                "figures": dict(candidate.figures),
            }
            for candidate in (() if reason is None else reason.candidates())
        ],
    }
