"""Values for tests of plans: deployments, pods and pools as the API server would show them, and a small cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from turnout import terms
from turnout.api import load_deployment
from turnout_operator.load import pages
from turnout_operator.load.traffic import Traffic
from turnout_operator.plan.claims import assign_names, claim_of, claimant_of
from turnout_operator.plan.conditions import rfc3339
from turnout_operator.plan.config import PlanConfig
from turnout_operator.plan.observed import Observed, Specification, observe
from turnout_operator.plan.plan import plan
from turnout_operator.plan.pods import ObservedPod, WorkerLoad, observed_pod
from turnout_operator.plan.policy import policy_of

if TYPE_CHECKING:
    from turnout.api import LLMDeployment
    from turnout.scaling.decision import ScalingDecision
    from turnout_operator.plan.effects import Plan

NOW = 1_790_000_000.0
CONFIG = PlanConfig(
    worker_image="turnout-worker:test",
    vllm_image="turnout-worker-vllm:test",
    router_host="turnout-router.turnout-system.svc",
    namespace="turnout-system",
)


def raw_deployment(
    name: str = "llama",
    *,
    prefill: tuple[int, int] | None = (1, 4),
    decode: tuple[int, int] = (2, 6),
    **more: Any,
) -> dict[str, Any]:
    """Return an LLMDeployment as the API server shows it; *more* replaces sections of the spec."""

    def pool(bounds: tuple[int, int]) -> dict[str, Any]:
        return {
            "replicas": {"min": bounds[0], "max": bounds[1]},
            "accelerator": {"type": "H100-SXM", "count": 1},
        }

    spec: dict[str, Any] = {
        "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "servedNames": [name]},
        "engine": {"type": "simulated"},
        "decode": pool(decode),
        **more,
    }
    if prefill is not None:
        spec["prefill"] = pool(prefill)
    return {
        "apiVersion": terms.API_VERSION,
        "kind": "LLMDeployment",
        "metadata": {
            "name": name,
            "namespace": "models",
            "uid": f"uid-{name}",
            "generation": 1,
            "creationTimestamp": rfc3339(NOW - 100),
        },
        "spec": spec,
    }


@dataclass
class Fleet:
    """Children and pods of one deployment, moved by plans as Kubernetes would move them.

    Pods appear at once and get ready when `settle` says so; deletion takes the pods that Kubernetes would take.
    """

    raw: dict[str, Any]
    now: float = NOW
    children: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    loads: dict[str, int] = field(default_factory=dict)
    """Requests in flight by pod."""
    kv_tokens: dict[str, int] = field(default_factory=dict)
    """What each pod's engine says that its KV cache holds."""
    gone: list[str] = field(default_factory=list)
    serial: int = 0

    @property
    def deployment(self) -> LLMDeployment:
        """The resource as the operator loads it."""
        return load_deployment(self.raw)

    def observed(self, goodput: float | None = None) -> Observed:
        """Return what the operator would see."""
        deployment = self.deployment
        finished = {} if goodput is None else {pages.FINISHED: 100.0, pages.GOOD: goodput}
        names_by_uid = {raw["metadata"]["uid"]: name for name, raw in self.pods.items()}
        return observe(
            Specification(deployment, policy_of(deployment.spec)),
            self.raw.get("status") or {},
            tuple(self.children.values()),
            tuple(self.pods.values()),
            load=lambda uid: self._load(names_by_uid[uid]),
            names=assign_names([claim_of(self.raw)])[claimant_of(self.raw)],
            traffic=Traffic(finished, 60.0, answered=True),
            occupancy={},
        )

    def observed_pods(self) -> list[ObservedPod]:
        """Return the pods with their load."""
        found = (observed_pod(raw, self._load(name)) for name, raw in self.pods.items())
        return [pod for pod in found if pod is not None]

    def _load(self, pod: str) -> WorkerLoad:
        return WorkerLoad(self.now, self.loads.get(pod, 0), 0, 0.1, kv_tokens=self.kv_tokens.get(pod, 0))

    def plan(self, decision: ScalingDecision | None = None, config: PlanConfig = CONFIG) -> Plan:
        """Return the plan for what is there now."""
        return plan(self.observed(), decision, config, self.now)

    def step(
        self, decision: ScalingDecision | None = None, config: PlanConfig = CONFIG, *, ready: bool = True
    ) -> Plan:
        """Plan, carry out, let Kubernetes follow, and let a second pass; return the plan."""
        made = self.plan(decision, config)
        self.carry_out(made)
        self.follow(ready=ready)
        self.now += 1.0
        return made

    def carry_out(self, made: Plan) -> None:
        """Do what a plan says."""
        for patch in made.patches:
            if patch.name in self.pods:
                meta = self.pods[patch.name]["metadata"]
                for part, values in patch.body["metadata"].items():
                    kept = {**meta.get(part, {}), **values}
                    meta[part] = {key: value for key, value in kept.items() if value is not None}
        for manifest in made.apply:
            key = manifest["kind"], manifest["metadata"]["name"]
            before = self.children.get(key, {})
            self.serial += 1
            meta = {
                "uid": f"uid-{self.serial}",
                "creationTimestamp": rfc3339(self.now),
                **before.get("metadata", {}),
                **manifest["metadata"],
            }
            self.children[key] = {**before, **manifest, "metadata": meta}
        for removal in made.delete:
            del self.children[removal.kind, removal.name]
        self.raw["status"] = made.status

    def follow(self, *, ready: bool = True) -> None:
        """Bring pods to what the Deployments say, and make those that are held back ready."""
        for (kind, name), child in self.children.items():
            if kind != "Deployment":
                continue
            mine = [pod for pod in self.pods.values() if pod["metadata"]["pool"] == name]
            for _ in range(child["spec"]["replicas"] - len(mine)):
                self.serial += 1
                self._create(f"{name}-{self.serial:03}", name, child)
            leaving = len(mine) - child["spec"]["replicas"]
            for pod in sorted(mine, key=_rank)[: max(0, leaving)]:
                self.gone.append(pod["metadata"]["name"])
                del self.pods[pod["metadata"]["name"]]
        if ready:
            for pod in self.pods.values():
                pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}

    def replicas(self, kind: str = "") -> dict[str, int]:
        """Return the replicas by name of the Deployments whose name contains *kind*."""
        return {
            name: child["spec"]["replicas"]
            for (k, name), child in self.children.items()
            if k == "Deployment" and kind in name
        }

    def ready(self, part: str) -> int:
        """Return how many pods serve whose name contains *part*."""
        return sum(pod.serving for pod in self.observed_pods() if part in pod.name)

    def _create(self, name: str, pool: str, child: dict[str, Any]) -> None:
        template = child["spec"]["template"]
        self.pods[name] = {
            "metadata": {
                "name": name,
                "pool": pool,
                "uid": f"uid-{name}",
                "namespace": "models",
                "creationTimestamp": rfc3339(self.now),
                "labels": dict(template["metadata"]["labels"]),
                "annotations": dict(template["metadata"].get("annotations") or {}),
            },
            "spec": {**template["spec"], "nodeName": "node-1"},
            "status": {"phase": "Pending"},
        }


def _rank(pod: dict[str, Any]) -> tuple[bool, int]:
    ready = any(
        item["type"] == "Ready" and item["status"] == "True" for item in pod["status"].get("conditions", [])
    )
    return ready, int(pod["metadata"].get("annotations", {}).get(terms.ANNOTATION_DELETION_COST, "0"))
