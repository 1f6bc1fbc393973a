"""The choice of a request's workers: names, candidates, load, health, retries, objectives. All pure."""

from turnout.routing.by_load import Load, LoadChooser
from turnout.routing.candidates import UNCONSTRAINED, Constraints, LocalReason
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
    after_trial,
    may_use,
    needs_trial,
    on_pick,
    on_trial,
    usable,
)
from turnout.routing.objectives import Timing, is_good, mean_inter_token_seconds
from turnout.routing.pair import Chooser, WorkerPair
from turnout.routing.prompt import estimate_prompt_tokens, needs_local_prefill
from turnout.routing.retries import RetryBudget, after_request, after_retry, may_retry

__all__ = [
    "HEALTHY",
    "UNCONSTRAINED",
    "Backend",
    "Chooser",
    "Constraints",
    "DeploymentRoute",
    "Fleet",
    "Grant",
    "Health",
    "HealthPolicy",
    "KvEventPorts",
    "Load",
    "LoadChooser",
    "LocalReason",
    "NamedRoute",
    "RetryBudget",
    "Served",
    "Timing",
    "WorkerPair",
    "after_check",
    "after_failure",
    "after_request",
    "after_retry",
    "after_success",
    "after_trial",
    "build_fleet",
    "choose_target",
    "estimate_prompt_tokens",
    "in_service",
    "is_good",
    "may_retry",
    "may_use",
    "mean_inter_token_seconds",
    "needs_local_prefill",
    "needs_trial",
    "on_pick",
    "on_trial",
    "resolve",
    "usable",
]
