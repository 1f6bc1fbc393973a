"""Wrong and right values of where a model comes from, with what each refusal says."""

from __future__ import annotations

from typing import Any, Final

from support.api_manifests import Manifest, Refused, deployment

_NO_SCHEME: Final = (
    "not a model source: begin with hf:// (the Hugging Face hub), pvc:// (a claim), s3:// or gs:// (a bucket)"
)
_HUB: Final = (
    "not a repository of the hub: write hf://ORGANIZATION/NAME, such as hf://meta-llama/Llama-3.1-8B-Instruct"
)
_CLAIM: Final = "not a folder of a claim: write pvc://CLAIM/FOLDER, such as pvc://models/llama-3.1-8b"
_S3: Final = "not a folder of a bucket: write s3://BUCKET/FOLDER, such as s3://models/llama-3.1-8b"
_GS: Final = "not a folder of a bucket: write gs://BUCKET/FOLDER, such as gs://models/llama-3.1-8b"
_IMAGE: Final = "not an image: write oci://REGISTRY/REPOSITORY:TAG or oci://REGISTRY/REPOSITORY@sha256:DIGEST"
_FILE: Final = (
    "not a folder of the node: write file:///FOLDER with three slashes, such as file:///models/llama-3.1-8b"
)

WRONG_SOURCES: Final = {
    "": _NO_SCHEME,
    "Llama-3.1-8B-Instruct": _NO_SCHEME,
    "meta-llama/Llama-3.1-8B": _NO_SCHEME,
    "/models/llama-3.1-8b": _NO_SCHEME,
    "https://huggingface.co/meta-llama/Llama-3.1-8B": _NO_SCHEME,
    "HF://meta-llama/Llama-3.1-8B": _NO_SCHEME,
    " hf://meta-llama/Llama-3.1-8B": _NO_SCHEME,
    "hf:/meta-llama/Llama-3.1-8B": _NO_SCHEME,
    "hf://": _HUB,
    "hf://gpt2": _HUB,
    "hf://meta-llama/Llama-3.1-8B@main": _HUB,
    "hf://meta-llama/Llama-3.1-8B/original": _HUB,
    "hf://meta-llama/": _HUB,
    "hf://../x": _HUB,
    "pvc://": _CLAIM,
    "pvc:///llama": _CLAIM,
    "pvc://Models/llama": _CLAIM,
    "pvc://models/../secrets": _CLAIM,
    "pvc://models//llama": _CLAIM,
    "pvc://models/./llama": _CLAIM,
    "s3://": _S3,
    "s3://ab/llama": _S3,
    "s3://Bucket/llama": _S3,
    "s3://my_bucket/llama": _S3,
    "s3://bucket/a/../b": _S3,
    "s3://bucket/llama?versionId=1": _S3,
    "gs://": _GS,
    "gs://a/llama": _GS,
    "gs://bucket/llama#1": _GS,
    "oci://": _IMAGE,
    "oci://registry.example.com": _IMAGE,
    "oci://registry.example.com/Models/Llama:1": _IMAGE,
    "oci://registry.example.com/models/llama:": _IMAGE,
    "oci://registry.example.com/models/llama@sha256:abc": _IMAGE,
    "file://": _FILE,
    "file:///": _FILE,
    "file://models/llama": _FILE,
    "file:///models/../etc": _FILE,
}
RIGHT_SOURCES: Final = (
    "hf://Qwen/Qwen3-32B",
    "hf://meta-llama/Llama-3.1-8B-Instruct",
    "pvc://models",
    "pvc://models/",
    "pvc://models.team-a/llama-3.1-8b/v1/",
    "s3://bucket",
    "s3://my.bucket-1/llama-3.1-8b/2026-12-01",
    "gs://my_bucket/llama-3.1-8b",
    "oci://registry.example.com/models/llama:1",
    "oci://localhost:5000/llama",
    f"oci://registry.example.com/models/llama:1@sha256:{'0a' * 32}",
    "file:///models/llama-3.1-8b",
    "file:///home/me/.cache/llama",
    "file:///models/llama-3.1-8b/",
)
_BUCKET: Final = {"spec.model.source": "s3://bucket/llama"}
_REVISION: Final = (
    "not a revision: write a branch, a tag or a commit of the repository, such as main or refs/pr/1"
)
_NAME: Final = "not the name of an object of Kubernetes"


def _wrong(name: str, changes: dict[str, Any], says: str) -> Refused:
    prefixed = {f"spec.model.{path}": value for path, value in changes.items()}
    return Refused(f"model-{name}", deployment(prefixed), says)


