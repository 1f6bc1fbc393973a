"""Turnout as a user installs it: through the chart, on a cluster of its own."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout_devcluster.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEM_NAMESPACE = "turnout-system"


def wait_until(what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the first truthy value of *condition*; fail after *seconds* with *what* and its last value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain until {what}; last seen: {value!r}")
        time.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Installation:
    """Turnout installed on *cluster*."""

    cluster: Cluster

    def install(self, *values: str) -> None:
        """Install or upgrade the chart and wait until its pods are ready."""
        flags = [flag for value in values for flag in ("--set", value)]
        self.cluster.helm(
            *("upgrade", "--install", "turnout", str(REPOSITORY / "charts" / "turnout")),
            *("--namespace", SYSTEM_NAMESPACE, "--create-namespace", "--wait", "--timeout", "120s", *flags),
        )

    def get(self, *what: str, namespace: str = "default") -> Any:
        """Return the JSON of ``kubectl get``."""
        return json.loads(self.cluster.kubectl("get", *what, "--namespace", namespace, "--output", "json"))

    def apply(self, *manifests: dict[str, Any], namespace: str) -> None:
        """``kubectl apply`` the manifests, in one call."""
        self.cluster.kubectl(
            *("apply", "--namespace", namespace, "--filename", "-"), stdin=yaml.safe_dump_all(manifests)
        )

    def pods(self, selector: str, namespace: str) -> list[dict[str, Any]]:
        """Return the pods that *selector* picks and that are not on their way out."""
        items = self.get("pods", "--selector", selector, namespace=namespace)["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def ready_pods(self, selector: str, namespace: str) -> list[dict[str, Any]]:
        """Return those of them that are ready."""
        return [pod for pod in self.pods(selector, namespace) if is_true(pod, "Ready")]

    def router_url(self) -> str:
        """Return the base URL of the OpenAI API, through the router's Service."""
        service = self.get("service", "turnout-router", namespace=SYSTEM_NAMESPACE)
        return f"http://{service['spec']['clusterIP']}:8080/v1"

    def router_pods(self) -> list[dict[str, Any]]:
        """Return the router's ready pods."""
        return self.ready_pods("app.kubernetes.io/component=router", SYSTEM_NAMESPACE)

    def secret(self, name: str, key: str) -> str:
        """Return what a Secret of the system's namespace holds under *key*."""
        data = self.get("secret", name, namespace=SYSTEM_NAMESPACE)["data"]
        return base64.b64decode(data[key]).decode()

    def deployment(self, name: str, namespace: str) -> dict[str, Any]:
        """Return an LLMDeployment."""
        found: dict[str, Any] = self.get("llmdeployment", name, namespace=namespace)
        return found

    def wait_condition(
        self, name: str, namespace: str, condition: str, status: str = "True", seconds: float = 90
    ) -> dict[str, Any]:
        """Wait until *condition* of the LLMDeployment has *status* for its newest generation; return it."""

        def seen() -> dict[str, Any] | None:
            found = self.deployment(name, namespace)
            newest = found["metadata"]["generation"]
            for one in conditions(found):
                if (
                    one["type"] == condition
                    and one["status"] == status
                    and one["observedGeneration"] == newest
                ):
                    return one
            return None

        result: dict[str, Any] = wait_until(f"{namespace}/{name} has {condition}={status}", seen, seconds)
        return result

    def pid(self, pod: dict[str, Any]) -> int:
        """Return the pid of the process in the pod's first container."""
        address = pod["status"]["podIP"]
        found = [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and f"TURNOUT_BIND_ADDRESS={address}" in _environment(folder)
        ]
        leaves = [
            pid for pid in found if not _has_child_among(pid, found)
        ]  # not the one that watches over it
        assert leaves, f"no process of pod {pod['metadata']['name']}"
        return leaves[0]


def conditions(found: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return the conditions of a resource."""
    listed: Sequence[dict[str, Any]] = found.get("status", {}).get("conditions", [])
    return listed


def is_true(found: dict[str, Any], condition: str) -> bool:
    """Whether the resource has that condition with status True."""
    return any(one["type"] == condition and one["status"] == "True" for one in conditions(found))


def llmdeployment(
    name: str,
    *,
    served: str | None = None,
    prefill: tuple[int, int] | None = (1, 1),
    decode: tuple[int, int] = (1, 1),
    **spec: Any,
) -> dict[str, Any]:
    """Return the manifest of a small simulated LLMDeployment; *spec* overrides whole sections."""

    def pool(bounds: tuple[int, int]) -> dict[str, Any]:
        return {
            "replicas": {"min": bounds[0], "max": bounds[1]},
            "accelerator": {"type": "H100-SXM", "count": 1},
        }

    sections: dict[str, Any] = {
        "model": {
            "source": "hf://meta-llama/Llama-3.1-8B-Instruct",
            "servedNames": [served or name],
            "maxLength": 32768,
        },
        "engine": {"type": "simulated", "simulated": {"timeScale": 10}},
        "decode": pool(decode),
        "scaling": {"scaleDown": {"stabilization": "60s"}},
        **spec,
    }
    if prefill is not None:
        sections["prefill"] = pool(prefill)
    return {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        "spec": sections,
    }


def _environment(folder: Path) -> list[str]:
    try:
        return (folder / "environ").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _has_child_among(pid: int, others: Sequence[int]) -> bool:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(int(child) in others for child in children.split())
