"""What a request that was served adds to the counts: tokens, latencies, and whether it met its objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.routing import Timing, is_good, mean_inter_token_seconds

if TYPE_CHECKING:
    from turnout.routing import DeploymentRoute
    from turnout_router.decisions import Decision
    from turnout_router.metrics import DeploymentMetrics
    from turnout_router.usage import Tap, Usage


def account(  # noqa: PLR0917 - called once for every request
    metrics: DeploymentMetrics,
    decision: Decision,
    route: DeploymentRoute,
    now: float,
    tap: Tap | None,
    usage: Usage,
) -> None:
    """Count a request that ended well at *now*, and note in *decision* what it told. *tap* read its stream, if it was one."""
    began, scale = decision.began, route.time_scale
    duration = (now - began) * scale
    first = inter = None
    if tap is not None and tap.first_token_at is not None:
        decision.first_token_at = tap.first_token_at
        first = (tap.first_token_at - began) * scale
        inter = mean_inter_token_seconds(tap.first_token_at * scale, tap.last_token_at * scale, usage.output)
        metrics.first_token.observe(first)
        if inter is not None:
            metrics.inter_token.observe(inter)
    decision.usage = usage.prompt, usage.output
    metrics.duration.observe(duration)
    metrics.prompt_tokens += usage.prompt
    metrics.output_tokens += usage.output
    metrics.finished += 1
    if is_good(Timing(duration, usage.output, first, inter), route):
        metrics.good += 1
