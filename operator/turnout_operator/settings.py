"""What an operator is started with: flags, and the environment where a flag is not given."""

from __future__ import annotations

import argparse
import os
import socket
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from turnout.terms import (
    ENV_BIND_ADDRESS,
    ENV_POD_NAME,
    ENV_POD_NAMESPACE,
    FIELD_MANAGER,
    OPERATOR_ADMIN_PORT,
)
from turnout_runtime.options import add_options, from_options, option, read_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENV_WORKER_IMAGE: Final = "TURNOUT_WORKER_IMAGE"
ENV_VLLM_IMAGE: Final = "TURNOUT_VLLM_IMAGE"
LEVELS: Final = ("debug", "info", "warning", "error")
RELEASE: Final = version("turnout")


@dataclass(frozen=True, slots=True)
class Settings:
    """How this operator runs."""

    identity: str
    """Who holds the lease: the pod's name."""
    namespace: str = option(
        "default",
        "--namespace",
        "own namespace, where the lease lies and the routers run",
        environment=ENV_POD_NAMESPACE,
    )
    watch_namespaces: tuple[str, ...] = option(
        (),
        "--watch-namespace",
        "act on the resources of this namespace only; may be repeated; all where it is not given",
        metavar="NAMESPACE",
        repeated=True,
    )
    worker_image: str = option(
        f"turnout-worker:{RELEASE}",
        "--worker-image",
        "image of the workers with the simulated engine; a change rolls out every deployment that has it",
        environment=ENV_WORKER_IMAGE,
    )
    vllm_image: str = option(
        f"turnout-worker-vllm:{RELEASE}",
        "--vllm-image",
        "image of the workers with vLLM; a change rolls out every deployment that has it and names no image",
        environment=ENV_VLLM_IMAGE,
    )
    host_paths: str = option(
        "refuse",
        "--host-paths",
        "whether deployments may have folders of the nodes (file:// sources, caches of the type HostPath): a user who may"
        " create one can then read any folder of a node",
        choices=("refuse", "allow"),
    )
    router_service: str = option(
        "turnout-router", "--router-service", "name of the router's Service, written to status.endpoint"
    )
    """In its own namespace."""
    admin_host: str = option(
        "",
        "--admin-host",
        "address of /healthz, /readyz and /metrics; all where it is not given",
        environment=ENV_BIND_ADDRESS,
    )
    admin_port: int = option(
        OPERATOR_ADMIN_PORT, "--admin-port", "their port", form=read_port, metavar="PORT"
    )
    lease_name: str = option(FIELD_MANAGER, "--lease-name", "name of the Lease")
    log_level: str = option("info", "--log-level", "what is logged", choices=LEVELS)


def parser(environment: Mapping[str, str] = os.environ) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = argparse.ArgumentParser(
        prog="turnout-operator",
        description="Turns LLMDeployments into pools of prefill and decode workers and scales them. "
        "Finds the API server through KUBECONFIG or the pod's service account. Several may run: one acts.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(found, Settings, environment)
    found.add_argument("--version", action="version", version=f"turnout-operator {RELEASE}")
    return found


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the command line. Wrong usage exits with status 2 and says what is right."""
    reads = parser(environment)
    given = reads.parse_args(arguments)
    if not given.admin_port:
        reads.error("--admin-port 0: the chart's probes must know it: choose one from 1 to 65535")
    given.watch_namespace = list(dict.fromkeys(given.watch_namespace))
    # A process that is started again in the same pod is the same candidate: it goes on at once.
    identity = environment.get(ENV_POD_NAME) or f"{socket.gethostname()}-{os.getpid()}"
    return from_options(Settings, given, identity=identity)
