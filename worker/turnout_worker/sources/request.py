"""What is to be fetched, what a source has of it, and how far it is."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from turnout.sources import DEFAULT_REVISION

if TYPE_CHECKING:
    from pathlib import Path

    from turnout.sources import Source

Kind = Literal["model", "adapter"]


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """A model or an adapter, and where its files shall lie."""

    source: Source
    cache: Path
    """Folder in which each source that is copied has a folder of its own."""
    kind: Kind = "model"
    revision: str = DEFAULT_REVISION
    endpoint: str | None = None
    """Of the hub's mirror or the S3 server. None: huggingface.co, or Amazon S3."""
    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    limit_bytes: int | None = None
    """Most bytes that the cache may hold, where the file system does not say it (an emptyDir's sizeLimit). None: no such limit."""
    mounted: Path | None = None
    """Where a pvc:// or oci:// source is mounted."""
    lock_seconds: float = 4 * 3600.0
    """How long to wait for another process that fills the same folder."""
    report_seconds: float = 5.0
    """Seconds between two reports of progress."""

    @property
    def folder(self) -> Path:
        """Where the files of a source that is copied lie. Requests that differ in what they copy have different ones."""
        what = {
            "source": str(self.source),
            "revision": self.revision,
            "allow": sorted(self.allow),
            "ignore": sorted(self.ignore),
            # A mirror of the hub has the hub's files; a bucket of another S3 server is another bucket.
            "endpoint": self.endpoint if self.source.scheme == "s3" else None,
        }
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
        readable = re.sub("[^A-Za-z0-9._]+", "-", f"{self.source.place}-{self.source.path}").strip("-.")
        return self.cache / f"{self.source.scheme}-{readable[:80]}-{digest}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a source."""

    path: str
    """Relative to the model's folder, with slashes."""
    size: int
    checksum: str = ""
    """``sha256:HEX``, or ``git:HEX`` of a git blob. Empty: the source gives none."""
    etag: str | None = None
    """What the source calls this version of the file, where it has a name for it."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source has of a request, after its patterns."""

    files: tuple[RemoteFile, ...]
    version: str = ""
    """The commit that the revision stands for. Empty: the source has none."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is."""

    bytes_done: int
    bytes_total: int
