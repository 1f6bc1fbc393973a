"""Worker pods that the operator of release 0.1 made: without the annotation, so their arguments are read.

For the time of an upgrade, in which routers of release 0.2 meet pods of release 0.1; the operator of release 0.2 adds
the annotation to those that it keeps. Goes in release 0.3, with its tests; `without_rollout` of the operator then no longer
keeps a template that lacks the annotation.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Final

from pydantic import ValidationError

from turnout import terms
from turnout.api.loading import InvalidResource, faults
from turnout.api.worker_facts import MAX_KV_TOKENS, WorkerFacts, WorkerPorts
from turnout.sizing.capacity import Capacity, fits
from turnout.sizing.catalog import known

_SERVED_NAME: Final = "--served-name"
_LORA_MODULE: Final = "--lora-modules"


def facts_of(raw: dict[str, Any]) -> WorkerFacts:
    """Return what the arguments and ports of a pod's worker say. Raise InvalidResource where they cannot be read."""
    container = _worker_container(raw)
    arguments = list(pairwise(container.get("args") or []))
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports") or ()}
    try:
        return WorkerFacts(
            engine="simulated",
            names=_served_names(arguments),
            kv_tokens=_kv_tokens(dict(arguments)),
            ports=WorkerPorts(
                http=ports.get(terms.WORKER_PORT_NAME, terms.WORKER_PORT),
                kv_events=ports.get(terms.KV_EVENTS_PORT_NAME, 0),
                kv_replay=ports.get(terms.KV_REPLAY_PORT_NAME, 0),
            ),
        )
    except ValidationError as error:
        raise InvalidResource(f"its container {terms.COMPONENT_WORKER}: {faults(error)}") from error


def _worker_container(raw: dict[str, Any]) -> dict[str, Any]:
    containers: list[dict[str, Any]] = (raw.get("spec") or {}).get("containers") or [{}]
    return next((c for c in containers if c.get("name") == terms.COMPONENT_WORKER), containers[0])


def _served_names(arguments: list[tuple[str, str]]) -> tuple[str, ...]:
    served = [value for flag, value in arguments if flag == _SERVED_NAME]
    return (*served, *(value.partition("=")[0] for flag, value in arguments if flag == _LORA_MODULE))


def _kv_tokens(arguments: dict[str, str]) -> int:
    """Return the tokens that this worker's KV cache holds, 0 where its arguments do not say."""
    accelerators = arguments.get("--tensor-parallel", "1")
    if not re.fullmatch("[0-9]{1,4}", accelerators):
        return 0  # any user who may create a pod writes its arguments
    fit = fits(known(arguments.get("--model", "")), arguments.get("--accelerator", ""), int(accelerators))
    return min(fit.kv_cache_tokens, MAX_KV_TOKENS) if isinstance(fit, Capacity) else 0
