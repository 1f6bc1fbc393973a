"""Turnout on a dev cluster, as the measurements use it: installed by the chart, asked through kubectl."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_devcluster.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "llama-8b.yaml"
SYSTEM = "turnout-system"
NAME = "llama-8b"
LEASE = "turnout-operator"


def until(what: str, condition: Callable[[], Any], seconds: float = 120.0, pause: float = 0.1) -> Any:
    """Return the first truthy value of *condition*. Raise TimeoutError after *seconds*."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(pause)


@dataclass(frozen=True, slots=True)
class Installed:
    """Turnout on *cluster*."""

    cluster: Cluster

    def install(self) -> None:
        """Install the chart as it is and wait until its pods are available."""
        self.cluster.helm(
            *("upgrade", "--install", "turnout", str(REPOSITORY / "charts" / "turnout")),
            *("--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "180s"),
        )

    def get(self, *what: str, namespace: str = "default") -> Any:
        """Return the JSON of ``kubectl get``; None where there is no such object."""
        text = self.cluster.kubectl(
            *("get", *what, "--namespace", namespace, "--ignore-not-found", "--output", "json")
        )
        return json.loads(text) if text.strip() else None

    def items(self, *what: str, namespace: str = "default") -> list[dict[str, Any]]:
        """Return the objects of a ``kubectl get`` of many."""
        found = self.get(*what, namespace=namespace)
        return [] if found is None else list(found["items"])

    def apply(self, startup: str | None) -> None:
        """Apply the example, with another start-up time where one is given."""
        manifest = yaml.safe_load(EXAMPLE.read_text())
        if startup is not None:
            manifest["spec"]["engine"]["simulated"]["startupTime"] = startup
        self.cluster.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(manifest))

    def wait_ready(self) -> None:
        """Return once the example is Ready."""
        self.cluster.kubectl(
            *("wait", "--for=condition=Ready", f"llmdeployment/{NAME}", "--timeout=120s"), timeout=130
        )

    def delete(self) -> None:
        """Delete the example and return once nothing of it is left."""
        self.cluster.kubectl("delete", "llmdeployment", NAME, "--wait=false")
        kinds = "llmdeployments,deployments,replicasets,pods,poddisruptionbudgets"
        until("all is gone", lambda: not self.items(kinds) and not self._labeled(), 180)

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Return the pods of the operator or the router."""
        selector = f"app.kubernetes.io/component={component}"
        return self.items("pods", "--selector", selector, namespace=SYSTEM)

    def lease(self) -> tuple[str, float]:
        """Return the holder of the lease, and when it was renewed last (seconds since the epoch)."""
        spec = self.get("lease", LEASE, namespace=SYSTEM)["spec"]
        return spec["holderIdentity"], datetime.fromisoformat(spec["renewTime"]).timestamp()

    def leader(self) -> dict[str, Any]:
        """Return the pod of the operator that acts."""
        holder, _ = self.lease()
        return next(pod for pod in self.pods("operator") if pod["metadata"]["name"] == holder)

    def requests(self, pod: dict[str, Any]) -> dict[str, float]:
        """Return how many requests an operator has made to the API server so far: for the lease, and others."""
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:9091/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        found = {"lease": 0.0, "other": 0.0}
        for line in lines:
            if line.startswith("turnout_operator_api_requests_total{"):
                found["lease" if 'resource="leases"' in line else "other"] += float(line.rsplit(" ", 1)[1])
        return found

    def _labeled(self) -> list[dict[str, Any]]:
        return self.items("services,serviceaccounts", "--selector", f"turnout.dev/deployment={NAME}")
