"""Where a request goes, and why: names, pairs of backends, health, retries, objectives. All pure."""

from turnout.routing.fleet import (
    Backend,
    DeploymentRoute,
    Fleet,
    Grant,
    KvEventPorts,
    NamedRoute,
    Served,
    build_fleet,
    choose_target,
    in_service,
    resolve,
)
from turnout.routing.health import (
    HEALTHY,
    Health,
    HealthPolicy,
    after_check,
    after_failure,
    after_success,
    may_use,
    on_pick,
    on_trial,
    usable,
)
from turnout.routing.objectives import Timing, is_good, mean_inter_token_seconds
from turnout.routing.pick import Choice, Load, pick_pair
from turnout.routing.prompt import estimate_prompt_tokens, needs_local_prefill
from turnout.routing.retries import RetryBudget, after_request, after_retry, may_retry

__all__ = [
    "HEALTHY",
    "Backend",
    "Choice",
    "DeploymentRoute",
    "Fleet",
    "Grant",
    "Health",
    "HealthPolicy",
    "KvEventPorts",
    "Load",
    "NamedRoute",
    "RetryBudget",
    "Served",
    "Timing",
    "after_check",
    "after_failure",
    "after_request",
    "after_retry",
    "after_success",
    "build_fleet",
    "choose_target",
    "estimate_prompt_tokens",
    "in_service",
    "is_good",
    "may_retry",
    "may_use",
    "mean_inter_token_seconds",
    "needs_local_prefill",
    "on_pick",
    "on_trial",
    "pick_pair",
    "resolve",
    "usable",
]
