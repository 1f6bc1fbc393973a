"""Terms that several components must spell alike: roles, accelerators, labels, annotations, ports, variables.

The standard library only: whatever decides or serves may import this without the resources' models, which need pydantic.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

Role = Literal["prefill", "decode", "aggregated"]
"""What a worker does for a request: compute the prompt, generate the output, or both."""
AcceleratorType = Literal["H100-SXM", "H200-SXM", "A100-SXM-80GB", "L40S", "CPU"]
"""Names of accelerators; turnout.sizing.accelerators has their figures."""
EngineType = Literal["simulated", "vllm"]
RoutingPolicy = Literal["PrefixAware", "LeastLoaded"]
CacheKnowledge = Literal["Estimated", "Exact"]
"""How a router knows what a worker's prefix cache holds: from its own requests, or from the worker's KV events."""
Queueing = Literal["Engine", "Router"]
"""Where requests wait that no worker can start now."""
Priority = Literal["High", "Normal", "Low"]
"""Of the requests of one key, when a deployment is overloaded."""
ScalingMode = Literal["Automatic", "Advisory", "Paused"]

GROUP: Final = "turnout.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

FIELD_MANAGER: Final = "turnout-operator"
"""The one field manager under which the operator applies children and status."""

LABEL_DEPLOYMENT: Final = f"{GROUP}/deployment"
"""On every child of an LLMDeployment: the name of that LLMDeployment."""
LABEL_ROLE: Final = f"{GROUP}/role"
"""On pools and their pods: their `Role`."""
LABEL_REVISION: Final = f"{GROUP}/revision"
"""On pools and their pods: which model revision they serve. Prefill and decode workers are
paired only within one revision, for a KV cache means nothing to another model."""
LABEL_DRAINING: Final = f"{GROUP}/draining"
"""``"true"`` on a worker pod that is about to leave: it finishes what it has and gets nothing new."""

ANNOTATION_WORKER: Final = f"{GROUP}/worker"
"""On worker pods: what routers need to know of this worker, see `turnout.api.worker_facts`."""
ANNOTATION_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
"""Kubernetes' own annotation: of a ReplicaSet's ready pods the one with the lowest cost goes first."""
ANNOTATION_DRAINING_SINCE: Final = f"{GROUP}/draining-since"
"""When draining began (RFC 3339, UTC), so that a restarted operator keeps the deadline."""

LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_NAME: Final = "app.kubernetes.io/name"
COMPONENT_OPERATOR: Final = "operator"
COMPONENT_ROUTER: Final = "router"
COMPONENT_WORKER: Final = "worker"
COMPONENT_PREFETCH: Final = "prefetch"

WORKER_PORT: Final = 8000
"""Where a worker serves the OpenAI API, /health and /metrics. Reached by the router and the operator only."""
WORKER_PORT_NAME: Final = "http"
WORKER_STATUS_PORT: Final = 8001
"""Where a worker that runs a real engine says how far it is, for the kubelet's probes and the operator."""
WORKER_STATUS_PORT_NAME: Final = "status"
KV_SIDE_CHANNEL_PORT: Final = 5600
"""Where a prefill worker hands out KV blocks (vLLM's VLLM_NIXL_SIDE_CHANNEL_PORT)."""
KV_EVENTS_PORT: Final = 5557
KV_EVENTS_PORT_NAME: Final = "kv-events"
"""Where a worker publishes what its prefix cache holds (vLLM's default), and what its container's port is called."""
KV_REPLAY_PORT: Final = 5558
KV_REPLAY_PORT_NAME: Final = "kv-replay"
"""Where it repeats what a router has missed."""
ROUTER_PORT: Final = 8080
"""The router's public port."""
ROUTER_ADMIN_PORT: Final = 9090
"""The router's second port: /metrics, /healthz, /readyz, /admin."""
ROUTER_PEERS_PORT: Final = 9092
"""Port at which routers report their requests to each other. Reached by routers only."""
OPERATOR_ADMIN_PORT: Final = 9091
"""The operator's port: /metrics, /healthz, /readyz."""

ENV_BIND_ADDRESS: Final = "TURNOUT_BIND_ADDRESS"
"""The address a service listens on. Unset: all of them, which is right in a real pod. The dev
cluster sets it to the pod's own loopback address, for there all pods share one network."""
ENV_POD_IP: Final = "POD_IP"
ENV_POD_NAME: Final = "POD_NAME"
ENV_POD_NAMESPACE: Final = "POD_NAMESPACE"

MAX_NAME_LENGTH: Final = 36
"""Longest name of an LLMDeployment. The longest name derived from it is a pod's,
``NAME-prefill-REVISION-REPLICASET-POD`` with 7 + 8 + 10 + 5 characters and four dashes, and must
be a DNS label of at most 63 characters to serve as a host name."""

REVISION_LENGTH: Final = 8


def pool_name(deployment: str, role: str, revision: str) -> str:
    """Name of the Deployment that runs the *role* pool of *deployment* at *revision*."""
    return f"{deployment}-{role}-{revision}"


def service_name(deployment: str, role: str) -> str:
    """Name of the headless Service in front of the *role* pool, whatever its revision."""
    return f"{deployment}-{role}"


def revision_of(canonical: str) -> str:
    """Eight lower-case hex digits of *canonical*: the text of all that makes workers incompatible."""
    return hashlib.sha256(canonical.encode()).hexdigest()[:REVISION_LENGTH]
