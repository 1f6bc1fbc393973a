"""Where a pod finds its model: volumes, mounts, keys and flags for every source and cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.api_sources import RIGHT_SOURCES
from support.operator_values import CONFIG, Fleet, raw_deployment
from turnout.api import LLMDeployment, load_deployment
from turnout_operator.plan.model_volumes import ModelVolumes, model_volumes
from turnout_operator.plan.status import condition
from turnout_worker.main import parser
from turnout_worker.sources.options import fetch_requests

CLAIM = {"type": "Claim", "claimName": "weights"}


def deployed(source: str = "hf://acme/tiny", adapters: Any = (), **model: Any) -> LLMDeployment:
    more = {"lora": {"adapters": list(adapters)}} if adapters else {}
    return load_deployment(raw_deployment(model={"source": source, **model}, **more))


def keys(found: ModelVolumes) -> dict[str, bool]:
    """Return the keys that are read from the Secret, and whether each may be missing."""
    references = [each["valueFrom"]["secretKeyRef"] for each in found.env if "valueFrom" in each]
    assert {reference["name"] for reference in references} <= {"keys"}
    return {reference["key"]: reference.get("optional", False) for reference in references}


@pytest.mark.parametrize(
    ("source", "volume", "mount"),
    [
        (
            "pvc://models/llama/8b",
            {"persistentVolumeClaim": {"claimName": "models"}},
            {"mountPath": "/models/model", "readOnly": True, "subPath": "llama/8b"},
        ),
        (
            "pvc://models",
            {"persistentVolumeClaim": {"claimName": "models"}},
            {"mountPath": "/models/model", "readOnly": True},
        ),
        (
            "oci://registry.example.com/llama:1",
            {"image": {"reference": "registry.example.com/llama:1", "pullPolicy": "IfNotPresent"}},
            {"mountPath": "/models/model", "readOnly": True},
        ),
        (
            "file:///srv/models/llama",
            {"hostPath": {"path": "/srv/models/llama", "type": "Directory"}},
            {"mountPath": "/srv/models/llama", "readOnly": True},
        ),
    ],
)
def test_mounted(source: str, volume: dict[str, Any], mount: dict[str, Any]) -> None:
    """What is not copied is mounted for reading, and no cache is."""
    found = model_volumes(deployed(source))
    assert found.volumes == ({"name": "model", **volume},)
    assert found.mounts == ({"name": "model", **mount},)
    assert "--cache" not in found.arguments


@pytest.mark.parametrize(
    ("cache", "volume", "group"),
    [
        ({}, {"emptyDir": {}}, None),
        ({"size": "200Gi"}, {"emptyDir": {"sizeLimit": "200Gi"}}, None),
        (
            {"type": "HostPath", "path": "/var/models"},
            {"hostPath": {"path": "/var/models", "type": "DirectoryOrCreate"}},
            None,
        ),
        (CLAIM, {"persistentVolumeClaim": {"claimName": "weights"}}, 65532),
        (
            {"type": "ClaimPerPod", "size": "200Gi", "storageClassName": "fast"},
            {
                "ephemeral": {
                    "volumeClaimTemplate": {
                        "spec": {
                            "accessModes": ["ReadWriteOnce"],
                            "resources": {"requests": {"storage": "200Gi"}},
                            "storageClassName": "fast",
                        }
                    }
                }
            },
            65532,
        ),
    ],
)
def test_cache(cache: dict[str, Any], volume: dict[str, Any], group: int | None) -> None:
    """Each kind of cache is the volume of that kind, writable where the worker looks for it."""
    found = model_volumes(deployed(cache=cache))
    assert found.volumes == ({"name": "model-cache", **volume},)
    assert found.mounts == ({"name": "model-cache", "mountPath": "/var/cache/turnout"},)
    assert found.fs_group == group


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://acme/tiny", {"HF_TOKEN": False}),
        (
            "s3://bucket/tiny",
            {
                "AWS_ACCESS_KEY_ID": False,
                "AWS_SECRET_ACCESS_KEY": False,
                "AWS_SESSION_TOKEN": True,
                "AWS_REGION": True,
            },
        ),
        ("gs://bucket/tiny", {"GOOGLE_SERVICE_ACCOUNT_KEY": False}),
        ("pvc://models/tiny", {}),
    ],
)
def test_keys(source: str, expected: dict[str, bool]) -> None:
    """The keys of the source are read, one by one: other keys of the Secret become no variables."""
    assert keys(model_volumes(deployed(source, secretName="keys"))) == expected
    assert keys(model_volumes(deployed(source))) == {}


def test_keys_of_adapters() -> None:
    """An adapter of another kind may have its keys in the same Secret, and may do without."""
    found = model_volumes(
        deployed("s3://bucket/tiny", [{"name": "sql", "source": "hf://acme/sql"}], secretName="keys")
    )
    assert keys(found)["HF_TOKEN"] is True
    assert keys(found)["AWS_ACCESS_KEY_ID"] is False


def test_pull_secret() -> None:
    """The Secret of an image is for the kubelet, not for the worker."""
    found = model_volumes(deployed("oci://registry.example.com/llama:1", secretName="keys"))
    assert (found.pull_secrets, found.env) == (("keys",), ())


@pytest.mark.parametrize("source", RIGHT_SOURCES)
def test_worker_reads_the_flags(source: str) -> None:
    """What the operator writes is what the worker reads, for every source, with all that goes with it."""
    adapters = [
        {"name": "sql", "source": "hf://acme/sql", "revision": "v1"},
        {"name": "de", "source": "pvc://adapters/de"},
        {"name": "fr", "source": "file:///srv/fr"},
        {"name": "fr-2", "source": "file:///srv/fr"},
    ]
    hub = {"revision": "v2", "endpoint": "http://hub:80"} if source.startswith("hf://") else {}
    files = (
        {"files": {"allow": ["-x*", "*"], "ignore": ["a/*"]}} if source.startswith(("hf", "s3", "gs")) else {}
    )
    found = model_volumes(deployed(source, adapters, cache={"size": "1Gi"}, **hub, **files))
    options = parser().parse_args(["fetch", *found.arguments])
    model, others = fetch_requests(options)
    assert str(model.source) == source.rstrip("/")
    assert (model.revision, model.endpoint) == (hub.get("revision", "main"), hub.get("endpoint"))
    assert model.allow == tuple(files.get("files", {}).get("allow", ()))
    assert model.limit_bytes == 2**30
    paths = {mount["mountPath"] for mount in found.mounts}
    assert len(paths) == len(found.mounts) == len(found.volumes)
    assert {str(model.cache), str(others["de"].mounted), "/srv/fr"} <= paths
    assert others["sql"].revision == "v1"
    if model.source.scheme in {"pvc", "oci"}:
        assert str(model.mounted) in paths


@pytest.mark.parametrize(
    ("model", "lora", "folder"),
    [
        ({"source": "file:///srv/llama"}, [], "file:///srv/llama"),
        ({"cache": {"type": "HostPath", "path": "/var/models"}}, [], "model.cache.path /var/models"),
        ({}, [{"name": "fr", "source": "file:///etc"}], "file:///etc"),
    ],
)
def test_a_folder_of_the_nodes_needs_the_administrators_consent(
    model: dict[str, Any], lora: list[dict[str, str]], folder: str
) -> None:
    """The operator makes the pods, so any user who may create a deployment could read any folder of a node by it."""
    source = {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "servedNames": ["llama"]}
    fleet = Fleet(raw_deployment(model=source | model, lora={"adapters": lora}, engine={"type": "vllm"}))
    refused = fleet.plan()
    assert not [made for made in refused.apply if made["kind"] in {"Deployment", "Job"}]
    ready = condition(refused.status, "Ready")
    assert ready["reason"] == "HostPathNotAllowed"
    assert ready["message"].startswith(folder)
    allowed = fleet.plan(config=replace(CONFIG, allow_host_paths=True))
    assert [made for made in allowed.apply if made["kind"] == "Deployment"]
