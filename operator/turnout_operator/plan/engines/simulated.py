"""The simulated engine's container."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from turnout import terms
from turnout.quantities import seconds
from turnout.sizing.catalog import HUB
from turnout_operator.plan.engines.container import (
    GRACE_PERIOD_SECONDS,
    KV_EVENTS,
    EngineContainer,
    Probed,
    worker_ports,
)

if TYPE_CHECKING:
    from turnout.api import LLMDeployment, Role

_PROBED: Final = Probed(terms.WORKER_PORT_NAME, "/health", "/health", "/health")


def container(deployment: LLMDeployment, role: Role) -> EngineContainer:
    """Return the container of a worker of *role*."""
    publishes = deployment.spec.routing.cache_knowledge == "Exact"
    return EngineContainer(
        arguments=_arguments(deployment, role, publishes=publishes),
        ports=worker_ports(hands_out_cache=role == "prefill", publishes=publishes),
        probed=_PROBED,
    )


def _arguments(deployment: LLMDeployment, role: Role, *, publishes: bool) -> tuple[str, ...]:
    spec = deployment.spec
    simulated = spec.engine.simulated
    named = [part for name in deployment.served_names for part in ("--served-name", name)]
    accelerator = spec.pool(role).accelerator
    values: tuple[tuple[str, object], ...] = (
        ("--role", role),
        ("--accelerator", accelerator.type),
        ("--tensor-parallel", accelerator.count),
        ("--max-length", spec.model.max_length),
        ("--seed", simulated.seed),
        ("--time-scale", simulated.time_scale),
        ("--startup-seconds", f"{seconds(simulated.startup_time):g}"),
        ("--port", terms.WORKER_PORT),
        ("--side-channel-port", terms.KV_SIDE_CHANNEL_PORT),
        ("--shutdown-timeout", GRACE_PERIOD_SECONDS),
    )
    if spec.model.architecture is not None:
        described = spec.model.architecture.sizing(spec.model.source.removeprefix(HUB)).to_fields()
        values += (("--architecture", json.dumps(described, separators=(",", ":"))),)
    if spec.lora.adapters:
        modules = (("--lora-modules", f"{each.name}={each.source}") for each in spec.lora.adapters)
        values += (*modules, ("--max-loras", spec.lora.max_loaded))
    if publishes:
        values += (("--kv-events-config", KV_EVENTS),)
    flat = (str(part) for pair in values for part in pair)
    return ("simulate", "--model", spec.model.source, *named, *flat)
