"""The Job that fills a cache before the first worker of a revision starts, and how far it is."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from turnout import terms
from turnout.reasons import CacheReason, SourceReason
from turnout.sizing.accelerators import ACCELERATORS, PRODUCT_LABEL
from turnout_operator.plan.model_volumes import ModelVolumes, model_volumes
from turnout_operator.plan.pods import trouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from turnout.api import LLMDeployment
    from turnout_operator.plan.observed import Observed

Manifest = dict[str, Any]

_NEVER: Final = 1_000_000
"""Restarts before a Job gives up: a token that is renewed, or a volume that is enlarged, is noticed without a new Job."""
_REASONS: Final = get_args(SourceReason)
_LAST_LINE: Final = re.compile(rf"turnout-worker: ({'|'.join(_REASONS)}): (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Prefetch:
    """A Job, and how far it is."""

    name: str
    """Made from its content: a Job cannot be changed, only replaced."""
    spec: Manifest
    live: bool
    """Whether it is there."""
    done: bool
    reason: CacheReason | None = None
    """Why it does not get on. None: it runs, or is about to."""
    trouble: str = ""


def prefetch(observed: Observed, revision: str, image: str) -> Prefetch | None:
    """Return the prefetch of *revision*, the one that the spec asks for, run from *image*. None: it asks for none."""
    deployment = observed.deployment
    if not deployment.spec.model.prefetch:
        return None
    spec = _spec(deployment, revision, image)
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{deployment.metadata.name}-prefetch-{digest}"
    live = next(
        (each for each in observed.own if each["kind"] == "Job" and each["metadata"]["name"] == name), None
    )
    conditions = ((live or {}).get("status") or {}).get("conditions", [])
    done = any(item.get("type") == "Complete" and item.get("status") == "True" for item in conditions)
    found = "" if done else observed.prefetching.get(name, "")
    match = _LAST_LINE.search(found)
    reason = cast("CacheReason", match[1]) if match else "PrefetchFails" if found else None
    return Prefetch(name, spec, live is not None, done, reason, match[2] if match else found)


def troubles(pods: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return why the pods of prefetches among *pods* do not run, or failed last, by their Jobs."""
    found: dict[str, str] = {}
    for raw in pods:
        labels, status = raw["metadata"].get("labels", {}), raw.get("status", {})
        job = labels.get("batch.kubernetes.io/job-name")
        if labels.get(terms.LABEL_COMPONENT) != terms.COMPONENT_PREFETCH or not job:
            continue
        conditions = {item["type"]: item for item in status.get("conditions", [])}
        scheduling = conditions.get("PodScheduled", {})
        if scheduling.get("status") == "False" and scheduling.get("reason") == "Unschedulable":
            found[job] = f"{raw['metadata']['name']} finds no node: {scheduling.get('message', '')}"
        elif said := _last_line(status) or trouble(status, scheduling):
            found[job] = said
    return found


def _last_line(status: Mapping[str, Any]) -> str:
    """Return how the container ended last, from its reason on; empty: it does not say."""
    for container in status.get("containerStatuses", []):
        for state in (container.get("state") or {}, container.get("lastState") or {}):
            ended = state.get("terminated") or {}
            if ended.get("exitCode") and (match := _LAST_LINE.search(ended.get("message") or "")):
                return match[0].strip()
    return ""


def _spec(deployment: LLMDeployment, revision: str, image: str) -> Manifest:
    needs = model_volumes(deployment)
    name = deployment.metadata.name
    labels = {
        terms.LABEL_NAME: "turnout",
        terms.LABEL_COMPONENT: terms.COMPONENT_PREFETCH,
        terms.LABEL_MANAGED_BY: terms.FIELD_MANAGER,
        terms.LABEL_DEPLOYMENT: name,
        terms.LABEL_REVISION: revision,
    }
    return {
        "backoffLimit": _NEVER,
        "template": {"metadata": {"labels": labels}, "spec": _pod(deployment, needs, image)},
    }


def _pod(deployment: LLMDeployment, needs: ModelVolumes, image: str) -> Manifest:
    container = {
        "name": "fetch",
        "image": image,
        "command": ["turnout-worker"],
        "args": ["fetch", *needs.arguments],
        "env": list(needs.env),
        "volumeMounts": list(needs.mounts),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    security: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if needs.fs_group is not None:
        security |= {"fsGroup": needs.fs_group, "fsGroupChangePolicy": "OnRootMismatch"}
    pod: Manifest = {
        # The same pod again, so that a waiting Secret or a full disk does not leave a pod for each attempt.
        "restartPolicy": "OnFailure",
        "serviceAccountName": f"{deployment.metadata.name}-worker",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security,
        "containers": [container],
        "volumes": list(needs.volumes),
    }
    if deployment.spec.model.cache.type == "HostPath":
        # Only a node that workers run on is worth filling.
        known = ACCELERATORS[deployment.spec.decode.accelerator.type]
        if known.product is not None:
            pod["nodeSelector"] = {PRODUCT_LABEL: known.product}
        if known.resource is not None:
            pod["tolerations"] = [{"key": known.resource, "operator": "Exists", "effect": "NoSchedule"}]
    return pod
