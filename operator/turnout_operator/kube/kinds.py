"""The kinds that the operator reads or writes, and where they live in the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from turnout import terms


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of namespaced object."""

    group: str
    """API group; empty for the core."""
    version: str
    plural: str
    name: str
    """The kind as manifests spell it."""

    @property
    def api_version(self) -> str:
        """``apiVersion`` of its manifests."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Path of the collection, of one object, or of its subresource. No *namespace*: across all of them."""
        parts = ["", "apis", self.group, self.version] if self.group else ["", "api", self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/".join(parts)


LLM_DEPLOYMENT: Final = Kind(terms.GROUP, terms.VERSION, "llmdeployments", "LLMDeployment")
LLM_ROUTE: Final = Kind(terms.GROUP, terms.VERSION, "llmroutes", "LLMRoute")
TOKEN_BUDGET: Final = Kind(terms.GROUP, terms.VERSION, "tokenbudgets", "TokenBudget")
DEPLOYMENT: Final = Kind("apps", "v1", "deployments", "Deployment")
SERVICE: Final = Kind("", "v1", "services", "Service")
SERVICE_ACCOUNT: Final = Kind("", "v1", "serviceaccounts", "ServiceAccount")
DISRUPTION_BUDGET: Final = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICY: Final = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
JOB: Final = Kind("batch", "v1", "jobs", "Job")
POD: Final = Kind("", "v1", "pods", "Pod")
EVENT: Final = Kind("", "v1", "events", "Event")
LEASE: Final = Kind("coordination.k8s.io", "v1", "leases", "Lease")

CHILDREN: Final = (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY, JOB)
"""What an LLMDeployment owns."""
CLAIMING: Final = (LLM_DEPLOYMENT, LLM_ROUTE, TOKEN_BUDGET)
"""What users write: each claims names or keys, and has a status."""
OPTIONAL: Final = frozenset({LLM_ROUTE, TOKEN_BUDGET})
"""What a namespace can be looked after without. All else must be known before anything is done there."""
WATCHED: Final = (*CLAIMING, *CHILDREN, POD)

SELECTORS: Final = {
    **dict.fromkeys(CHILDREN, f"{terms.LABEL_MANAGED_BY}={terms.FIELD_MANAGER}"),
    POD: f"{terms.LABEL_NAME}=turnout,{terms.LABEL_COMPONENT} in"
    f" ({terms.COMPONENT_ROUTER},{terms.COMPONENT_WORKER},{terms.COMPONENT_PREFETCH})",
}
"""Label selectors of what is watched, so that the rest of the cluster costs nothing."""

_BY_NAME: Final = {kind.name: kind for kind in (*WATCHED, EVENT, LEASE)}


def kind_of(manifest: dict[str, Any]) -> Kind:
    """Return the kind of *manifest*. Raise KeyError for one that the operator has no business with."""
    return _BY_NAME[manifest["kind"]]
