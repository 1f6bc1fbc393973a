"""Where a model or a LoRA adapter comes from: the text of `model.source`, and the value behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

Scheme = Literal["hf", "pvc", "s3", "gs", "oci", "file"]
SCHEMES: Final[tuple[Scheme, ...]] = get_args(Scheme)
DOWNLOADED: Final = frozenset[Scheme]({"hf", "s3", "gs"})
"""Schemes whose files a worker copies into its cache. What the others name is mounted or lies on the node."""
MAX_SOURCE_LENGTH: Final = 512

DEFAULT_REVISION: Final = "main"
REVISION_PATTERN: Final = "^[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*$"
ENDPOINT_PATTERN: Final = (
    "^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$"
)
SCHEME_PATTERN: Final = f"^({'|'.join(SCHEMES)})://"
NO_SCHEME: Final = (
    "not a model source: begin with hf:// (the Hugging Face hub), pvc:// (a claim), s3:// or gs:// (a bucket), oci:// (an image)"
    " or file:// (a folder of the node), such as hf://meta-llama/Llama-3.1-8B-Instruct"
)

_NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]*"
# After a leading dot comes a letter: `.` and `..` are no names of folders.
_FOLDERS: Final = "(/[.]?[A-Za-z0-9_][A-Za-z0-9._=+@-]*)"
FOLDER_PATTERN: Final = f"^{_FOLDERS}+$"
"""An absolute path."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a source of one scheme is written."""

    pattern: str
    """Matches a whole source. RE2 and Python read it alike."""
    says: str
    """What to write instead of a source that does not match."""


FORMS: Final[dict[Scheme, Form]] = {
    "hf": Form(
        f"^hf://({_NAME})/({_NAME})$",
        "not a repository of the hub: write hf://ORGANIZATION/NAME, such as hf://meta-llama/Llama-3.1-8B-Instruct; a branch,"
        " tag or commit goes into revision",
    ),
    "pvc": Form(
        f"^pvc://([a-z0-9]([a-z0-9.-]*[a-z0-9])?)({_FOLDERS}*)/?$",
        "not a folder of a claim: write pvc://CLAIM/FOLDER, such as pvc://models/llama-3.1-8b; the claim is in the"
        " deployment's namespace",
    ),
    "s3": Form(
        f"^s3://([a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9])({_FOLDERS}*)/?$",
        "not a folder of a bucket: write s3://BUCKET/FOLDER, such as s3://models/llama-3.1-8b",
    ),
    "gs": Form(
        f"^gs://([a-z0-9][a-z0-9._-]{{1,61}}[a-z0-9])({_FOLDERS}*)/?$",
        "not a folder of a bucket: write gs://BUCKET/FOLDER, such as gs://models/llama-3.1-8b",
    ),
    "oci": Form(
        "^oci://([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
        "(@sha256:[a-f0-9]{64})?)$",
        "not an image: write oci://REGISTRY/REPOSITORY:TAG or oci://REGISTRY/REPOSITORY@sha256:DIGEST, such as"
        " oci://registry.example.com/models/llama:1",
    ),
    "file": Form(
        f"^file://({_FOLDERS}+)/?$",
        "not a folder of the node: write file:///FOLDER with three slashes, such as file:///models/llama-3.1-8b",
    ),
}
_COMPILED: Final = {scheme: re.compile(form.pattern) for scheme, form in FORMS.items()}
_SCHEME: Final = re.compile(SCHEME_PATTERN)
_REVISION: Final = re.compile(REVISION_PATTERN)
_ENDPOINT: Final = re.compile(ENDPOINT_PATTERN)


class InvalidSourceError(ValueError):
    """Text that is no source. Its message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source, taken apart."""

    scheme: Scheme
    place: str
    """hf: ``ORGANIZATION/NAME``; pvc: the claim; s3, gs: the bucket; oci: the image's reference; file: empty."""
    path: str = ""
    """pvc, s3, gs: the folder in it, without slashes at its ends, empty: all of it; file: the absolute path; else empty."""

    @property
    def downloaded(self) -> bool:
        """Whether a worker copies its files into a cache."""
        return self.scheme in DOWNLOADED

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}{'/' if self.place and self.path else ''}{self.path}"


def scheme_of(text: str) -> Scheme | None:
    """Return the scheme that *text* begins with. None: not one of a source's."""
    match = _SCHEME.match(text)
    return next((scheme for scheme in SCHEMES if match[1] == scheme), None) if match else None


def has_form(text: str, scheme: Scheme) -> bool:
    """Whether *text* is a source of *scheme*."""
    return _COMPILED[scheme].fullmatch(text) is not None


def is_revision(text: str) -> bool:
    """Whether *text* can be the name of a branch, tag or commit on the hub."""
    return _REVISION.fullmatch(text) is not None


def is_endpoint(text: str) -> bool:
    """Whether *text* is the address of a hub's mirror or of an S3 server."""
    return _ENDPOINT.fullmatch(text) is not None


def parse_source(text: str) -> Source:
    """Take *text* apart. Raise InvalidSourceError, saying what to write instead."""
    scheme = scheme_of(text)
    if scheme is None:
        raise InvalidSourceError(f"{text!r} is {NO_SCHEME}")
    if not has_form(text, scheme):
        raise InvalidSourceError(f"{text!r} is {FORMS[scheme].says}")
    rest = text.removeprefix(f"{scheme}://")
    match scheme:
        case "hf" | "oci":
            return Source(scheme, rest)
        case "file":
            return Source(scheme, "", rest.rstrip("/"))
        case _:
            place, _, path = rest.partition("/")
            return Source(scheme, place, path.rstrip("/"))
