"""From a running cluster to a deployment that answers: chart, manifest, Ready, the router's address."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
import yaml

from turnout.api import LLMDeployment, load_deployment
from turnout.terms import COMPONENT_ROUTER, LABEL_COMPONENT, ROUTER_PORT
from turnout_cli.demo.errors import SetupError
from turnout_devcluster.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from turnout_devcluster.cluster import Cluster
    from turnout_devcluster.progress import Progress

RELEASE: Final = "turnout"
SYSTEM_NAMESPACE: Final = "turnout-system"
"""Where operator and router run."""
CRD: Final = "llmdeployments.turnout.dev"

INSTALL_SECONDS: Final = 120.0
READY_SECONDS: Final = 180.0
ROUTER_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Serving:
    """A deployment that answers."""

    deployment: LLMDeployment
    """As the API server has it, defaults filled in."""
    router_url: str
    model: str
    """The name that clients call it by."""


def install(cluster: Cluster, chart: Path, say: Progress, *values: str) -> None:
    """Install the chart, or bring an installed one up to date, and wait until its pods are available.

    *values* are set as with `helm --set`.

    Raise SetupError past the deadline, CommandError where helm refuses.
    """
    say.line(f"helm upgrade --install {RELEASE} {chart} --namespace {SYSTEM_NAMESPACE}")
    cluster.helm(
        *("upgrade", "--install", RELEASE, str(chart)),
        *("--namespace", SYSTEM_NAMESPACE, "--create-namespace"),
        *(word for value in values for word in ("--set", value)),
    )
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=30s")

    def state() -> tuple[bool, str]:
        items = _read(cluster, "get", "deployments", "--namespace", SYSTEM_NAMESPACE)["items"]
        pools = []
        for item in items:
            ready = item.get("status", {}).get("readyReplicas", 0)
            pools.append((item["metadata"]["name"], ready, item["spec"]["replicas"]))
        done = bool(pools) and all(ready >= wanted for _, ready, wanted in pools)
        return done, ", ".join(f"{name} {ready}/{wanted}" for name, ready, wanted in pools)

    _wait("operator and router are available", state, INSTALL_SECONDS, say)


def serve(
    cluster: Cluster, manifest: dict[str, Any], say: Progress, *, ready_seconds: float = READY_SECONDS
) -> Serving:
    """Apply *manifest*, wait until it is Ready and the router serves it; return how to reach it.

    Raise SetupError past a deadline, CommandError where the API server refuses the manifest.
    """
    wanted = load_deployment(manifest)
    name, namespace = wanted.metadata.name, wanted.metadata.namespace
    say.line(f"kubectl apply: LLMDeployment {namespace}/{name}")
    cluster.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(manifest))
    applied = time.monotonic()

    def state() -> tuple[bool, str]:
        return ready_state(_read(cluster, "get", CRD, name, "--namespace", namespace))

    _wait(f"LLMDeployment {name} is Ready", state, ready_seconds, say)
    say.line(f"Ready {time.monotonic() - applied:.1f} s after apply")
    deployment = load_deployment(_read(cluster, "get", CRD, name, "--namespace", namespace))
    model = (deployment.status.served_names or list(deployment.served_names))[0]
    url = router_url(cluster)
    _wait(f"the router at {url} serves {model}", lambda: _serves(url, model), ROUTER_SECONDS, say)
    return Serving(deployment, url, model)


def ready_state(raw: dict[str, Any]) -> tuple[bool, str]:
    """Return whether the LLMDeployment *raw* is Ready at its current generation, and where it stands."""
    status = raw.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    ready = conditions.get("Ready")
    if ready is None:
        return False, "the operator has not looked at it yet"
    pools = [
        f"{role} {status[role].get('ready', 0)}/{status[role].get('desired', 0)}"
        for role in ("prefill", "decode")
        if role in status
    ]
    current = ready.get("observedGeneration", 0) >= raw["metadata"].get("generation", 0)
    return ready["status"] == "True" and current, ", ".join([*pools, ready.get("message", "")])


def router_url(cluster: Cluster) -> str:
    """Return the router's address, which the dev cluster makes reachable from here.

    Raise SetupError where the chart made no such Service.
    """
    services = _read(
        cluster,
        *("get", "services", "--namespace", SYSTEM_NAMESPACE),
        *("--selector", f"{LABEL_COMPONENT}={COMPONENT_ROUTER}"),
    )["items"]
    for service in services:
        address = service["spec"].get("clusterIP")
        for port in service["spec"].get("ports", ()):
            if port["port"] == ROUTER_PORT and address not in {None, "", "None"}:
                return f"http://{address}:{ROUTER_PORT}"
    raise SetupError(
        f"no Service of the router with port {ROUTER_PORT} in namespace {SYSTEM_NAMESPACE}; "
        f"see what the chart installed: helm get manifest {RELEASE} --namespace {SYSTEM_NAMESPACE}"
    )


def _serves(url: str, model: str) -> tuple[bool, str]:
    """Return whether the router at *url* lists *model*."""
    try:
        answer = httpx.get(f"{url}/v1/models", timeout=2.0)
        listed = [entry["id"] for entry in answer.json()["data"]] if answer.is_success else []
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        return False, f"no list of models from it: {error}"
    return model in listed, f"HTTP {answer.status_code}, models: {', '.join(listed) or 'none'}"


def _wait(what: str, state: Callable[[], tuple[bool, str]], seconds: float, say: Progress) -> None:
    """Poll *state* until it holds, reporting every change. Raise SetupError after *seconds*."""
    deadline = time.monotonic() + seconds
    shown = ""
    while True:
        try:
            done, where = state()
        except CommandError as error:
            done, where = False, str(error)
        if done:
            say.line(what)
            return
        if where != shown:
            say.line(f"waiting until {what}: {where}")
            shown = where
        if time.monotonic() > deadline:
            raise SetupError(f"waited {seconds:.0f} s in vain until {what}. Last seen: {where}")
        time.sleep(_POLL_SECONDS)


def _read(cluster: Cluster, *arguments: str) -> dict[str, Any]:
    """Return what kubectl answers to *arguments*, as JSON."""
    return dict(json.loads(cluster.kubectl(*arguments, "--output", "json")))
