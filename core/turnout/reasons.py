"""Every reason that a condition or an Event of Turnout's resources gives, by what it is about.

docs/troubleshooting.md has a section for each reason of a condition; a test holds it to that.
"""

from __future__ import annotations

from typing import Literal

ReadyReason = Literal[
    "Serves",
    "NameConflict",
    "NoReadyWorkers",
    "ModelDoesNotFit",
    "HostPathNotAllowed",
    "ServedNameConflict",
    "InvalidSpec",
    "ChildNameTaken",
    "ApplyFailed",
]
"""Of the condition Ready of an LLMDeployment."""
PoolReason = Literal["AllReady", "SomeReady", "NoneReady"]
"""Of PrefillReady and DecodeReady."""
FitReason = Literal[
    "Fits", "UnknownModel", "UnknownAccelerator", "UnknownMemory", "TensorParallelism", "TooLittleMemory"
]
"""Of ModelFits."""
ObjectivesReason = Literal["ObjectivesMet", "ObjectivesMissed", "NoTraffic"]
"""Of SLOMet."""
ScalingReason = Literal[
    "NotLimited",
    "Advisory",
    "MaxReplicas",
    "MaxAccelerators",
    "PrefillToDecode",
    "Unschedulable",
    "Infeasible",
]
"""Of ScalingLimited."""
SourceReason = Literal[
    "Unauthorized",
    "Gated",
    "NotFound",
    "RevisionNotFound",
    "Unreachable",
    "NothingMatched",
    "NotAModel",
    "NoSpace",
    "ChecksumMismatch",
    "CacheNotWritable",
    "CacheLocked",
]
"""Why the files of a model cannot be had: what the last line of a worker or of a prefetch begins with."""
CacheReason = Literal["Copied", "Copying", "PrefetchFails"] | SourceReason
"""Of ModelCached."""
OverrideReason = Literal["OthersInsist"]
"""Of FieldsOverridden."""
RouteReason = Literal[
    "TargetsExist", "DeploymentNotFound", "NameConflict", "ServedNameConflict", "InvalidSpec"
]
"""Of the condition Ready of an LLMRoute."""
BudgetReason = Literal["KeysValid", "KeyConflict", "ScopeNotAllowed", "InvalidSpec"]
"""Of the condition Ready of a TokenBudget."""

Reason = (
    ReadyReason
    | PoolReason
    | FitReason
    | ObjectivesReason
    | ScalingReason
    | CacheReason
    | OverrideReason
    | RouteReason
    | BudgetReason
)
"""Of any condition."""

EventReason = Literal[
    "Ready",
    "NotReady",
    "ScaledUp",
    "ScaledDown",
    "Rebalanced",
    "ScalingAdvised",
    "RolloutStarted",
    "RolloutFinished",
    "NameConflict",
    "ChildNameTaken",
    "FieldsOverridden",
    "StandingStill",
    "TensorParallelism",
    "TooLittleMemory",
]
"""Of an Event."""
