"""Recording of requests: counts, latencies, goodput, decisions. All that is known of an end comes from its `Outcome`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from turnout.routing import Timing, is_good, mean_inter_token_seconds

if TYPE_CHECKING:
    from turnout.routing import WorkerPair
    from turnout_router.api.openai import Completion
    from turnout_router.fleet.deployment import DeploymentRuntime
    from turnout_router.outcome import Outcome
    from turnout_router.request.decisions import Decisions, RouteDecision

_SERVER_ERROR: Final = 500


class Recorder(ABC):
    """Records what becomes of requests. A base class: mypyc calls its methods faster than a protocol's."""

    __slots__ = ()

    @abstractmethod
    def begun(self, deployment: DeploymentRuntime, completion: Completion, decision: RouteDecision) -> None:
        """Record that a request has begun."""

    @abstractmethod
    def chosen(self, decision: RouteDecision, pair: WorkerPair) -> None:
        """Record the workers of an attempt."""

    @abstractmethod
    def ended(
        self, deployment: DeploymentRuntime, completion: Completion, decision: RouteDecision, outcome: Outcome
    ) -> None:
        """Record how a request has ended."""


class ClientRecorder(Recorder):
    """Records clients' requests in their deployment's metrics and in *decisions*."""

    __slots__ = ("_decisions",)

    def __init__(self, decisions: Decisions) -> None:
        self._decisions: Final = decisions

    def begun(self, deployment: DeploymentRuntime, completion: Completion, decision: RouteDecision) -> None:
        """Record that a request has begun."""
        metrics = deployment.metrics
        if completion.endpoint.serves:
            metrics.arrivals += 1
        metrics.in_flight += 1
        deployment.pay_retry_budget()
        self._decisions.begin(decision)

    def chosen(self, decision: RouteDecision, pair: WorkerPair) -> None:
        """Record the workers of an attempt."""
        self._decisions.chosen(decision, pair)

    def ended(
        self, deployment: DeploymentRuntime, completion: Completion, decision: RouteDecision, outcome: Outcome
    ) -> None:
        """Record how a request has ended."""
        metrics = deployment.metrics
        metrics.in_flight -= 1
        metrics.answered(outcome.status)
        decision.ended(outcome)
        if not completion.endpoint.serves:
            return
        if outcome.ending == "finished":
            _count_finished(deployment, outcome)
        elif outcome.status >= _SERVER_ERROR:
            metrics.finished += 1


class NoRecorder(Recorder):
    """Records nothing: for the router's own requests."""

    __slots__ = ()

    def begun(self, deployment: DeploymentRuntime, completion: Completion, decision: RouteDecision) -> None:
        """Record nothing."""

    def chosen(self, decision: RouteDecision, pair: WorkerPair) -> None:
        """Record nothing."""

    def ended(
        self, deployment: DeploymentRuntime, completion: Completion, decision: RouteDecision, outcome: Outcome
    ) -> None:
        """Record nothing."""


def _count_finished(deployment: DeploymentRuntime, outcome: Outcome) -> None:
    """Count tokens, latencies in the deployment's own time, and whether the request met its objectives."""
    metrics, clock, usage = deployment.metrics, deployment.clock, outcome.usage
    duration = clock.seconds(outcome.ended_at - outcome.began)
    first = inter = None
    if outcome.first_token_at is not None:
        first = clock.seconds(outcome.first_token_at - outcome.began)
        inter = mean_inter_token_seconds(
            clock.seconds(outcome.first_token_at), clock.seconds(outcome.last_token_at), usage.output
        )
        metrics.first_token.observe(first)
        if inter is not None:
            metrics.inter_token.observe(inter)
    metrics.duration.observe(duration)
    metrics.prompt_tokens += usage.prompt
    metrics.output_tokens += usage.output
    metrics.finished += 1
    if is_good(Timing(duration, usage.output, first, inter), deployment.route):
        metrics.good += 1
