"""An LLMDeployment with `engine.type: vllm` becomes pods that start vLLM with the right arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.api_manifests import deployment
from support.api_vllm_manifests import ARGUED, Argued
from turnout.api import VllmEngine, load_deployment
from turnout_operator.plan import manifests
from turnout_operator.plan.engines import engine_container
from turnout_operator.plan.revision import model_revision

if TYPE_CHECKING:
    from turnout.api import LLMDeployment, Role


def loaded(changes: dict[str, Any], role: Role = "aggregated") -> LLMDeployment:
    pools = ("decode",) if role == "aggregated" else ("prefill", "decode")
    raw = deployment({"spec.engine.type": "vllm", **changes}, pools=pools)
    raw["metadata"] |= {"namespace": "models", "uid": "u"}
    return load_deployment(raw)


def engine_arguments(changes: dict[str, Any], role: Role = "aggregated") -> tuple[str, ...]:
    """Return what stands behind the worker's own arguments."""
    arguments = engine_container(loaded(changes, role), role).arguments
    return arguments[arguments.index("--") + 1 :]


def pod(changes: dict[str, Any], role: Role = "aggregated") -> dict[str, Any]:
    template = manifests.pool(loaded(changes, role), role, "r", 1, "image", facts="{}")["spec"]["template"]
    spec: dict[str, Any] = template["spec"]
    return spec


@pytest.mark.parametrize("case", ARGUED, ids=lambda case: case.name)
def test_settings_become_arguments(case: Argued) -> None:
    arguments = engine_arguments(case.spec, case.role)
    assert arguments[:3] == ("vllm", "serve", "{model}")
    places = range(len(arguments) - len(case.arguments) + 1)
    assert any(arguments[at : at + len(case.arguments)] == case.arguments for at in places), arguments
    assert not set(case.absent) & set(arguments)


def test_every_setting_has_its_case() -> None:
    """A field that is accepted has an effect that the table shows; `env` and `image` have tests of their own here."""
    shown = {
        path.removeprefix("spec.engine.vllm.").split(".")[0]
        for case in ARGUED
        for path in case.spec
        if path.startswith("spec.engine.vllm.")
    }
    fields = {field.alias for field in VllmEngine.model_fields.values()}
    assert fields - shown == {"env"}


def test_the_extra_arguments_come_last() -> None:
    """So that they win over what Turnout has chosen."""
    assert engine_arguments({"spec.engine.vllm.extraArgs": ["--max-num-seqs", "3"]})[-2:] == (
        "--max-num-seqs",
        "3",
    )


def test_the_worker_knows_what_it_runs() -> None:
    """And it ends before the pod is killed, the engine before the worker would kill it."""
    arguments = engine_container(loaded({}), "aggregated").arguments
    split = arguments.index("--")
    own, engine = arguments[:split], arguments[split:]
    assert own[0] == "serve"
    assert own[own.index("--model") + 1] == "hf://meta-llama/Llama-3.1-8B-Instruct"
    times = [int(part[part.index("--shutdown-timeout") + 1]) for part in (own, engine)]
    assert times == [118, 115]
    assert pod({})["terminationGracePeriodSeconds"] == 120


def test_a_worker_on_a_cpu_moves_caches_through_its_memory() -> None:
    cpu = {f"spec.{pool}.accelerator.type": "CPU" for pool in ("prefill", "decode")}
    arguments = engine_arguments(cpu, "decode")
    assert '"kv_buffer_device":"cpu"' in arguments[arguments.index("--kv-transfer-config") + 1]


def test_variables_reach_the_engine() -> None:
    env = pod({"spec.engine.vllm.env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}]})["containers"][0][
        "env"
    ]
    assert {"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"} in env
    assert {"name": "VLLM_NO_USAGE_STATS", "value": "1"} in env


@pytest.mark.parametrize(
    ("role", "ports"),
    [
        ("prefill", {"http": 8000, "kv": 5600, "status": 8001}),
        ("decode", {"http": 8000, "status": 8001}),
        ("aggregated", {"http": 8000, "status": 8001}),
    ],
)
def test_ports_and_the_side_channel(role: Role, ports: dict[str, int]) -> None:
    """A prefill worker hands out its cache where decode workers reach it: at the pod's own address."""
    container = pod({}, role)["containers"][0]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
    env = {variable["name"]: variable for variable in container["env"]}
    assert ("VLLM_NIXL_SIDE_CHANNEL_HOST" in env) == (role != "aggregated")
    if role != "aggregated":
        assert env["VLLM_NIXL_SIDE_CHANNEL_HOST"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"


def test_the_worker_is_probed_not_the_engine() -> None:
    """The engine's /health is good before it has served anything, and while it is shut down."""
    container = pod({})["containers"][0]
    for kind, path in (
        ("startupProbe", "/startup"),
        ("readinessProbe", "/ready"),
        ("livenessProbe", "/live"),
    ):
        assert container[kind]["httpGet"] == {"path": path, "port": "status"}


def test_the_file_system_is_read_only_but_for_what_the_engine_writes() -> None:
    """Shared memory, temporary files, a home; and the cache that the model is copied into."""
    spec = pod({})
    container = spec["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    kinds = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    assert {mount["mountPath"]: kinds[mount["name"]] for mount in container["volumeMounts"]} == {
        "/dev/shm": {"medium": "Memory"},  # noqa: S108
        "/tmp": {},  # noqa: S108
        "/home/turnout": {},
        "/var/cache/turnout": {},
    }


def test_a_model_in_a_claim_is_mounted() -> None:
    """Where the worker looks for it."""
    spec = pod({"spec.model.source": "pvc://models/llama"})
    container = spec["containers"][0]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models"}} in spec["volumes"]
    assert {"name": "model", "mountPath": "/models/model", "readOnly": True, "subPath": "llama"} in container[
        "volumeMounts"
    ]
    assert container["args"][container["args"].index("--mounted") + 1] == "/models"


def test_a_setting_is_another_revision() -> None:
    """Workers of two settings are not paired; and what has its default is no setting."""
    here = model_revision(loaded({}), "image")
    assert model_revision(loaded({"spec.engine.vllm.kvCacheType": "fp8"}), "image") != here
    assert model_revision(loaded({"spec.engine.vllm.kvCacheType": "auto"}), "image") == here
