"""hf:// sources: repositories of the Hugging Face hub or of a mirror, through its own client."""

from __future__ import annotations

import os
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from turnout_worker.errors import (
    GatedError,
    NotFoundError,
    RevisionError,
    SourceError,
    UnauthorizedError,
    UnreachableError,
)
from turnout_worker.sources.disk import disk_error, file_bytes
from turnout_worker.sources.request import Listing, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Generator

    from turnout_worker.sources.request import FetchRequest

PUBLIC: Final = "https://huggingface.co"
_LISTING_SECONDS: Final = 30.0
_WORK_FOLDER: Final = ".cache/huggingface/download"
# The HTTP library's base error: httpx or its successor, by the client's release.
_HTTP_ERROR: Final = cast("type[Exception]", HfHubHTTPError.__bases__[0])


class Hub:
    """A repository at one revision."""

    def __init__(self, request: FetchRequest) -> None:
        self._request = request
        self._endpoint = (request.endpoint or os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")
        # False: no token that another program has left in the home folder.
        self._token: str | bool = os.environ.get("HF_TOKEN") or False
        disable_progress_bars()

    def listing(self) -> Listing:
        """Return all files of the revision. Raise SourceError."""
        api = HfApi(endpoint=self._endpoint, token=self._token)
        with self._errors():
            info = api.model_info(
                self._request.source.place,
                revision=self._request.revision,
                files_metadata=True,
                timeout=_LISTING_SECONDS,
            )
        files = []
        for each in info.siblings or ():
            check = f"sha256:{each.lfs.sha256}" if each.lfs else f"git:{each.blob_id}" if each.blob_id else ""
            files.append(RemoteFile(each.rfilename, each.size or 0, check))
        return Listing(tuple(files), info.sha or "")

    def prepare(self, listing: Listing) -> None:
        """Remove what a killed process has left: the client begins such a file anew."""
        del listing
        for left in (self._request.folder / _WORK_FOLDER).rglob("*.incomplete"):
            left.unlink(missing_ok=True)

    def partial_bytes(self) -> int:
        """Return the bytes of files that are not whole yet."""
        return sum(file_bytes(path) for path in (self._request.folder / _WORK_FOLDER).rglob("*.incomplete"))

    def download(self, file: RemoteFile, version: str) -> None:
        """Put *file* of the commit *version* into the folder; a cut connection is resumed. Raise SourceError."""
        with self._errors(file):
            hf_hub_download(
                self._request.source.place,
                file.path,
                revision=version or self._request.revision,
                local_dir=self._request.folder,
                endpoint=self._endpoint,
                token=self._token,
                # What stands in the way was not verified: the client's own notes on it are no proof.
                force_download=(self._request.folder / file.path).exists(),
            )

    @contextmanager
    def _errors(self, file: RemoteFile | None = None) -> Generator[None]:
        try:
            yield
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, _HTTP_ERROR, OSError) as error:
            raise self._translated(error, file) from error

    def _translated(self, error: Exception, file: RemoteFile | None) -> SourceError:
        source, place = self._request.source, self._request.source.place
        what = f"{source}: {file.path}" if file else f"{source}"
        if isinstance(error, GatedRepoError):
            account = (
                "the account of HF_TOKEN" if self._token else "an account, and give its token as HF_TOKEN"
            )
            return GatedError(
                f"{source} is gated: accept its terms at {PUBLIC}/{place} with {account} in the Secret that model.secretName names"
            )
        if isinstance(error, RevisionNotFoundError):
            return RevisionError(
                f"{source} has no revision {self._request.revision}: write one of its branches, tags or commits into model.revision"
            )
        if isinstance(error, HfHubHTTPError):
            return self._of_status(error, what)
        if isinstance(error, OSError) and (full := disk_error(self._request, error, file)):
            return full
        if isinstance(error, HFValidationError):
            return NotFoundError(f"{source} cannot be a repository: {error}")
        return UnreachableError(
            f"{what} could not be had from {self._endpoint} ({_in_words(error)}): let the pod reach it, or set model.endpoint to"
            " a mirror"
        )

    def _of_status(self, error: HfHubHTTPError, what: str) -> SourceError:
        status = error.response.status_code
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            if self._token:
                return UnauthorizedError(
                    f"{what}: {self._endpoint} refuses HF_TOKEN ({status}): put a token that may read this repository into the"
                    " Secret that model.secretName names"
                )
            return UnauthorizedError(
                f"{what}: {self._endpoint} asks for a token ({status}): the repository is private, or does not exist. Correct"
                " model.source, or name a Secret with the key HF_TOKEN in model.secretName"
            )
        if isinstance(error, RepositoryNotFoundError) or status == HTTPStatus.NOT_FOUND:
            private = "" if self._token else ", or a private one, which needs model.secretName"
            return NotFoundError(
                f"{what}: {self._endpoint} has no such repository{private} (404): correct model.source"
            )
        return UnreachableError(
            f"{what}: {self._endpoint} answers {status}: it is tried again at the next start; where that repeats, look at the"
            " hub's or the mirror's state"
        )


def _in_words(error: Exception) -> str:
    # The client wraps what happened into advice about its own options: the cause is what helps.
    cause = error.__cause__ or error
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0]}" if text else type(cause).__name__
