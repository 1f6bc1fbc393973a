"""What a plan depends on beside the resource: how this operator is installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnout.terms import ROUTER_PORT

if TYPE_CHECKING:
    from turnout.api import LLMDeployment


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """Settings of one installation."""

    worker_image: str
    """Image of workers with the simulated engine. A change is a new model revision of every deployment that has it."""
    vllm_image: str
    """The same with vLLM."""
    router_host: str
    """Host name of the router's Service inside the cluster."""
    namespace: str
    """Where router and operator run."""
    allow_host_paths: bool = False
    """Whether a deployment may have folders of nodes. A user who may create deployments can then read any folder of a node."""

    def image_of(self, deployment: LLMDeployment) -> str:
        """Return the image of *deployment*'s workers."""
        engine = deployment.spec.engine
        return engine.image or (self.vllm_image if engine.type == "vllm" else self.worker_image)

    def fetch_image_of(self, deployment: LLMDeployment) -> str:
        """Return the image that copies *deployment*'s model. That of the simulated engine has no libraries for it."""
        engine = deployment.spec.engine
        return engine.image if engine.image and engine.type != "simulated" else self.vllm_image

    @property
    def endpoint(self) -> str:
        """Base URL of the OpenAI API inside the cluster."""
        return f"http://{self.router_host}:{ROUTER_PORT}/v1"
