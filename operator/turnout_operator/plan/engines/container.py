"""A worker's container, as far as the engine decides it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from turnout import terms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_operator.plan.model_volumes import ModelVolumes

GRACE_PERIOD_SECONDS: Final = 120
"""How long a worker may drain and finish its streams, before SIGTERM and after it.

It is the engine's shutdown time-out, too. vLLM's own default is 0: it cuts what runs and lets it pass for whole. With
no less than the grace period, what does not end in time is killed, and its clients see that.
"""

KV_EVENTS: Final = json.dumps(
    {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{terms.KV_EVENTS_PORT}",
        "replay_endpoint": f"tcp://*:{terms.KV_REPLAY_PORT}",
        "topic": "kv-events",
    }
)
"""vLLM's --kv-events-config: what the prefix cache holds is published, and repeated for subscribers that have missed it."""


@dataclass(frozen=True, slots=True)
class Probed:
    """Where the kubelet's probes look."""

    port: str
    """Name of a port of the container."""
    startup: str
    """Path that answers 200 once the worker has started."""
    readiness: str
    liveness: str


@dataclass(frozen=True, slots=True)
class EngineContainer:
    """How an engine runs in a pod."""

    arguments: tuple[str, ...]
    """Of `turnout-worker`."""
    ports: Mapping[str, int]
    """The container's ports by name, in order."""
    probed: Probed
    environment: tuple[Mapping[str, Any], ...] = ()
    """As in a container's `env`, in order."""
    model: ModelVolumes | None = None
    """What the pod needs to have the model's files. None: the engine reads none."""
    scratch: Mapping[str, Mapping[str, Any]] | None = None
    """Folders that the engine writes to, with the emptyDir that each of them is. The rest of the file system is read-only."""


def worker_ports(*, hands_out_cache: bool, publishes: bool) -> dict[str, int]:
    """Return the ports that every engine has: *hands_out_cache* is a prefill worker, *publishes* one with KV events."""
    ports = {terms.WORKER_PORT_NAME: terms.WORKER_PORT}
    if hands_out_cache:
        ports["kv"] = terms.KV_SIDE_CHANNEL_PORT
    if publishes:
        ports |= {
            terms.KV_EVENTS_PORT_NAME: terms.KV_EVENTS_PORT,
            terms.KV_REPLAY_PORT_NAME: terms.KV_REPLAY_PORT,
        }
    return ports
