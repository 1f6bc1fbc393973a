"""What release 0.1 made: pools as its operator applied them, recorded in a file, and pods of these.

Goes with `turnout_router.fleet.discovery.previous_release`, in release 0.3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_RECORDED: Final = Path(__file__).with_suffix(".json")


def recorded_deployment() -> dict[str, Any]:
    """Return the LLMDeployment ``models/llama``: two pools, two names, an adapter, exact knowledge of caches."""
    found: dict[str, Any] = json.loads(_RECORDED.read_text())["llmdeployment"]
    return found


def recorded_pool(role: str) -> dict[str, Any]:
    """Return the Deployment that the operator of release 0.1 made of it, as it was applied."""
    found: dict[str, Any] = json.loads(_RECORDED.read_text())["pools"][role]
    return found


def recorded_pod(role: str, name: str, port: int = 8000) -> dict[str, Any]:
    """Return a Pod of that pool, ready on the loopback address. *port*: where its worker really listens."""
    template = recorded_pool(role)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    for each in container["ports"]:
        if each["name"] == "http":
            each["containerPort"] = port
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "models", **template["metadata"]},
        "spec": {**template["spec"], "nodeName": "node-1"},
        "status": {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
