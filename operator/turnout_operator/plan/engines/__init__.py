"""What differs in a worker's container from one engine to another: one module per engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout_operator.plan.engines import simulated, vllm

if TYPE_CHECKING:
    from turnout.api import LLMDeployment, Role
    from turnout_operator.plan.engines.container import EngineContainer

_BUILDERS = {"simulated": simulated.container, "vllm": vllm.container}


def engine_container(deployment: LLMDeployment, role: Role) -> EngineContainer:
    """Return how *deployment*'s engine runs in a worker of *role*."""
    return _BUILDERS[deployment.spec.engine.type](deployment, role)
