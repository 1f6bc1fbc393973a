"""Values of fieldRef and resourceFieldRef: facts of a container's own pod."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnout_devcluster.node.model import Json, Refusal, container_of
from turnout_devcluster.node.quantities import in_units

if TYPE_CHECKING:
    from collections.abc import Mapping

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod and what its node knows of it beyond its specification."""

    pod: Json
    pod_ip: str
    host_ip: str
    allocatable: Mapping[str, str]
    """What the node has; stands in where a container sets no limit."""

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return str(self.pod["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """The pod's name."""
        return str(self.pod["metadata"]["name"])


def _lines(pairs: Mapping[str, str]) -> str:
    """Return labels or annotations as the downward API writes them: ``key="value"``, sorted."""
    escape = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
    return "\n".join(f'{key}="{value.translate(escape)}"' for key, value in sorted(pairs.items()))


def field(facts: PodFacts, path: str) -> str | Refusal:
    """Return the value of the field *path* of the pod, such as ``metadata.name``."""
    metadata, spec = facts.pod["metadata"], facts.pod["spec"]
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript is not None:
        return str((metadata.get(subscript[1]) or {}).get(subscript[2], ""))
    plain = {
        "metadata.name": facts.name,
        "metadata.namespace": facts.namespace,
        "metadata.uid": str(metadata["uid"]),
        "metadata.labels": _lines(metadata.get("labels") or {}),
        "metadata.annotations": _lines(metadata.get("annotations") or {}),
        "spec.nodeName": str(spec.get("nodeName", "")),
        "spec.serviceAccountName": str(spec.get("serviceAccountName", "default")),
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
    }
    if path not in plain:
        return Refusal(
            "CreateContainerConfigError",
            f"fieldRef {path} is not known here: use one of {', '.join(sorted(plain))}",
        )
    return plain[path]


def resource(facts: PodFacts, reference: Json, container_name: str) -> str | Refusal:
    """Return what a resourceFieldRef asks for, of its containerName or else of *container_name*.

    Without a limit it is what the node has, without a request the limit (else 0), as the kubelet does.
    """
    wanted = str(reference["resource"])
    kind, _, name = wanted.partition(".")
    if kind not in {"limits", "requests"} or not name:
        return Refusal(
            "CreateContainerConfigError",
            f"resourceFieldRef {wanted} is not known here: write limits.NAME or requests.NAME, such as limits.cpu",
        )
    try:
        container = container_of(facts.pod, str(reference.get("containerName") or container_name))
    except KeyError as missing:
        return Refusal(
            "CreateContainerConfigError", f"resourceFieldRef names no container of this pod: {missing}"
        )
    resources = container.get("resources") or {}
    amount = (resources.get("limits") or {}).get(name) or (
        facts.allocatable.get(name, "0") if kind == "limits" else "0"
    )
    if kind == "requests":
        amount = (resources.get("requests") or {}).get(name) or amount
    return str(in_units(amount, reference.get("divisor") or "1"))
