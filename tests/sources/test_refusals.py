"""What is wrong with a source is an error of its own kind, with a sentence that says what to do."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from support.sources_servers import FILES, Served
from support.worker_process import free_port
from turnout.sources import parse_source
from turnout_worker import errors
from turnout_worker.sources.disk import disk_error
from turnout_worker.sources.fetch import fetch
from turnout_worker.sources.request import FetchRequest, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A source, how its server behaves, and the error that this is."""

    name: str
    error: type[errors.SourceError]
    says: str
    """URL stands for the server's."""
    served: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the server."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the request."""
    source: str = "hf://acme/tiny"
    token: str | None = None

    def check(self, server: Served, cache: Path) -> None:
        for name, value in self.served.items():
            setattr(server, name, value)
        request = FetchRequest(parse_source(self.source), cache, endpoint=server.url, **self.fields)
        with pytest.raises(self.error) as refusal:
            fetch(request)
        assert type(refusal.value) is self.error
        assert self.says.replace("URL", server.url) in str(refusal.value)
        assert not list(cache.rglob(".turnout-complete.json"))


WITHOUT_CONFIG = {name: data for name, data in FILES.items() if name != "config.json"}
HUB_CASES = [
    Case(
        "no-repository",
        errors.NotFoundError,
        "hf://acme/other: URL has no such repository, or a private one, which needs model.secretName (404): correct"
        " model.source",
        source="hf://acme/other",
    ),
    Case(
        "no-token",
        errors.UnauthorizedError,
        "hf://acme/tiny: URL asks for a token (401): the repository is private, or does not exist. Correct model.source, or"
        " name a Secret with the key HF_TOKEN in model.secretName",
        {"token": "hf_right"},
    ),
    Case(
        "wrong-token",
        errors.UnauthorizedError,
        "hf://acme/tiny: URL refuses HF_TOKEN (401): put a token that may read this repository into the Secret",
        {"token": "hf_right"},
        token="hf_wrong",
    ),
    Case(
        "gated",
        errors.GatedError,
        "hf://acme/tiny is gated: accept its terms at https://huggingface.co/acme/tiny with the account of HF_TOKEN",
        {"gated": True},
        token="hf_right",
    ),
    Case(
        "gated-without-token",
        errors.GatedError,
        "accept its terms at https://huggingface.co/acme/tiny with an account, and give its token as HF_TOKEN in the Secret",
        {"gated": True},
    ),
    Case(
        "no-revision",
        errors.RevisionError,
        "hf://acme/tiny has no revision v9: write one of its branches, tags or commits into model.revision",
        fields={"revision": "v9"},
    ),
    Case(
        "broken-hub",
        errors.UnreachableError,
        "hf://acme/tiny: URL answers 500: it is tried again at the next start",
        {"status": 500},
    ),
    Case(
        "nothing-matched",
        errors.NothingMatchedError,
        "none of the 6 files of hf://acme/tiny is copied with allow ['*.awq'] and ignore ['original/*']: change model.files;"
        " the source has config.json, model-1.safetensors, model-2.safetensors, original/notes.md, pytorch_model.bin and 1 more",
        fields={"allow": ("*.awq",), "ignore": ("original/*",)},
    ),
    Case(
        "without-its-configuration",
        errors.NotAModelError,
        "the patterns of model.files leave out config.json of hf://acme/tiny: allow it, engines need it",
        fields={"allow": ("*.safetensors",)},
    ),
    Case(
        "data-set",
        errors.NotAModelError,
        "hf://acme/tiny is no model: it has no config.json at its top; it has model-1.safetensors, model-2.safetensors",
        {"files": WITHOUT_CONFIG},
    ),
    Case(
        "model-in-a-folder",
        errors.NotAModelError,
        "it has no config.json at its top; there is one in 8b: put the model into a place of its own",
        {"files": WITHOUT_CONFIG | {"8b/config.json": b"{}"}},
    ),
    Case(
        "path-that-leads-out",
        errors.NotAModelError,
        "hf://acme/tiny has a file '../evil', which leads out of its folder: nothing of it is copied",
        {"files": {**FILES, "../evil": b"x"}},
    ),
    Case(
        "model-as-adapter",
        errors.NotAModelError,
        "hf://acme/tiny is no adapter: it has no adapter_config.json at its top",
        fields={"kind": "adapter"},
    ),
    Case(
        "damaged",
        errors.ChecksumError,
        "model-1.safetensors came with the checksum sha256:",
        {"damaged": {"model-1.safetensors"}},
    ),
    Case(
        "damaged-text",
        errors.ChecksumError,
        "config.json came with the checksum git:",
        {"damaged": {"config.json"}},
    ),
    Case(
        "larger-than-the-limit",
        errors.NoSpaceError,
        "hf://acme/tiny has 2.1 MB; the cache may hold 2.0 MB and would have 97.2 kB too much. Raise model.cache.size",
        fields={"limit_bytes": 2_000_000},
    ),
]


