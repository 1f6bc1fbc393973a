"""Servers that models are fetched from: the hub's API for small repositories, and S3's for small buckets."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY: Final = "acme/tiny"
WEIGHTS: Final = bytes(range(256)) * 4096
"""A megabyte that no two places of are alike enough to be mixed up."""
FILES: Final = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer/vocab.txt": b"a\nb\n",
    "model-1.safetensors": WEIGHTS,
    "model-2.safetensors": WEIGHTS[::-1],
    "pytorch_model.bin": b"the same once more",
    "original/notes.md": b"notes",
}


@dataclass
class Served:
    """What a server holds, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    repository: str = REPOSITORY
    token: str | None = None
    """Without it everything is refused."""
    gated: bool = False
    """The files, not the listing, are refused, as the hub does."""
    status: int | None = None
    """Answer everything with it."""
    damaged: set[str] = field(default_factory=set)
    """Files that come with another byte in the middle."""
    cut: dict[str, int] = field(default_factory=dict)
    """Files whose next answer ends after so many bytes, with the connection."""
    pass_on: threading.Event = field(default_factory=threading.Event)
    """Answers with weights wait for it."""
    asked_for_weights: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, file and Range of each request for a file."""
    url: str = ""

    def gets(self, file: str) -> list[str | None]:
        """Return the Range of each GET of *file*."""
        return [span for method, path, span in self.requests if (method, path) == ("GET", file)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, name: str, **headers: str) -> None:
        served, span = self.served, self.headers.get("Range")
        served.requests.append((self.command, name, span))
        data = served.files[name]
        if name in served.damaged:
            data = data[: len(data) // 2] + b"!" + data[len(data) // 2 + 1 :]
        start, end = 0, len(data)
        if span:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", span).groups()
            start, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        if self.command == "GET" and name.endswith(".safetensors"):
            served.asked_for_weights.set()
            assert served.pass_on.wait(60)
        self.send_response(206 if span else 200)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        length = served.cut.pop(name, None)
        self.wfile.write(data[start:end] if length is None else data[start : start + length])
        self.close_connection = length is not None


class _Hub(_Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.refused():
            return None
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            return self.list(*match.groups())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        return self.answer(404)

    def refused(self) -> bool:
        """Refuse the request in the hub's ways. Return whether it was."""
        served, given = self.served, self.headers.get("Authorization")
        if served.status is not None:
            self.answer(served.status)
        elif served.token is not None and given is None:
            self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif served.token is not None and given != f"Bearer {served.token}":
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        else:
            return False
        return True

    def list(self, repository: str, revision: str) -> None:
        if repository != self.served.repository:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if revision not in {"main", COMMIT}:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        siblings = []
        for name, data in self.served.files.items():
            sibling = {"rfilename": name, "size": len(data), "blobId": _git(data)}
            if name.endswith((".safetensors", ".bin")):
                sibling["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        body = {"id": repository, "sha": COMMIT, "siblings": siblings}
        return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def resolve(self, repository: str, revision: str, name: str) -> None:
        if self.served.gated:
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access to model is restricted")
        if (repository, revision) != (self.served.repository, COMMIT) or name not in self.served.files:
            return self.answer(404, X_Error_Code="EntryNotFound")
        data = self.served.files[name]
        etag = _sha256(data) if name.endswith((".safetensors", ".bin")) else _git(data)
        return self.send_file(name, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)


class _S3(_Handler):
    """One bucket, `models`; `token` is the access key's id."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).strip("/").partition("/")
        if self.refused(bucket, key):
            return None
        if not key:
            return self.list(parse_qs(url.query).get("prefix", [""])[0])
        etag = f'"{hashlib.md5(self.served.files[key], usedforsecurity=False).hexdigest()}"'
        if self.headers.get("If-Match", etag) != etag:
            return self.error(412, "PreconditionFailed")
        return self.send_file(key, ETag=etag, Last_Modified="Tue, 01 Dec 2026 12:00:00 GMT")

    def refused(self, bucket: str, key: str) -> bool:
        """Refuse the request in S3's ways. Return whether it was."""
        served, given = self.served, self.headers.get("Authorization", "")
        if served.status is not None:
            self.error(served.status, "InternalError")
        elif served.token is not None and f"Credential={served.token}/" not in given:
            self.error(403, "AccessDenied")
        elif bucket != "models":
            self.error(404, "NoSuchBucket")
        elif key and key not in served.files:
            self.error(404, "NoSuchKey")
        else:
            return False
        return True

    def error(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code></Error>".encode(), Content_Type="application/xml")

    def list(self, prefix: str) -> None:
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
            f'<ETag>"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"</ETag>'
            "<LastModified>2026-12-01T12:00:00.000Z</LastModified></Contents>"
            for key, data in self.served.files.items()
            if key.startswith(prefix)
        )
        body = f"<ListBucketResult><Name>models</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        self.answer(200, body.encode(), Content_Type="application/xml")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def _serving(handler: type[_Handler], served: Served) -> Iterator[Served]:
    class Bound(handler):
        pass

    Bound.served = served
    served.pass_on.set()
    with ThreadingHTTPServer(("127.0.0.1", 0), Bound) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield served
        finally:
            served.pass_on.set()
            server.shutdown()
            thread.join()


def hub_server(repository: str = REPOSITORY) -> AbstractContextManager[Served]:
    """Serve one *repository* with the revisions `main` and `COMMIT`."""
    return _serving(_Hub, Served(repository=repository))


def s3_server() -> AbstractContextManager[Served]:
    """Serve one bucket, `models`, with a model in the folder `tiny`."""
    return _serving(_S3, Served({f"tiny/{name}": data for name, data in FILES.items()}))