REFUSED_SOURCES: Final = [
    *(
        Refused(f"source-{text or 'empty'}", deployment({"spec.model.source": text}), says)
        for text, says in WRONG_SOURCES.items()
    ),
    Refused(
        "adapter-from-nowhere",
        deployment({"spec.lora.adapters": [{"name": "sql", "source": "sql-lora"}]}),
        _NO_SCHEME,
    ),
    Refused(
        "adapter-revision-of-a-bucket",
        deployment({"spec.lora.adapters": [{"name": "sql", "source": "s3://bucket/sql", "revision": "v1"}]}),
        "revision has no effect on a source other than hf://",
    ),
    Refused(
        "source-too-long",
        deployment({"spec.model.source": f"hf://a/{'b' * 512}"}),
        "may not be more than 512",
        "spec.model.source",
    ),
    _wrong("revision-with-a-space", {"revision": "main branch"}, _REVISION),
    _wrong("revision-that-climbs", {"revision": "../main"}, _REVISION),
    _wrong(
        "revision-of-a-bucket",
        {"source": "s3://bucket/llama", "revision": "v2"},
        "revision has no effect on a source other than hf://: remove it, and put the version into the folder's",
    ),
    _wrong("secret-with-a-space", {"secretName": "my token"}, _NAME),
    _wrong(
        "token-instead-of-a-secret",
        {"secretName": "hf_ABCdef"},
        _NAME,
    ),
    _wrong("endpoint-without-a-scheme", {"endpoint": "hub.example.com"}, "not an endpoint: write a URL"),
    _wrong("endpoint-with-a-password", {"endpoint": "https://a:b@hub.example.com"}, "not an endpoint"),
    _wrong(
        "endpoint-of-a-claim",
        {"source": "pvc://models/llama", "endpoint": "https://hub.example.com"},
        "model.endpoint has no effect on a source other than hf:// and s3://",
    ),
    _wrong(
        "patterns-for-a-claim",
        {"source": "pvc://models/llama", "files": {"allow": ["*.json"]}},
        "model.files has no effect on a source whose files are not copied",
    ),
    _wrong(
        "prefetch-into-the-pod",
        {"prefetch": True},
        "model.prefetch needs files that are copied (hf://, s3:// or gs://) and a cache that outlives the pod",
    ),
    _wrong(
        "prefetch-of-a-claim",
        {
            "source": "pvc://models/llama",
            "prefetch": True,
            "cache": {"type": "Claim", "claimName": "cache"},
        },
        "model.prefetch needs files that are copied",
    ),
    _wrong(
        "cache-of-a-node-without-a-path",
        {"cache": {"type": "HostPath"}},
        "cache.path is a folder of the node",
    ),
    _wrong(
        "cache-of-a-node-at-a-relative-path",
        {"cache": {"type": "HostPath", "path": "cache"}},
        "cache.path is a folder of the node for the type HostPath: write an absolute path",
    ),
    _wrong("cache-of-the-pod-with-a-path", {"cache": {"path": "/var/cache"}}, "cache.path is a folder"),
    _wrong(
        "cache-without-its-claim", {"cache": {"type": "Claim"}}, "cache.claimName belongs to the type Claim"
    ),
    _wrong(
        "claim-without-its-type", {"cache": {"claimName": "cache"}}, "cache.claimName belongs to the type"
    ),
    _wrong(
        "size-of-a-claim",
        {"cache": {"type": "Claim", "claimName": "cache", "size": "200Gi"}},
        "cache.size is needed by the type ClaimPerPod, possible with EmptyDir, and without effect on",
    ),
    _wrong("claims-without-a-size", {"cache": {"type": "ClaimPerPod"}}, "cache.size is needed by the type"),
    _wrong("size-in-words", {"cache": {"size": "200 GB"}}, "not a size: write a whole number and Mi, Gi, Ti"),
    _wrong(
        "class-without-a-claim",
        {"cache": {"storageClassName": "fast"}},
        "cache.storageClassName has no effect without the type ClaimPerPod",
    ),
    Refused(
        "unknown-cache",
        deployment({"spec.model.cache": {"type": "Memory"}}),
        "Unsupported value",
        "spec.model.cache.type",
    ),
]
ACCEPTED_SOURCES: Final[dict[str, Manifest]] = {
    **{f"source-{text}": deployment({"spec.model.source": text}) for text in RIGHT_SOURCES},
    "source-with-everything": deployment(
        {
            "spec.model.revision": "refs/pr/1",
            "spec.model.secretName": "hub-token",
            "spec.model.endpoint": "http://hub.example.com:8080/mirror",
            "spec.model.files": {"allow": ["*.safetensors", "*.json"], "ignore": ["original/*"]},
            "spec.model.cache": {"type": "HostPath", "path": "/var/cache/turnout"},
            "spec.model.prefetch": True,
        }
    ),
    "source-of-a-bucket": deployment(
        {
            **_BUCKET,
            "spec.model.endpoint": "https://minio.storage.svc:9000",
            "spec.model.cache": {"type": "Claim", "claimName": "cache"},
            "spec.model.prefetch": True,
            "spec.lora.adapters": [{"name": "sql", "source": "pvc://adapters/sql"}],
        }
    ),
    "claims-for-each-pod": deployment(
        {"spec.model.cache": {"type": "ClaimPerPod", "size": "200Gi", "storageClassName": "fast"}}
    ),
}
