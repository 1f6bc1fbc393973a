"""What a pod needs to have a model's files: volumes, mounts, variables with keys, and the flags that say where all of it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from turnout.quantities import size_bytes
from turnout.sources import Scheme, Source, parse_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnout.api import LLMDeployment

Manifest = dict[str, Any]

CACHE_FOLDER: Final = "/var/cache/turnout"
"""Where copied files lie in the container."""
MOUNTED_FOLDER: Final = "/models"
"""Below it claims and images are mounted: the model at `model`, adapters at `adapters/NAME`."""
WORKER_GROUP: Final = 65532
"""The group of the worker's image: a claim is made writable for it."""
_CACHE: Final = "model-cache"
_KEYS: Final[dict[Scheme, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "hf": (("HF_TOKEN",), ()),
    "s3": (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SESSION_TOKEN", "AWS_REGION")),
    "gs": (("GOOGLE_SERVICE_ACCOUNT_KEY",), ()),
}
"""Keys of the Secret by scheme: those that it must have, and those that it may have."""


@dataclass(frozen=True, slots=True)
class ModelVolumes:
    """Parts of a pod's template. Empty ones are left out of it."""

    volumes: tuple[Manifest, ...]
    """Of the pod."""
    mounts: tuple[Manifest, ...]
    """Of the container: its `volumeMounts`."""
    env: tuple[Manifest, ...]
    """Of the container: keys from the Secret, and a home for the hub's client, for the root file system is read-only."""
    arguments: tuple[str, ...]
    """Flags of `turnout-worker fetch` and of a worker with a real engine alike (`turnout_worker.sources.options`)."""
    pull_secrets: tuple[str, ...] = ()
    """Of the pod: names for its `imagePullSecrets`."""
    fs_group: int | None = None
    """Of the pod's securityContext. None: nothing has to be made writable."""


def model_volumes(deployment: LLMDeployment) -> ModelVolumes:
    """Return what a pod of *deployment* needs to have the files of its model and its adapters."""
    model = deployment.spec.model
    adapters = deployment.spec.lora.adapters
    source = parse_source(model.source)
    others = [parse_source(each.source) for each in adapters]
    volumes: list[Manifest] = []
    mounts: dict[str, Manifest] = {}
    for index, (each, path) in enumerate(
        (
            (source, f"{MOUNTED_FOLDER}/model"),
            *((one, f"{MOUNTED_FOLDER}/adapters/{a.name}") for one, a in zip(others, adapters, strict=True)),
        )
    ):
        name = "model" if index == 0 else f"adapter-{index}"
        if found := _mounted(each, name, path):
            volume, mount = found
            if mount["mountPath"] not in mounts:  # two adapters in one folder of the node
                volumes.append(volume)
                mounts[mount["mountPath"]] = mount
    copied = any(each.downloaded for each in (source, *others))
    if copied:
        volumes.append({"name": _CACHE, **_cache(deployment)})
        mounts[CACHE_FOLDER] = {"name": _CACHE, "mountPath": CACHE_FOLDER}
    return ModelVolumes(
        volumes=tuple(volumes),
        mounts=tuple(mounts.values()),
        env=tuple(_env(deployment, source, others)),
        arguments=tuple(_arguments(deployment, copied=copied)),
        pull_secrets=(model.secret_name,) if source.scheme == "oci" and model.secret_name else (),
        fs_group=WORKER_GROUP if copied and model.cache.type in {"Claim", "ClaimPerPod"} else None,
    )


def host_path_refusal(deployment: LLMDeployment) -> str:
    """Return which folder of the nodes *deployment* asks for, and what to write instead; empty: none.

    A pod of the operator's making would mount it, whatever its user may do: who may create an LLMDeployment could read any
    file of a node.
    """
    model = deployment.spec.model
    if deployment.spec.engine.type == "simulated" and not model.prefetch:
        return ""  # it reads no files
    files = (model.source, *(adapter.source for adapter in deployment.spec.lora.adapters))
    folders = [text for text in files if parse_source(text).scheme == "file"]
    if model.cache.type == "HostPath" and any(parse_source(text).downloaded for text in files):
        folders.append(f"model.cache.path {model.cache.path}")
    if not folders:
        return ""
    return (
        f"{folders[0]} is a folder of the nodes, which this installation does not allow: use another source or cache, or have an"
        " administrator start the operator with --host-paths allow (operator.hostPaths in the chart)"
    )


def _mounted(source: Source, name: str, path: str) -> tuple[Manifest, Manifest] | None:
    """Return volume and mount of a source that is not copied. None: it is copied."""
    mount: Manifest = {"name": name, "mountPath": path, "readOnly": True}
    match source.scheme:
        case "pvc":
            if source.path:
                mount["subPath"] = source.path
            return {"name": name, "persistentVolumeClaim": {"claimName": source.place}}, mount
        case "oci":
            return {"name": name, "image": {"reference": source.place, "pullPolicy": "IfNotPresent"}}, mount
        case "file":
            # At its own path, which is what the worker is given.
            volume = {"name": name, "hostPath": {"path": source.path, "type": "Directory"}}
            return volume, {**mount, "mountPath": source.path}
        case _:
            return None


def _cache(deployment: LLMDeployment) -> Manifest:
    cache = deployment.spec.model.cache
    match cache.type:
        case "HostPath":
            return {"hostPath": {"path": cache.path, "type": "DirectoryOrCreate"}}
        case "Claim":
            return {"persistentVolumeClaim": {"claimName": cache.claim_name}}
        case "ClaimPerPod":
            spec: Manifest = {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": cache.size}},
            }
            if cache.storage_class_name:
                spec["storageClassName"] = cache.storage_class_name
            return {"ephemeral": {"volumeClaimTemplate": {"spec": spec}}}
        case "EmptyDir":
            return {"emptyDir": {"sizeLimit": cache.size} if cache.size else {}}


def _env(deployment: LLMDeployment, source: Source, others: list[Source]) -> Iterator[Manifest]:
    if "hf" in {each.scheme for each in (source, *others)}:
        yield {"name": "HF_HOME", "value": f"{CACHE_FOLDER}/.huggingface"}
    secret = deployment.spec.model.secret_name
    if secret is None:
        return
    needed, possible = _KEYS.get(source.scheme, ((), ()))
    optional = dict.fromkeys(possible)
    for other in others:
        if other.scheme != source.scheme:
            optional |= dict.fromkeys(key for keys in _KEYS.get(other.scheme, ((), ())) for key in keys)
    for name in needed:
        yield {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}}
    for name in optional:
        yield {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}}}


def _arguments(deployment: LLMDeployment, *, copied: bool) -> Iterator[str]:
    model = deployment.spec.model
    yield from ("--model", model.source, "--revision", model.revision)
    if model.endpoint is not None:
        yield from ("--endpoint", model.endpoint)
    # In one word with its flag: a pattern may begin with a dash.
    yield from (f"--allow={pattern}" for pattern in model.files.allow)
    yield from (f"--ignore={pattern}" for pattern in model.files.ignore)
    for adapter in deployment.spec.lora.adapters:
        yield from ("--adapter", f"{adapter.name}={adapter.source}")
        if parse_source(adapter.source).scheme == "hf":
            yield from ("--adapter-revision", f"{adapter.name}={adapter.revision}")
    yield from ("--mounted", MOUNTED_FOLDER)
    if copied:
        yield from ("--cache", CACHE_FOLDER)
        if model.cache.type == "EmptyDir" and model.cache.size:
            yield from ("--cache-limit", str(size_bytes(model.cache.size)))
