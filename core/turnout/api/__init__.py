"""The resources of turnout.dev/v1alpha1 as pydantic models, from which crds/ is generated."""

from turnout.api.budget import ApiKey, TokenBudget, TokenBudgetSpec
from turnout.api.deployment import (
    Accelerator,
    LLMDeployment,
    LLMDeploymentSpec,
    Objectives,
    Pool,
    RatioBounds,
    ReplicaBounds,
    Routing,
    ScaleDown,
    Scaling,
)
from turnout.api.deployment_status import LastScaling, LLMDeploymentStatus, PoolStatus
from turnout.api.engine import Engine, SimulatedEngine, VllmEngine
from turnout.api.loading import InvalidResource, load_budget, load_deployment, load_route
from turnout.api.meta import Condition, ObjectMeta
from turnout.api.model_source import ModelSource
from turnout.api.route import LLMRoute, LLMRouteSpec, LLMRouteStatus, RouteTarget
from turnout.terms import Role

__all__ = [
    "Accelerator",
    "ApiKey",
    "Condition",
    "Engine",
    "InvalidResource",
    "LLMDeployment",
    "LLMDeploymentSpec",
    "LLMDeploymentStatus",
    "LLMRoute",
    "LLMRouteSpec",
    "LLMRouteStatus",
    "LastScaling",
    "ModelSource",
    "ObjectMeta",
    "Objectives",
    "Pool",
    "PoolStatus",
    "RatioBounds",
    "ReplicaBounds",
    "Role",
    "RouteTarget",
    "Routing",
    "ScaleDown",
    "Scaling",
    "SimulatedEngine",
    "TokenBudget",
    "TokenBudgetSpec",
    "VllmEngine",
    "load_budget",
    "load_deployment",
    "load_route",
]
