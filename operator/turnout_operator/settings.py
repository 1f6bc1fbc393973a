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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENV_WORKER_IMAGE: Final = "TURNOUT_WORKER_IMAGE"
LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """How this operator runs."""

    namespace: str
    """Its own namespace: the lease lies there, and the routers run there."""
    watch_namespaces: tuple[str, ...]
    """Namespaces whose resources it acts on; empty: all of them."""
    worker_image: str
    router_service: str
    """Name of the router's Service in its own namespace, for ``status.endpoint``."""
    admin_host: str
    """Empty: all addresses."""
    admin_port: int
    lease_name: str
    identity: str
    """Who holds the lease: the pod's name."""
    log_level: str


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the command line. Wrong usage exits with status 2 and says what is right."""
    release = version("turnout")
    parser = argparse.ArgumentParser(
        prog="turnout-operator",
        description="Turns LLMDeployments into pools of prefill and decode workers and scales them. "
        "Finds the API server through KUBECONFIG or the pod's service account. Several may run: one acts.",
    )
    parser.add_argument(
        "--namespace",
        default=environment.get(ENV_POD_NAMESPACE) or "default",
        help=f"own namespace, where the lease lies and the routers run (default: ${ENV_POD_NAMESPACE}, else default)",
    )
    parser.add_argument(
        "--watch-namespace",
        action="append",
        default=[],
        metavar="NAMESPACE",
        help="act on the resources of this namespace only; may be repeated (default: all namespaces)",
    )
    parser.add_argument(
        "--worker-image",
        default=environment.get(ENV_WORKER_IMAGE) or f"turnout-worker:{release}",
        help=f"image of the workers; a change rolls out every deployment (default: ${ENV_WORKER_IMAGE}, else %(default)s)",
    )
    parser.add_argument(
        "--router-service",
        default="turnout-router",
        help="name of the router's Service, told in status.endpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--admin-host",
        default=environment.get(ENV_BIND_ADDRESS, ""),
        help=f"address of /healthz, /readyz and /metrics (default: ${ENV_BIND_ADDRESS}, else all)",
    )
    parser.add_argument(
        "--admin-port", type=int, default=OPERATOR_ADMIN_PORT, help="their port (default: %(default)s)"
    )
    parser.add_argument(
        "--lease-name", default=FIELD_MANAGER, help="name of the Lease (default: %(default)s)"
    )
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="default: %(default)s")
    parser.add_argument("--version", action="version", version=f"turnout-operator {release}")
    given = parser.parse_args(arguments)
    if not 0 < given.admin_port < 65536:  # noqa: PLR2004 - ports
        parser.error(f"--admin-port {given.admin_port} is no port: choose one from 1 to 65535")
    return Settings(
        namespace=given.namespace,
        watch_namespaces=tuple(dict.fromkeys(given.watch_namespace)),
        worker_image=given.worker_image,
        router_service=given.router_service,
        admin_host=given.admin_host,
        admin_port=given.admin_port,
        lease_name=given.lease_name,
        # A process that is started again in the same pod is the same candidate: it goes on at once.
        identity=environment.get(ENV_POD_NAME) or f"{socket.gethostname()}-{os.getpid()}",
        log_level=given.log_level,
    )
