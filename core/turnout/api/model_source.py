"""Where a model and its LoRA adapters come from, and where a worker keeps their files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from pydantic import Field

from turnout.api.architecture import Architecture
from turnout.api.meta import Model
from turnout.api.quantities import Size
from turnout.api.rules import Rule, Unique
from turnout.api.served import SERVED_NAMES, ServedName
from turnout.sources import (
    DEFAULT_REVISION,
    DOWNLOADED,
    ENDPOINT_PATTERN,
    FOLDER_PATTERN,
    FORMS,
    MAX_SOURCE_LENGTH,
    NO_SCHEME,
    REVISION_PATTERN,
    SCHEME_PATTERN,
    Scheme,
    has_form,
    is_endpoint,
    is_revision,
    scheme_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CacheType = Literal["EmptyDir", "HostPath", "Claim", "ClaimPerPod"]
LASTING_CACHES: Final = frozenset[CacheType]({"HostPath", "Claim"})
"""Caches that outlive the pod."""

_OBJECT_NAME_PATTERN: Final = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
_OBJECT_NAME: Final = re.compile(_OBJECT_NAME_PATTERN)
_FOLDER: Final = re.compile(FOLDER_PATTERN)


def _of_form(scheme: Scheme) -> Callable[[str], bool]:
    return lambda text: scheme_of(text) != scheme or has_form(text, scheme)


SourceText = Annotated[
    str,
    Field(
        max_length=MAX_SOURCE_LENGTH,
        description="hf://ORGANIZATION/NAME: a repository of the Hugging Face hub. pvc://CLAIM/FOLDER: a folder of a"
        " PersistentVolumeClaim of the deployment's namespace. s3://BUCKET/FOLDER, gs://BUCKET/FOLDER: what lies below it in a"
        " bucket. oci://IMAGE: the files of an image, mounted as an image volume. file:///FOLDER: a folder that every node"
        " already has at this path, mounted as a hostPath; on the dev cluster a folder of this machine.",
    ),
    Rule(f"self.matches('{SCHEME_PATTERN}')", NO_SCHEME, lambda text: scheme_of(text) is not None),
    *(
        Rule(
            f"!self.startsWith('{scheme}://') || self.matches('{form.pattern}')", form.says, _of_form(scheme)
        )
        for scheme, form in FORMS.items()
    ),
]
Revision = Annotated[
    str,
    Field(min_length=1, max_length=128),
    Rule(
        f"self.matches('{REVISION_PATTERN}')",
        "not a revision: write a branch, a tag or a commit of the repository, such as main or refs/pr/1",
        is_revision,
    ),
]
REVISION_OF_HUB: Final = Rule(
    f"self.source.startsWith('hf://') || self.revision == '{DEFAULT_REVISION}'",
    "revision has no effect on a source other than hf://: remove it, and put the version into the folder's or the image's name",
    lambda model: scheme_of(model.source) == "hf" or model.revision == DEFAULT_REVISION,
    field_path=".revision",
)
"""Holds of whatever has `source` and `revision`."""
_ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Rule(
        f"self.matches('{_OBJECT_NAME_PATTERN}')",
        "not the name of an object of Kubernetes: write a-z, 0-9, '-' and '.', such as hub-token",
        lambda text: _OBJECT_NAME.fullmatch(text) is not None,
    ),
]
_Pattern = Annotated[str, Field(min_length=1, max_length=256)]


class SourceFiles(Model):
    """Which files of the source are copied, by patterns of the shell such as `*.safetensors` or `original/*`."""

    allow: Annotated[list[_Pattern], Unique()] = Field(
        default_factory=list,
        max_length=32,
        description="Only files that match one of these. Empty: all; where the source has safetensors, its weights in other"
        " forms are left out.",
    )
    ignore: Annotated[list[_Pattern], Unique()] = Field(
        default_factory=list, max_length=32, description="None of the files that match one of these."
    )


class ModelCache(Model):
    """Where a worker keeps the files of hf://, s3:// and gs:// sources."""

    type: CacheType = Field(
        default="EmptyDir",
        description="EmptyDir: the pod's own, gone with it. HostPath: `path` on the node, which pods of the same node share."
        " Claim: `claimName`, which all pods share. ClaimPerPod: a claim of `size` that is made for each pod and deleted with it.",
    )
    size: Size | None = Field(
        default=None,
        description="EmptyDir: its limit; unset: what the node has. ClaimPerPod: what each pod's claim requests.",
    )
    path: str | None = Field(
        default=None, max_length=256, description="HostPath: a folder of the node, made where it is missing."
    )
    claim_name: _ObjectName | None = Field(
        default=None,
        description="Claim: a PersistentVolumeClaim of the deployment's namespace. Pods on several nodes need ReadWriteMany.",
    )
    storage_class_name: _ObjectName | None = Field(
        default=None, description="ClaimPerPod: the claims' storage class. Unset: the cluster's default."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.type == 'HostPath' ? has(self.path) && self.path.matches('{FOLDER_PATTERN}') : !has(self.path)",
            "cache.path is a folder of the node for the type HostPath: write an absolute path such as /var/cache/turnout there,"
            " and none with another type",
            lambda cache: (
                cache.path is not None and _FOLDER.fullmatch(cache.path) is not None
                if cache.type == "HostPath"
                else cache.path is None
            ),
            field_path=".path",
        ),
        Rule(
            "(self.type == 'Claim') == has(self.claimName)",
            "cache.claimName belongs to the type Claim: name a PersistentVolumeClaim there, and none with another type",
            lambda cache: (cache.type == "Claim") == (cache.claim_name is not None),
            field_path=".claimName",
        ),
        Rule(
            "self.type == 'ClaimPerPod' ? has(self.size) : self.type == 'EmptyDir' || !has(self.size)",
            "cache.size is needed by the type ClaimPerPod, possible with EmptyDir, and without effect on HostPath and Claim:"
            " write one such as 200Gi, or remove it",
            lambda cache: (
                cache.size is not None
                if cache.type == "ClaimPerPod"
                else cache.type == "EmptyDir" or cache.size is None
            ),
            field_path=".size",
        ),
        Rule(
            "self.type == 'ClaimPerPod' || !has(self.storageClassName)",
            "cache.storageClassName has no effect without the type ClaimPerPod: remove it",
            lambda cache: cache.type == "ClaimPerPod" or cache.storage_class_name is None,
            field_path=".storageClassName",
        ),
    )


