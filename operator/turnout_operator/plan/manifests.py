"""The children of an LLMDeployment as manifests: workloads, services, disruption budgets, identity."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from turnout import terms
from turnout.sizing.accelerators import ACCELERATORS, PRODUCT_LABEL
from turnout_operator.plan.engines import engine_container
from turnout_operator.plan.engines.container import GRACE_PERIOD_SECONDS
from turnout_operator.plan.model_volumes import ModelVolumes

if TYPE_CHECKING:
    from turnout.api import LLMDeployment, Role
    from turnout_operator.plan.prefetch import Prefetch

Manifest = dict[str, Any]

ANNOTATION_APPLIED: Final = f"{terms.GROUP}/applied"
"""On every child: digest of the manifest that was applied last, so that a field we no longer set is noticed."""
_NO_MODEL: Final = ModelVolumes((), (), (), ())
STARTUP_ATTEMPTS: Final = 3600
"""Start-up probes, one a second, before a worker that never answers is restarted: loading may take an hour."""


def worker_labels(deployment: str, role: Role, revision: str | None = None) -> dict[str, str]:
    """Labels that select the workers of a role, at one revision or at all of them."""
    labels = {terms.LABEL_DEPLOYMENT: deployment, terms.LABEL_ROLE: role}
    return labels if revision is None else {**labels, terms.LABEL_REVISION: revision}


def pool(
    deployment: LLMDeployment, role: Role, revision: str, replicas: int, image: str, *, facts: str
) -> Manifest:
    """Return the Deployment of one role at one revision, made from the spec as it is now. *facts*: see `with_annotation`."""
    labels = worker_labels(deployment.metadata.name, role, revision)
    spec = {
        "replicas": replicas,
        "revisionHistoryLimit": 2,
        # Changes of the pods that leave the model alone (a newer operator, say) roll out by themselves:
        # never a worker less, and old ones drain through their preStop hook.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
        "selector": {"matchLabels": labels},
        "template": _template(deployment, role, labels, image, facts),
    }
    name = terms.pool_name(deployment.metadata.name, role, revision)
    return _child(deployment, "apps/v1", "Deployment", name, labels, spec=spec)


def constants(deployment: LLMDeployment, namespace: str) -> tuple[Manifest, ...]:
    """Return the children that do not depend on the revision, in the order in which to apply them.

    *namespace* is where router and operator run.
    """
    made = [_service_account(deployment)]
    if deployment.spec.network_policy == "Restrict":
        made.append(_network_policy(deployment, namespace))
    for role in deployment.spec.roles:
        made += [_service(deployment, role), _disruption_budget(deployment, role)]
    return tuple(made)


def prefetch(deployment: LLMDeployment, revision: str, cache: Prefetch) -> Manifest:
    """Return the Job that fills the cache before the first worker of a revision starts."""
    labels = {terms.LABEL_DEPLOYMENT: deployment.metadata.name, terms.LABEL_REVISION: revision}
    return _child(deployment, "batch/v1", "Job", cache.name, labels, spec=cache.spec)


def with_replicas(live: Manifest, replicas: int) -> Manifest:
    """Return what to apply to an older revision's Deployment: the same, at other *replicas*.

    Its template can no longer be made from the spec, so what stands there stays.
    """
    meta, spec = live["metadata"], live["spec"]
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            key: meta[key] for key in ("name", "namespace", "labels", "ownerReferences") if key in meta
        },
        "spec": {
            **{
                key: spec[key]
                for key in ("revisionHistoryLimit", "strategy", "selector", "template")
                if key in spec
            },
            "replicas": replicas,
        },
    }
    return _sealed(manifest)


def with_annotation(workload: Manifest, facts: str | None) -> Manifest:
    """Return a pool whose pods have *facts* as the annotation that routers read; None: they do not have it."""
    template = workload["spec"]["template"]
    metadata = {key: value for key, value in template["metadata"].items() if key != "annotations"}
    if facts is not None:
        metadata["annotations"] = {terms.ANNOTATION_WORKER: facts}
    spec = {**workload["spec"], "template": {**template, "metadata": metadata}}
    return _sealed({**workload, "spec": spec})


def service_account_name(deployment: str) -> str:
    """Name of the account that the workers run under. It has no rights and no token."""
    return f"{deployment}-worker"


def _template(
    deployment: LLMDeployment, role: Role, labels: dict[str, str], image: str, facts: str
) -> Manifest:
    accelerator = deployment.spec.pool(role).accelerator
    known = ACCELERATORS[accelerator.type]
    engine = engine_container(deployment, role)

    # Patient on purpose. The router notices a dead worker within milliseconds by itself, so readiness is for
    # start-up and for long hangs: a node short of CPU, where all answer late, must not take a whole pool out.
    def probe(path: str, **times: int) -> Manifest:
        return {"httpGet": {"path": path, "port": engine.probed.port}, **times}

    scratch, model = engine.scratch or {}, engine.model or _NO_MODEL
    volumes = [
        *(
            {"name": f"scratch-{index}", "emptyDir": dict(kind)}
            for index, kind in enumerate(scratch.values())
        ),
        *model.volumes,
    ]
    mounts = [
        *({"name": f"scratch-{index}", "mountPath": path} for index, path in enumerate(scratch)),
        *model.mounts,
    ]
    container: Manifest = {
        "name": "worker",
        "image": image,
        "command": ["turnout-worker"],
        "args": [*engine.arguments],
        "env": [
            {"name": terms.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            *map(dict, engine.environment),
        ],
        "ports": [
            {"name": name, "containerPort": port, "protocol": "TCP"} for name, port in engine.ports.items()
        ],
        "startupProbe": probe(
            engine.probed.startup, periodSeconds=1, timeoutSeconds=2, failureThreshold=STARTUP_ATTEMPTS
        ),
        "readinessProbe": probe(
            engine.probed.readiness, periodSeconds=1, timeoutSeconds=5, failureThreshold=6
        ),
        "livenessProbe": probe(
            engine.probed.liveness, periodSeconds=10, timeoutSeconds=10, failureThreshold=6
        ),
        "lifecycle": {
            "preStop": {"exec": {"command": ["turnout-worker", "drain", "--port", str(terms.WORKER_PORT)]}}
        },
        # What it wrote last before it ended with an error stands in the pod's status, and from there in the deployment's.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **({"volumeMounts": mounts} if mounts else {}),
    }
    pinned: Manifest = {}
    if known.resource is not None:
        container["resources"] = {"limits": {known.resource: str(accelerator.count)}}
        pinned["tolerations"] = [{"key": known.resource, "operator": "Exists", "effect": "NoSchedule"}]
    if known.product is not None:
        pinned["nodeSelector"] = {PRODUCT_LABEL: known.product}
    if model.pull_secrets:
        pinned["imagePullSecrets"] = [{"name": name} for name in model.pull_secrets]
    security: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if model.fs_group is not None:
        security |= {"fsGroup": model.fs_group, "fsGroupChangePolicy": "OnRootMismatch"}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
    }
    return {
        "metadata": {
            "labels": {**labels, **_common_labels()},
            "annotations": {terms.ANNOTATION_WORKER: facts},
        },
        "spec": {
            "serviceAccountName": service_account_name(deployment.metadata.name),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": GRACE_PERIOD_SECONDS,
            **pinned,
            "topologySpreadConstraints": [spread],
            "securityContext": security,
            "containers": [container],
            **({"volumes": volumes} if volumes else {}),
        },
    }


def _service(deployment: LLMDeployment, role: Role) -> Manifest:
    ports = [
        {
            "name": terms.WORKER_PORT_NAME,
            "port": terms.WORKER_PORT,
            "targetPort": terms.WORKER_PORT_NAME,
            "protocol": "TCP",
        }
    ]
    if role == "prefill":
        ports.append(
            {"name": "kv", "port": terms.KV_SIDE_CHANNEL_PORT, "targetPort": "kv", "protocol": "TCP"}
        )
    labels = worker_labels(deployment.metadata.name, role)
    spec = {"clusterIP": "None", "selector": labels, "ports": ports}
    name = terms.service_name(deployment.metadata.name, role)
    return _child(deployment, "v1", "Service", name, labels, spec=spec)


def _disruption_budget(deployment: LLMDeployment, role: Role) -> Manifest:
    labels = worker_labels(deployment.metadata.name, role)
    # A worker that is not ready serves no requests: it never stands in the way of a node's drain.
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": labels},
    }
    name = terms.service_name(deployment.metadata.name, role)
    return _child(deployment, "policy/v1", "PodDisruptionBudget", name, labels, spec=spec)


def _service_account(deployment: LLMDeployment) -> Manifest:
    labels = {terms.LABEL_DEPLOYMENT: deployment.metadata.name}
    name = service_account_name(deployment.metadata.name)
    return _child(deployment, "v1", "ServiceAccount", name, labels, automountServiceAccountToken=False)


def _network_policy(deployment: LLMDeployment, namespace: str) -> Manifest:
    """Return what closes the workers to all but router, operator and each other.

    Among each other on every port: where a cache is moved, the connector chooses ports of its own. The kubelet's
    probes come from the node, which Kubernetes always lets in.
    """
    labels = {terms.LABEL_DEPLOYMENT: deployment.metadata.name}
    turnout = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {
            "matchLabels": {terms.LABEL_NAME: "turnout"},
            "matchExpressions": [
                {
                    "key": terms.LABEL_COMPONENT,
                    "operator": "In",
                    "values": [terms.COMPONENT_OPERATOR, terms.COMPONENT_ROUTER],
                }
            ],
        },
    }
    spec = {
        "podSelector": {"matchLabels": labels},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [turnout, {"podSelector": {"matchLabels": labels}}]}],
    }
    name = service_account_name(deployment.metadata.name)
    return _child(deployment, "networking.k8s.io/v1", "NetworkPolicy", name, labels, spec=spec)


def _common_labels() -> dict[str, str]:
    return {
        terms.LABEL_NAME: "turnout",
        terms.LABEL_COMPONENT: terms.COMPONENT_WORKER,
        terms.LABEL_MANAGED_BY: terms.FIELD_MANAGER,
    }


def _child(
    deployment: LLMDeployment, api_version: str, kind: str, name: str, labels: dict[str, str], **content: Any
) -> Manifest:
    owner = {
        "apiVersion": terms.API_VERSION,
        "kind": "LLMDeployment",
        "name": deployment.metadata.name,
        "uid": deployment.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    meta = {
        "name": name,
        "namespace": deployment.metadata.namespace,
        "labels": {**labels, **_common_labels()},
        "ownerReferences": [owner],
    }
    return _sealed({"apiVersion": api_version, "kind": kind, "metadata": meta, **content})


def _sealed(manifest: Manifest) -> Manifest:
    """Return *manifest* with its digest as annotation, in place of any that it has."""
    meta = {key: value for key, value in manifest["metadata"].items() if key != "annotations"}
    canonical = json.dumps({**manifest, "metadata": meta}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return {**manifest, "metadata": {**meta, "annotations": {ANNOTATION_APPLIED: digest}}}