@pytest.mark.parametrize("case", HUB_CASES, ids=lambda case: case.name)
def test_hub(hub: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """Each cause has its type and its sentence, and leaves nothing that is taken for complete."""
    if case.token:
        monkeypatch.setenv("HF_TOKEN", case.token)
    case.check(hub, tmp_path)


IN_BUCKET = {f"tiny/{name}": data for name, data in FILES.items()}
S3_CASES = [
    Case(
        "no-bucket",
        errors.NotFoundError,
        "s3://other/tiny: URL has no such bucket or object: correct model.source",
        source="s3://other/tiny",
    ),
    Case(
        "no-folder",
        errors.NotFoundError,
        "s3://models/large: nothing lies there: correct the bucket or the folder in model.source",
        source="s3://models/large",
    ),
    Case(
        "wrong-keys",
        errors.UnauthorizedError,
        "s3://models/tiny: URL refuses the given AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: name a Secret in"
        " model.secretName whose AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY may list and read the bucket",
        {"token": "another"},
        source="s3://models/tiny",
    ),
    Case(
        "damaged",
        errors.ChecksumError,
        f"instead of sha256:{'0' * 64}",
        {"files": IN_BUCKET | {"tiny/SHA256SUMS": f"{'0' * 64} *config.json\n".encode()}},
        source="s3://models/tiny",
    ),
    Case(
        "folder-above",
        errors.NotAModelError,
        "there is one in tiny: add that folder to model.source",
        source="s3://models",
    ),
]


@pytest.mark.parametrize("case", S3_CASES, ids=lambda case: case.name)
def test_bucket(s3: Served, tmp_path: Path, case: Case) -> None:
    """A bucket's causes have the same types, and sentences of their own."""
    case.check(s3, tmp_path)


@pytest.mark.parametrize("source", ["hf://acme/tiny", "s3://models/tiny"])
def test_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """An endpoint at which nothing listens is named, with what may be done."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        errors.UnreachableError, match=f"{source} could not be had from {url} .*model.endpoint"
    ):
        fetch(FetchRequest(parse_source(source), tmp_path, endpoint=url))


def test_no_space(hub: Served, tmp_path: Path) -> None:
    """Before the first byte the arithmetic says that the files do not fit."""
    with pytest.raises(errors.NoSpaceError) as refusal:
        fetch(
            FetchRequest(parse_source("hf://acme/tiny"), tmp_path, endpoint=hub.url), free=lambda _: 1_500_000
        )
    assert f"hf://acme/tiny has 2.1 MB; {tmp_path} has 1.5 MB free: 597.2 kB too little" in str(refusal.value)
    assert hub.requests == []


def test_no_space_for_the_rest(hub: Served, tmp_path: Path) -> None:
    """What is here already needs no room again."""
    request = FetchRequest(parse_source("hf://acme/tiny"), tmp_path, endpoint=hub.url)
    hub.damaged.add("model-2.safetensors")
    with pytest.raises(errors.ChecksumError):
        fetch(request)
    hub.damaged.clear()
    with pytest.raises(
        errors.NoSpaceError, match=r"of which 1\.0 MB are here: 1\.0 MB are to be copied; .* 1\.0 MB free"
    ):
        fetch(request, free=lambda _: 1_048_000)
    assert fetch(request, free=lambda _: 1_100_000) == request.folder


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.ENOSPC, errors.NoSpaceError, "is full while model.safetensors (1.0 kB) was copied"),
        (errno.EDQUOT, errors.NoSpaceError, "use a larger cache (model.cache)"),
        (errno.EROFS, errors.CacheError, "cannot be written by user"),
        (errno.EACCES, errors.CacheError, "by the pod's fsGroup"),
    ],
)
def test_disk(tmp_path: Path, number: int, kind: type[errors.SourceError], says: str) -> None:
    """What a disk says while a file is copied becomes a sentence about the cache."""
    request = FetchRequest(parse_source("hf://acme/tiny"), tmp_path)
    found = disk_error(request, OSError(number, os.strerror(number)), RemoteFile("model.safetensors", 1000))
    assert isinstance(found, kind)
    assert says in str(found)


def test_cache_in_the_way(hub: Served, tmp_path: Path) -> None:
    """What stands in the way inside the cache's folder is an error of the cache, too."""
    request = FetchRequest(parse_source("hf://acme/tiny"), tmp_path, endpoint=hub.url)
    (request.folder / ".turnout-verified.jsonl").mkdir(parents=True)
    with pytest.raises(errors.CacheError, match=r"cannot be used: .*Is a directory"):
        fetch(request)


def test_cache_is_a_file(tmp_path: Path) -> None:
    """A cache that is no folder is refused before the source is asked."""
    (tmp_path / "cache").touch()
    with pytest.raises(errors.CacheError, match="cache cannot be written: "):
        fetch(FetchRequest(parse_source("hf://acme/tiny"), tmp_path / "cache"))


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(FILES["config.json"])
    return folder


def test_folder_of_the_node(tmp_path: Path) -> None:
    """A file:// source is used where it lies."""
    folder = make_model(tmp_path / "llama")
    assert fetch(FetchRequest(parse_source(f"file://{folder}"), tmp_path / "cache")) == folder


@pytest.mark.parametrize("inner", ["", "models", "model"])
def test_image(tmp_path: Path, inner: str) -> None:
    """The model lies at the top of an image, or where KServe's model cars have it."""
    folder = make_model(tmp_path / "image" / inner)
    source = parse_source("oci://registry.example.com/llama:1")
    assert fetch(FetchRequest(source, tmp_path / "cache", mounted=tmp_path / "image")) == folder


def test_claim(tmp_path: Path) -> None:
    """A pvc:// source is used where it is mounted; what is mounted there has to be a model."""
    source = parse_source("pvc://models/llama")
    folder = make_model(tmp_path / "llama" / "8b")
    assert fetch(FetchRequest(source, tmp_path, mounted=folder)) == folder
    with pytest.raises(errors.NotAModelError, match=r"there is one in 8b: add that folder to model.source"):
        fetch(FetchRequest(source, tmp_path, mounted=folder.parent))
    with pytest.raises(errors.NotFoundError, match="is not mounted: say where with --mounted"):
        fetch(FetchRequest(source, tmp_path))


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("missing", errors.NotFoundError, "there is no folder .*missing on this node: put the model there"),
        ("file", errors.NotFoundError, "is a file: name the folder that it lies in"),
        ("empty", errors.NotAModelError, "it has no config.json at its top; it is empty"),
    ],
)
def test_wrong_folder(tmp_path: Path, path: str, kind: type[errors.SourceError], says: str) -> None:
    """A folder that holds no model is refused with what is wrong with it."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind, match=says):
        fetch(FetchRequest(parse_source(f"file://{tmp_path / path}"), tmp_path / "cache"))
