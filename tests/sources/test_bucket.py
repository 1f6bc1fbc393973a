"""Folders of a bucket, fetched by a real client from a server that speaks S3's API."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from support.sources_servers import FILES, WEIGHTS, Served
from turnout.sources import parse_source
from turnout_worker import errors
from turnout_worker.sources.fetch import fetch
from turnout_worker.sources.request import FetchRequest, Progress

if TYPE_CHECKING:
    from pathlib import Path

COPIED = {name: data for name, data in FILES.items() if name != "pytorch_model.bin"}


def request(s3: Served, cache: Path, **fields: Any) -> FetchRequest:
    return FetchRequest(parse_source("s3://models/tiny"), cache, endpoint=s3.url, **fields)


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of *folder* that are the model's own."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".turnout-"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_whole_folder(s3: Served, tmp_path: Path) -> None:
    """What lies below the folder is copied, under its name in it."""
    s3.token = "reader"
    seen: list[Progress] = []
    assert content(fetch(request(s3, tmp_path), on_progress=seen.append)) == COPIED
    assert seen[-1].bytes_done == seen[-1].bytes_total == sum(map(len, COPIED.values()))


def test_second_time(s3: Served, tmp_path: Path) -> None:
    """What is complete is used without asking the bucket."""
    folder = fetch(request(s3, tmp_path))
    s3.status = 500
    assert fetch(request(s3, tmp_path)) == folder


def test_checksums(s3: Served, tmp_path: Path) -> None:
    """A file SHA256SUMS beside the model's is what they are compared with, and is not one of them."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  ./{name}\n" for name, data in COPIED.items()]
    s3.files["tiny/SHA256SUMS"] = "".join(lines).encode()
    assert content(fetch(request(s3, tmp_path))) == COPIED
    s3.damaged.add("tiny/model-1.safetensors")
    with pytest.raises(errors.ChecksumError, match=r"model-1\.safetensors came with the checksum"):
        fetch(request(s3, tmp_path / "another"))


def test_resumed_inside_a_file(s3: Served, tmp_path: Path) -> None:
    """A download goes on behind the last byte that an earlier process has copied."""
    asked = request(s3, tmp_path)
    whole = fetch(asked)
    (part,) = [
        path.with_name(f"{path.name}.{_digest('tiny/model-1.safetensors', s3)}.part")
        for path in whole.glob("model-1.safetensors")
    ]
    (whole / "model-1.safetensors").unlink()
    (whole / ".turnout-complete.json").unlink()
    part.write_bytes(WEIGHTS[:400_000])
    s3.requests.clear()
    assert content(fetch(asked)) == COPIED
    assert s3.gets("tiny/model-1.safetensors") == [f"bytes=400000-{len(WEIGHTS) - 1}"]


def test_part_of_an_older_version(s3: Served, tmp_path: Path) -> None:
    """A part of a file that was replaced meanwhile is thrown away: two versions are never joined."""
    asked = request(s3, tmp_path)
    asked.folder.mkdir(parents=True)
    stale = asked.folder / f"model-1.safetensors.{_digest('tiny/model-1.safetensors', s3)}.part"
    stale.write_bytes(b"x" * 1000)
    s3.files["tiny/model-1.safetensors"] = WEIGHTS[1:] + b"!"
    assert content(fetch(asked))["model-1.safetensors"] == WEIGHTS[1:] + b"!"
    assert not stale.exists()


def _digest(key: str, s3: Served) -> str:
    """Return what the part of *key* has in its name: it stands for the version."""
    etag = f'"{hashlib.md5(s3.files[key], usedforsecurity=False).hexdigest()}"'
    return hashlib.sha256(f"{etag} {len(s3.files[key])}".encode()).hexdigest()[:8]


def test_public_bucket(s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys and without an identity of the pod a bucket is asked without a signature."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert content(fetch(request(s3, tmp_path))) == COPIED
    s3.token = "reader"
    with pytest.raises(errors.UnauthorizedError, match="refuses a request without keys: name a Secret"):
        fetch(request(s3, tmp_path / "another"))


def key_for(server: Served) -> str:
    """Return a service account's key that leads to *server* instead of Google's, as emulators have them."""
    key = {"gcs_base_url": server.url, "disable_oauth": True}
    return json.dumps({**key, "client_email": "", "private_key": "", "private_key_id": ""})


def test_google(s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gs:// source is copied in the same way: the API that its client uses is that of S3."""
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", key_for(s3))
    assert content(fetch(FetchRequest(parse_source("gs://models/tiny"), tmp_path))) == COPIED
    with pytest.raises(errors.NotFoundError, match="gs://other: Google Cloud Storage has no such bucket"):
        fetch(FetchRequest(parse_source("gs://other"), tmp_path))


def test_key_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was cut is named, and where the whole one belongs."""
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", "{")
    with pytest.raises(
        errors.UnauthorizedError, match=r"GOOGLE_SERVICE_ACCOUNT_KEY cannot be used .* the whole JSON"
    ):
        fetch(FetchRequest(parse_source("gs://models/tiny"), tmp_path))
