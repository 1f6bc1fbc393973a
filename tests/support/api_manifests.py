"""Manifests that the API server has to accept, and those it has to refuse with the message it owes the user."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import Any

from support.api_vllm_manifests import ARGUED, REFUSED_VLLM

Manifest = dict[str, Any]


def edited(manifest: Manifest, changes: Manifest) -> Manifest:
    """Return a copy of *manifest* with *changes* by dotted path; None removes the field."""
    result = copy.deepcopy(manifest)
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(leaf, None)
        else:
            place[leaf] = value
    return result


def deployment(
    changes: Manifest | None = None, *, pools: tuple[str, ...] = ("prefill", "decode")
) -> Manifest:
    """Return the least LLMDeployment with *pools*, edited by *changes*."""
    least = {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "case"},
        "spec": {
            "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct"},
            "engine": {"type": "simulated"},
            **{pool: {"accelerator": {"type": "H100-SXM"}} for pool in pools},
        },
    }
    return edited(least, changes or {})


def aggregated(changes: Manifest | None = None) -> Manifest:
    """Return the least LLMDeployment without a prefill pool, edited by *changes*."""
    return deployment(changes, pools=("decode",))


def route(changes: Manifest | None = None) -> Manifest:
    """Return the least LLMRoute, edited by *changes*."""
    least = {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "LLMRoute",
        "metadata": {"name": "case"},
        "spec": {"names": ["chat"], "targets": [{"deployment": "llama-8b"}]},
    }
    return edited(least, changes or {})


def digest(key: str) -> str:
    """Return what a TokenBudget holds of *key*."""
    return hashlib.sha256(key.encode()).hexdigest()


def budget(changes: Manifest | None = None) -> Manifest:
    """Return the least TokenBudget, edited by *changes*."""
    least = {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "TokenBudget",
        "metadata": {"name": "case"},
        "spec": {"keys": [{"name": "a", "sha256": digest("a")}]},
    }
    return edited(least, changes or {})


@dataclass(frozen=True, slots=True)
class Refused:
    """A manifest that is refused, and what the refusal says.

    Messages of rules are the same from the API server and from pydantic; those of plain schema
    (types, ranges) are each reader's own, and of pydantic's only the *field* is asked.
    """

    name: str
    manifest: Manifest
    says: str
    field: str = ""


def _both(changes: Manifest) -> Manifest:
    return {f"spec.{pool}.{path}": value for path, value in changes.items() for pool in ("prefill", "decode")}


SIZE = {"parametersMillion": 8030, "layers": 32, "attentionHeads": 32, "kvHeads": 8, "headDimension": 128}


def _sized(changes: Manifest) -> Manifest:
    return deployment({"spec.model.architecture": edited(SIZE, changes)})


ADAPTER = {"name": "sql", "source": "hf://acme/sql-lora"}

REFUSED = [
    # Adapters
    Refused(
        "adapter-named-like-the-model",
        deployment({"spec.model.servedNames": ["sql"], "spec.lora.adapters": [ADAPTER]}),
        "an adapter has the name of the model itself",
    ),
    Refused(
        "adapter-named-like-the-deployment",
        deployment({"spec.lora.adapters": [ADAPTER | {"name": "case"}]}),
        "an adapter has the name of the model itself",
    ),
    Refused(
        "adapter-twice",
        deployment({"spec.lora.adapters": [ADAPTER, ADAPTER]}),
        "Duplicate value",
        "spec.lora.adapters",
    ),
    Refused(
        "adapter-with-a-slash",
        deployment({"spec.lora.adapters": [ADAPTER | {"name": "acme/sql"}]}),
        "a name has 1 to 96 letters, digits",
    ),
    Refused(
        "room-for-no-adapters",
        deployment({"spec.lora.maxLoaded": 2}),
        "lora.maxLoaded has no effect without adapters",
    ),
    # Size of the model
    Refused(
        "size-without-layers",
        _sized({"layers": None}),
        "Required value",
        "spec.model.architecture.layers",
    ),
    Refused(
        "size-in-fractions",
        _sized({"parametersMillion": 0.5}),
        "Invalid value",
        "spec.model.architecture.parametersMillion",
    ),
    Refused(
        "more-active-parameters-than-there-are",
        _sized({"activeParametersMillion": 9000}),
        "architecture.activeParametersMillion is greater than architecture.parametersMillion: swap them",
    ),
    Refused(
        "weights-said-twice",
        _sized({"weightGiB": 5, "bitsPerParameter": 4}),
        "architecture.bitsPerParameter has no effect beside architecture.weightGiB: remove one",
    ),
    Refused(
        "neither-heads-nor-latent",
        _sized({"kvHeads": None}),
        "write either architecture.kvHeads or, for multi-head latent attention, architecture.latentDimension",
    ),
    Refused(
        "heads-and-latent",
        _sized({"latentDimension": 576}),
        "write either architecture.kvHeads or, for multi-head latent attention, architecture.latentDimension",
    ),
    Refused(
        "heads-that-do-not-divide",
        _sized({"kvHeads": 5}),
        "architecture.attentionHeads is not a multiple of architecture.kvHeads",
    ),
    Refused(
        "more-windows-than-layers",
        _sized({"slidingWindow": {"layers": 33, "tokens": 1024}}),
        "architecture.slidingWindow.layers and architecture.state.layers leave no layer",
    ),
    Refused(
        "more-windows-than-layers-without-a-state",
        _sized({"slidingWindow": {"layers": 9, "tokens": 1024}, "state": {"layers": 24, "mebibytes": 50}}),
        "architecture.slidingWindow.layers and architecture.state.layers leave no layer",
    ),
    Refused(
        "nothing-but-states",
        _sized({"state": {"layers": 32, "mebibytes": 50}}),
        "architecture.slidingWindow.layers and architecture.state.layers leave no layer",
    ),
    Refused(
        "experts-without-what-a-token-meets",
        _sized({"experts": {"count": 128, "active": 8}}),
        "architecture.experts needs architecture.activeParametersMillion",
    ),
    Refused(
        "all-experts-active",
        _sized({"activeParametersMillion": 3000, "experts": {"count": 8, "active": 8}}),
        "architecture.experts.active is not below architecture.experts.count",
    ),
    # Network
    Refused(
        "unknown-network-policy",
        deployment({"spec.networkPolicy": "Deny"}),
        "Unsupported value",
        "spec.networkPolicy",
    ),
    # Admission
    Refused(
        "no-room-at-all",
        deployment({"spec.routing.admission.requestsPerWorker": 0}),
        "should be greater than or equal to 1",
        "spec.routing.admission.requestsPerWorker",
    ),
    Refused(
        "wait-without-a-unit",
        deployment({"spec.routing.admission.maxWait": "30"}),
        "not a duration: write hours, minutes, seconds and milliseconds in this order",
    ),
    # Replicas
    Refused(
        "max-below-min",
        deployment({"spec.prefill.replicas": {"min": 3, "max": 2}}),
        "replicas.min is greater than replicas.max: raise max or lower min",
    ),
    Refused(
        "min-above-default-max",
        aggregated({"spec.decode.replicas": {"min": 2}}),
        "replicas.min is greater than replicas.max: raise max or lower min",
    ),
    Refused(
        "no-replicas",
        deployment({"spec.decode.replicas": {"min": 0, "max": 1}}),
        "should be greater than or equal to 1",
        "spec.decode.replicas.min",
    ),
    Refused(
        "replicas-not-a-number",
        deployment({"spec.decode.replicas": {"max": "many"}}),
        "must be of type integer",
        "spec.decode.replicas.max",
    ),
    # Ratio
    Refused(
        "ratio-upside-down",
        deployment({"spec.scaling.prefillToDecode": {"min": "2:1", "max": "1:4"}}),
        "swap them, as in min 1:4 and max 2:1",
    ),
    Refused(
        "ratio-of-zero",
        deployment({"spec.scaling.prefillToDecode": {"min": "0:1"}}),
        "not a ratio: write prefill replicas to decode replicas, each from 1 to 999, such as 1:4",
    ),
    Refused(
        "ratio-as-fraction",
        deployment({"spec.scaling.prefillToDecode": {"max": "0.5"}}),
        "not a ratio: write prefill replicas to decode replicas, each from 1 to 999, such as 1:4",
    ),
    Refused(
        "ratio-out-of-reach-of-prefill",
        deployment(
            {"spec.decode.replicas": {"min": 4, "max": 8}, "spec.scaling.prefillToDecode": {"min": "1:2"}}
        ),
        "raise prefill.replicas.max, or lower decode.replicas.min or the ratio",
    ),
    Refused(
        "ratio-out-of-reach-of-decode",
        deployment(
            {"spec.prefill.replicas": {"min": 4, "max": 8}, "spec.scaling.prefillToDecode": {"max": "2:1"}}
        ),
        "raise decode.replicas.max, or lower prefill.replicas.min or raise the ratio",
    ),
    Refused(
        "ratio-without-prefill",
        aggregated({"spec.scaling.prefillToDecode": {"min": "1:4", "max": "2:1"}}),
        "scaling.prefillToDecode has no effect without a prefill pool: remove it or add spec.prefill",
    ),
    # Accelerators
    Refused(
        "unknown-accelerator",
        deployment({"spec.decode.accelerator.type": "H100"}),
        'Unsupported value: "H100": supported values: "H100-SXM", "H200-SXM", "A100-SXM-80GB", "L40S"',
        "spec.decode.accelerator.type",
    ),
    Refused(
        "no-accelerator",
        deployment({"spec.decode.accelerator": None}),
        "spec.decode.accelerator: Required value",
        "spec.decode.accelerator",
    ),
    Refused(
        "too-many-accelerators-in-a-replica",
        deployment({"spec.decode.accelerator.count": 17}),
        "should be less than or equal to 16",
        "spec.decode.accelerator.count",
    ),
    Refused(
        "budget-below-the-minimum",
        deployment({**_both({"accelerator.count": 4}), "spec.scaling.maxAccelerators": 7}),
        "scaling.maxAccelerators is below what the minimum replicas need: raise it or lower replicas.min",
    ),
    Refused(
        "aggregated-budget-below-the-minimum",
        aggregated({"spec.decode.replicas": {"min": 3, "max": 3}, "spec.scaling.maxAccelerators": 2}),
        "scaling.maxAccelerators is below what the minimum replicas need: raise it or lower replicas.min",
    ),
    Refused(
        "no-budget",
        deployment({"spec.scaling.maxAccelerators": 0}),
        "should be greater than or equal to 1",
        "spec.scaling.maxAccelerators",
    ),
    # Objectives and other durations
    Refused(
        "zero-objective",
        deployment({"spec.slo.timeToFirstToken": "0ms"}),
        "an objective of zero can never be met: write a duration such as 500ms",
    ),
    Refused(
        "zero-objective-in-two-units",
        deployment({"spec.slo.interTokenLatency": "0s000ms"}),
        "an objective of zero can never be met: write a duration such as 500ms",
    ),
    Refused(
        "negative-objective",
        deployment({"spec.slo.timeToFirstToken": "-500ms"}),
        "not a duration: write hours, minutes, seconds and milliseconds in this order, such as 1h30m, 90s or 500ms",
    ),
    Refused(
        "duration-without-a-unit",
        deployment({"spec.slo.interTokenLatency": "40"}),
        "not a duration: write hours, minutes, seconds and milliseconds in this order, such as 1h30m, 90s or 500ms",
    ),
    Refused(
        "duration-in-fractions",
        deployment({"spec.slo.interTokenLatency": "1.5s"}),
        "not a duration: write hours, minutes, seconds and milliseconds in this order, such as 1h30m, 90s or 500ms",
    ),
    Refused(
        "empty-duration",
        deployment({"spec.scaling.scaleDown.stabilization": ""}),
        "not a duration: write hours, minutes, seconds and milliseconds in this order, such as 1h30m, 90s or 500ms",
    ),
    Refused(
        "duration-with-a-line-break",
        deployment({"spec.engine.simulated.startupTime": "5s\n"}),
        "not a duration: write hours, minutes, seconds and milliseconds in this order, such as 1h30m, 90s or 500ms",
    ),
    Refused(
        "duration-as-a-number",
        deployment({"spec.slo.timeToFirstToken": 2}),
        "must be of type string",
        "spec.slo.timeToFirstToken",
    ),
    Refused(
        "more-than-all-requests-good",
        deployment({"spec.slo.goodputPercent": 101}),
        "should be less than or equal to 100",
        "spec.slo.goodputPercent",
    ),
    Refused(
        "no-request-good",
        deployment({"spec.slo.goodputPercent": 0}),
        "should be greater than or equal to 1",
        "spec.slo.goodputPercent",
    ),
    Refused(
        "fraction-of-a-percent",
        deployment({"spec.slo.goodputPercent": 99.5}),
        "must be of type integer",
        "spec.slo.goodputPercent",
    ),
    # Names, model, engine, modes
    Refused(
        "name-too-long",
        deployment({"metadata.name": "a" * 37}),
        "metadata.name is longer than 36 characters: shorten it",
    ),
    Refused(
        "name-with-dots",
        deployment({"metadata.name": "llama-3.1-8b"}),
        "what clients call goes into spec.model.servedNames",
    ),
    Refused(
        "name-with-a-digit-first",
        deployment({"metadata.name": "8b"}),
        "metadata.name has to begin with a letter and hold only a-z, 0-9 and '-', such as llama-3-1-8b",
    ),
    Refused(
        "served-name-with-a-slash",
        deployment({"spec.model.servedNames": ["meta/llama"]}),
        "a name has 1 to 96 letters, digits, '.', '_', ':' or '-'",
    ),
    Refused(
        "served-name-too-long",
        deployment({"spec.model.servedNames": ["a" * 97]}),
        "a name has 1 to 96 letters, digits, '.', '_', ':' or '-'",
    ),
    Refused(
        "empty-served-name",
        deployment({"spec.model.servedNames": [""]}),
        "a name has 1 to 96 letters, digits, '.', '_', ':' or '-'",
    ),
    Refused(
        "served-name-twice",
        deployment({"spec.model.servedNames": ["a", "b", "a"]}),
        'Duplicate value: "a"',
        "spec.model.servedNames",
    ),
    Refused(
        "no-model",
        deployment({"spec.model": None}),
        "spec.model: Required value",
        "spec.model",
    ),
    Refused(
        "no-decode-pool",
        deployment({"spec.decode": None}),
        "spec.decode: Required value",
        "spec.decode",
    ),
    Refused(
        "no-spec",
        deployment({"spec": None}),
        "spec: Required value",
        "spec",
    ),
    Refused(
        "length-of-nothing",
        deployment({"spec.model.maxLength": 0}),
        "should be greater than or equal to 256",
        "spec.model.maxLength",
    ),
    Refused(
        "unknown-engine",
        deployment({"spec.engine.type": "triton"}),
        'Unsupported value: "triton": supported values: "simulated", "vllm"',
        "spec.engine.type",
    ),
    Refused(
        "clock-standing-still",
        deployment({"spec.engine.simulated.timeScale": 0}),
        "should be greater than or equal to 1",
        "spec.engine.simulated.timeScale",
    ),
    Refused(
        "unknown-mode",
        deployment({"spec.scaling.mode": "auto"}),
        'supported values: "Automatic", "Advisory", "Paused"',
        "spec.scaling.mode",
    ),
    Refused(
        "kv-cache-over-full",
        deployment({"spec.scaling.kvCacheUtilizationPercent": 100}),
        "should be less than or equal to 95",
        "spec.scaling.kvCacheUtilizationPercent",
    ),
    Refused(
        "local-prefill-without-prefill",
        aggregated({"spec.routing.localPrefillBelowTokens": 64}),
        "routing.localPrefillBelowTokens has no effect without a prefill pool: remove it or add spec.prefill",
    ),
    Refused(
        "exact-without-prefixes",
        deployment({"spec.routing.policy": "LeastLoaded", "spec.routing.cacheKnowledge": "Exact"}),
        "routing.cacheKnowledge Exact has no effect with the policy LeastLoaded: remove it or choose PrefixAware",
    ),
    Refused(
        "queueing-without-work",
        deployment({"spec.routing.policy": "LeastLoaded", "spec.routing.queueing": "Router"}),
        "queueing Router has no effect with the policy LeastLoaded, which does not estimate when a worker can start:"
        " remove it or choose PrefixAware",
    ),
    Refused(
        "unknown-queueing",
        deployment({"spec.routing.queueing": "router"}),
        'supported values: "Engine", "Router"',
        "spec.routing.queueing",
    ),
    # Routes
    Refused(
        "route-to-nowhere",
        route({"spec.targets": []}),
        "spec.targets in body should have at least 1 items",
        "spec.targets",
    ),
    Refused(
        "route-without-names",
        route({"spec.names": []}),
        "spec.names in body should have at least 1 items",
        "spec.names",
    ),
    Refused(
        "route-of-no-weight",
        route({"spec.targets": [{"deployment": "a", "weight": 0}, {"deployment": "b", "weight": 0}]}),
        "all weights are 0, so no target would get a request: give one a weight of 1",
    ),
    Refused(
        "negative-weight",
        route({"spec.targets": [{"deployment": "a", "weight": -1}]}),
        "should be greater than or equal to 0",
        "spec.targets[0].weight",
    ),
    Refused(
        "target-twice",
        route({"spec.targets": [{"deployment": "a"}, {"deployment": "a", "weight": 2}]}),
        "Duplicate value",
        "spec.targets",
    ),
    Refused(
        "route-name-with-a-slash",
        route({"spec.names": ["team/chat"]}),
        "a name has 1 to 96 letters, digits, '.', '_', ':' or '-'",
    ),
    # Budgets
    Refused(
        "key-in-the-clear",
        budget({"spec.keys": [{"name": "a", "sha256": "sk-in-the-clear"}]}),
        "not a SHA-256 digest: write its 64 lower-case hex digits as `turnout key create` prints them, never the key itself",
    ),
    Refused(
        "digest-in-capitals",
        budget({"spec.keys": [{"name": "a", "sha256": digest("a").upper()}]}),
        "not a SHA-256 digest: write its 64 lower-case hex digits",
    ),
    Refused(
        "key-under-two-names",
        budget({"spec.keys": [{"name": "a", "sha256": digest("a")}, {"name": "b", "sha256": digest("a")}]}),
        "two entries hold the digest of the same key: remove one",
    ),
    Refused(
        "key-name-twice",
        budget({"spec.keys": [{"name": "a", "sha256": digest("a")}, {"name": "a", "sha256": digest("b")}]}),
        "Duplicate value",
        "spec.keys",
    ),
    Refused(
        "budget-without-keys",
        budget({"spec.keys": []}),
        "spec.keys in body should have at least 1 items",
        "spec.keys",
    ),
    Refused(
        "nameless-model",
        budget({"spec.models": [""]}),
        "should be at least 1 chars long",
        "spec.models[0]",
    ),
]

REFUSED += [
    Refused(f"vllm-{name}", aggregated({"spec.engine.type": "vllm", **settings}), words)
    for name, settings, words in REFUSED_VLLM
]

ACCEPTED = {
    "least": deployment(),
    **{
        f"vllm-{case.name}": deployment(
            {"spec.engine.type": "vllm", **case.spec},
            pools=("decode",) if case.role == "aggregated" else ("prefill", "decode"),
        )
        for case in ARGUED
    },
    "least-aggregated": aggregated(),
    "longest-name": deployment({"metadata.name": "a" * 36}),
    "fixed-size": deployment(_both({"replicas": {"min": 3, "max": 3}})),
    "budget-that-just-suffices": deployment(
        {**_both({"accelerator.count": 4}), "spec.scaling.maxAccelerators": 8}
    ),
    "ratio-that-just-fits": deployment(
        {
            "spec.prefill.replicas": {"min": 2, "max": 2},
            "spec.decode.replicas": {"min": 4, "max": 4},
            "spec.scaling.prefillToDecode": {"min": "1:2", "max": "1:2"},
        }
    ),
    "default-ratio-written-out-without-prefill": aggregated(
        {"spec.scaling.prefillToDecode": {"min": "1:100", "max": "100:1"}}
    ),
    "every-unit": deployment({"spec.scaling.scaleDown.stabilization": "1h2m3s4ms"}),
    "zeros-before-digits": deployment({"spec.slo.timeToFirstToken": "0s050ms"}),
    "no-stabilization": deployment({"spec.scaling.scaleDown.stabilization": "0s"}),
    "names-of-every-form": deployment({"spec.model.servedNames": ["a", "A.b_c:d-9", "a" * 96]}),
    "adapters": deployment(
        {
            "spec.model.servedNames": ["case-8b"],
            "spec.lora": {"adapters": [ADAPTER, ADAPTER | {"name": "case"}], "maxLoaded": 16},
        }
    ),
    "any-model": deployment({"spec.model": {"source": "hf://acme/own", "architecture": SIZE}}),
    "mixture-with-windows": _sized(
        {
            "activeParametersMillion": 3600,
            "weightGiB": 13,
            "experts": {"count": 32, "active": 4},
            "slidingWindow": {"layers": 16, "tokens": 128},
        }
    ),
    "hybrid-with-a-latent": _sized(
        {
            "kvHeads": None,
            "latentDimension": 576,
            "bitsPerParameter": 4,
            "slidingWindow": {"layers": 8, "tokens": 128},
            "state": {"layers": 24, "mebibytes": 50},
        }
    ),
    "on-processors": deployment(_both({"accelerator.type": "CPU"})),
    "closed-workers": deployment({"spec.networkPolicy": "Restrict"}),
    "own-admission": deployment(
        {
            "spec.routing.admission": {
                "requestsPerWorker": 1,
                "tokensPerWorker": 1,
                "waitingRequests": 0,
                "waitingTokens": 1,
                "maxWait": "0s",
            }
        }
    ),
    "exact-caches": deployment({"spec.routing.cacheKnowledge": "Exact"}),
    "queueing-in-the-router": deployment({"spec.routing.queueing": "Router"}),
    "local-prefill-never": deployment({"spec.routing.localPrefillBelowTokens": 0}),
    "route": route(),
    "route-with-a-resting-target": route(
        {"spec.targets": [{"deployment": "a", "weight": 0}, {"deployment": "b"}]}
    ),
    "budget": budget(),
    "budget-by-full-name": budget({"spec.models": ["default/llama-8b", "chat"]}),
}
