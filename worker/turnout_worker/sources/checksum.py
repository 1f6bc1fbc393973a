"""What a file's content is, compared with what the source says; and which files were found right, across restarts."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

from turnout_worker.errors import ChecksumError
from turnout_worker.sources.disk import file_bytes, size

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_worker.sources.request import RemoteFile

_BLOCK_BYTES: Final = 1 << 20
JOURNAL: Final = ".turnout-verified.jsonl"


def checksum(path: Path, kind: str) -> str:
    """Return the checksum of *kind* (``sha256``, or ``git`` for a git blob's) of the file at *path*, as RemoteFile has it."""
    if kind == "git":
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"


def verify(path: Path, file: RemoteFile) -> None:
    """Raise ChecksumError, and remove the file at *path*, where it is not *file*."""
    present = file_bytes(path)
    if present != file.size:
        wrong = f"{size(present)} instead of {size(file.size)}"
    elif file.checksum and (found := checksum(path, file.checksum.partition(":")[0])) != file.checksum:
        wrong = f"the checksum {found} instead of {file.checksum}"
    else:
        return
    path.unlink(missing_ok=True)
    raise ChecksumError(
        f"{file.path} came with {wrong}: it was removed and is copied again at the next start; where that repeats, the source,"
        " or a proxy before it, is damaged"
    )


class Journal:
    """Which files of a folder were verified, so that a resumed download does not read them all again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._verified: set[tuple[str, int, str]] = set()
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    path, length, check = json.loads(line)
                except ValueError:
                    continue  # the process ended while it wrote this line
                self._verified.add((path, length, check))

    def has(self, file: RemoteFile) -> bool:
        """Whether *file* was verified, in this very version."""
        return (file.path, file.size, file.checksum or file.etag or "") in self._verified

    def add(self, file: RemoteFile) -> None:
        """Remember that *file* was verified. Callers take turns."""
        entry = (file.path, file.size, file.checksum or file.etag or "")
        self._verified.add(entry)
        with self._path.open("a") as journal:
            journal.write(json.dumps(entry) + "\n")