class ModelSource(Model):
    """Which model, where its files come from, and under which names clients call it."""

    source: SourceText
    revision: Revision = Field(
        default=DEFAULT_REVISION,
        description="Branch, tag or commit of a hf:// source. A change rolls prefill and decode out together.",
    )
    secret_name: _ObjectName | None = Field(
        default=None,
        description="A Secret of the deployment's namespace. hf://: key HF_TOKEN. s3://: AWS_ACCESS_KEY_ID,"
        " AWS_SECRET_ACCESS_KEY and, where there are any, AWS_SESSION_TOKEN and AWS_REGION. gs://: GOOGLE_SERVICE_ACCOUNT_KEY,"
        " the key's JSON. oci://: a pull secret. Adapters use it as well. Unset: public sources, or the pod's own identity.",
    )
    endpoint: (
        Annotated[
            str,
            Field(max_length=256),
            Rule(
                f"self.matches('{ENDPOINT_PATTERN}')",
                "not an endpoint: write a URL without user, query or fragment, such as https://hub.example.com",
                is_endpoint,
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="hf://: a mirror of the hub (HF_ENDPOINT). s3://: the server's URL. Unset: huggingface.co, or Amazon S3."
        " Adapters with a source of the same kind use it as well.",
    )
    files: SourceFiles = Field(
        default_factory=SourceFiles, description="Which files of a hf://, s3:// or gs:// source are copied."
    )
    cache: ModelCache = Field(
        default_factory=ModelCache,
        description="Where a worker keeps the files of hf://, s3:// and gs:// sources.",
    )
    prefetch: bool = Field(
        default=False,
        description="Fill a cache that outlives the pod by a Job before the first worker of a revision starts.",
    )
    served_names: Annotated[list[ServedName], Unique(), SERVED_NAMES] = Field(
        default_factory=list,
        max_length=16,
        description="Names that clients put into the field `model`. Empty: the name of this LLMDeployment.",
    )
    max_length: int = Field(
        default=32768,
        ge=256,
        le=1_048_576,
        description="Longest prompt plus output, in tokens. Longer requests are refused with 400.",
    )
    architecture: Architecture | None = Field(
        default=None,
        description="The model's size, by its config.json, for `ModelFits` and the simulated engine. Unset: that of the"
        " models that Turnout knows by their source; of others it is not known before a worker runs, and not checked.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        REVISION_OF_HUB,
        Rule(
            "!has(self.endpoint) || self.source.startsWith('hf://') || self.source.startsWith('s3://')",
            "model.endpoint has no effect on a source other than hf:// and s3://: remove it",
            lambda model: model.endpoint is None or scheme_of(model.source) in {"hf", "s3"},
            field_path=".endpoint",
        ),
        Rule(
            "self.source.matches('^(hf|s3|gs)://') || (self.files.allow.size() == 0 && self.files.ignore.size() == 0)",
            "model.files has no effect on a source whose files are not copied: remove it, or use hf://, s3:// or gs://",
            lambda model: scheme_of(model.source) in DOWNLOADED or model.files == SourceFiles(),
            field_path=".files",
        ),
        Rule(
            "!self.prefetch || (self.source.matches('^(hf|s3|gs)://')"
            " && (self.cache.type == 'Claim' || self.cache.type == 'HostPath'))",
            "model.prefetch needs files that are copied (hf://, s3:// or gs://) and a cache that outlives the pod: set"
            " cache.type to Claim or HostPath, or remove prefetch",
            lambda model: (
                not model.prefetch
                or (scheme_of(model.source) in DOWNLOADED and model.cache.type in LASTING_CACHES)
            ),
            field_path=".prefetch",
        ),
    )
