"""s3:// and gs:// sources: the objects below a folder of a bucket."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, S3Store

from turnout_worker.errors import (
    ChecksumError,
    NotFoundError,
    SourceError,
    UnauthorizedError,
    UnreachableError,
)
from turnout_worker.sources.disk import disk_error, file_bytes
from turnout_worker.sources.request import Listing, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from obstore.store import ClientConfig, RetryConfig, S3Config

    from turnout_worker.sources.request import FetchRequest

SUMS: Final = "SHA256SUMS"
"""A file beside the model's, as sha256sum writes it: the checksums that a bucket itself does not give."""
_MOST_SUMS_BYTES: Final = 1 << 20
_RANGE_BYTES: Final = 16 << 20
"""Bytes of one request: each has a deadline and retries of its own, and a download resumes behind the last whole one."""
_RETRY: Final[RetryConfig] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
_IDENTITIES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Variables of which one is set where requests to S3 can be signed. Without any, a bucket is taken to be public."""
_STATUS: Final = re.compile(r"status code: (\d{3})")


class Bucket:
    """The objects below a folder of a bucket."""

    def __init__(self, request: FetchRequest) -> None:
        self._request = request
        source = request.source
        options: ClientConfig = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=120)}
        with self._errors():
            self._store = self._opened(options)
        self._prefix = f"{source.path}/" if source.path else ""

    def _opened(self, options: ClientConfig) -> S3Store | GCSStore:
        request, source = self._request, self._request.source
        if source.scheme == "gs":
            # Google's own address is https: only a key that names another server, an emulator's, leads to http.
            options["allow_http"] = True
            return GCSStore(source.place, client_options=options, retry_config=_RETRY)
        config: S3Config = {}
        if request.endpoint is not None:
            config["endpoint"] = request.endpoint.rstrip("/")
            options["allow_http"] = request.endpoint.startswith("http://")
        if not any(os.environ.get(name) for name in _IDENTITIES):
            config["skip_signature"] = True
        return S3Store(source.place, config=config, client_options=options, retry_config=_RETRY)

    def listing(self) -> Listing:
        """Return all objects below the folder, with the checksums of SHA256SUMS where there is one. Raise SourceError."""
        with self._errors():
            objects = [
                each for page in obstore.list(self._store, prefix=self._prefix or None) for each in page
            ]
        files = [
            RemoteFile(each["path"].removeprefix(self._prefix), each["size"], "", each["e_tag"])
            for each in objects
            if each["size"] > 0 or not each["path"].endswith("/")
        ]
        if not files:
            raise NotFoundError(
                f"{self._request.source}: nothing lies there: correct the bucket or the folder in model.source"
            )
        sums = self._sums() if any(file.path == SUMS for file in files) else {}
        return Listing(
            tuple(
                RemoteFile(file.path, file.size, sums.get(file.path, ""), file.etag)
                for file in files
                if file.path != SUMS
            )
        )

    def _sums(self) -> dict[str, str]:
        with self._errors():
            text = bytes(
                obstore.get_range(self._store, self._prefix + SUMS, start=0, length=_MOST_SUMS_BYTES)
            )
        pairs = (
            line.split(maxsplit=1) for line in text.decode(errors="replace").splitlines() if line.strip()
        )
        return {
            pair[1].removeprefix("*").removeprefix("./").strip(): f"sha256:{pair[0].lower()}"
            for pair in pairs
            if len(pair) == 2  # noqa: PLR2004 - a checksum and a name
        }

    def prepare(self, listing: Listing) -> None:
        """Remove parts of versions that the bucket no longer has."""
        parts = {self._part(file) for file in listing.files}
        for left in self._request.folder.rglob("*.part"):
            if left not in parts:
                left.unlink(missing_ok=True)

    def partial_bytes(self) -> int:
        """Return the bytes of files that are not whole yet."""
        return sum(file_bytes(path) for path in self._request.folder.rglob("*.part"))

    def download(self, file: RemoteFile, version: str) -> None:
        """Put *file* into the folder, behind what an earlier process has copied of it. Raise SourceError."""
        del version
        part = self._part(file)
        with self._errors(file):
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("ab") as target:
                while (start := target.tell()) < file.size:
                    got = obstore.get(
                        self._store,
                        self._prefix + file.path,
                        options={
                            "range": (start, min(start + _RANGE_BYTES, file.size)),
                            "if_match": file.etag,
                        },
                    )
                    target.write(got.bytes())
                    target.flush()
            part.replace(self._request.folder / file.path)

    def _part(self, file: RemoteFile) -> Path:
        digest = hashlib.sha256(f"{file.etag} {file.size}".encode()).hexdigest()[:8]
        return self._request.folder / f"{file.path}.{digest}.part"

    @contextmanager
    def _errors(self, file: RemoteFile | None = None) -> Generator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise self._translated(error, file) from error

    def _translated(self, error: Exception, file: RemoteFile | None) -> SourceError:
        source = self._request.source
        what = f"{source}: {file.path}" if file else f"{source}"
        where = self._request.endpoint or ("Google Cloud Storage" if source.scheme == "gs" else "Amazon S3")
        keys = (
            "GOOGLE_SERVICE_ACCOUNT_KEY"
            if source.scheme == "gs"
            else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        if "credential error" in str(error):
            return UnauthorizedError(
                f"{what}: {keys} cannot be used ({str(error).splitlines()[0]}): put the whole JSON of the key into the Secret that"
                " model.secretName names"
            )
        # A listing's errors have no type of their own: their text has the status.
        match = _STATUS.search(str(error))
        status = int(match[1]) if match else 0
        if isinstance(error, (UnauthenticatedError, PermissionDeniedError)) or status in {401, 403}:
            given = any(os.environ.get(name) for name in keys.split(" and "))
            which = f"the given {keys}" if given else "a request without keys"
            return UnauthorizedError(
                f"{what}: {where} refuses {which}: name a Secret in model.secretName whose {keys} may list and read the bucket"
            )
        if isinstance(error, FileNotFoundError) or status == HTTPStatus.NOT_FOUND:
            return NotFoundError(f"{what}: {where} has no such bucket or object: correct model.source")
        if isinstance(error, PreconditionError):
            return ChecksumError(
                f"{what} was replaced while it was copied: it is begun anew at the next start"
            )
        if isinstance(error, OSError) and (full := disk_error(self._request, error, file)):
            return full
        text = str(error).strip().splitlines()
        return UnreachableError(
            f"{what} could not be had from {where} ({text[0] if text else type(error).__name__}): let the pod reach it, or set"
            " model.endpoint"
        )
