"""What a plan depends on beside the resource: how this operator is installed."""

from __future__ import annotations

from dataclasses import dataclass

from turnout.terms import ROUTER_PORT


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """Settings of one installation."""

    worker_image: str
    """Image of the workers. A change is a new model revision of every deployment."""
    router_host: str
    """Host name of the router's Service inside the cluster."""
    namespace: str
    """Where router and operator run."""

    @property
    def endpoint(self) -> str:
        """Base URL of the OpenAI API inside the cluster."""
        return f"http://{self.router_host}:{ROUTER_PORT}/v1"
