"""What the worker asks its engine over HTTP: one request a connection, bounded in time and size."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

from turnout_worker.errors import WorkerError

MAX_ANSWER_BYTES: Final = 1024 * 1024
_MAX_HEAD_BYTES: Final = 64 * 1024


class NoAnswerError(WorkerError):
    """The engine did not answer: no connection, no HTTP, too late or too much."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, complete."""

    status: int
    body: bytes

    def fields(self) -> dict[str, Any]:
        """Return the JSON object that it holds; an empty one where it holds none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class EngineClient:
    """Asks the engine at one address."""

    host: str
    port: int
    api_key: str = ""

    async def get(self, path: str, seconds: float) -> Answer:
        """Return the answer to GET *path*. Raise NoAnswerError, after *seconds* at the latest."""
        return await self._ask("GET", path, b"", seconds)

    async def post(self, path: str, fields: dict[str, Any], seconds: float) -> Answer:
        """Return the answer to POST *path* with *fields* as JSON. Raise NoAnswerError, after *seconds* at the latest."""
        return await self._ask("POST", path, json.dumps(fields).encode(), seconds)

    async def _ask(self, method: str, path: str, body: bytes, seconds: float) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_connection(self.host, self.port, limit=_MAX_HEAD_BYTES)
                try:
                    writer.write(self._request(method, path, body))
                    return await _read(reader)
                finally:
                    writer.transport.abort()
        except TimeoutError as error:
            raise NoAnswerError(f"no answer to {method} {path} within {seconds:g} s") from error
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            what = str(error) or type(error).__name__
            raise NoAnswerError(f"no answer to {method} {path}: {what}") from error

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        # HTTP/1.0: the answer is not chunked, and the connection ends with it.
        lines = [f"{method} {path} HTTP/1.0", f"host: {self.host}:{self.port}", "user-agent: turnout-worker"]
        if self.api_key and path.startswith("/v1/"):
            lines.append(f"authorization: Bearer {self.api_key}")
        if method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


async def _read(reader: asyncio.StreamReader) -> Answer:
    """Read an answer. Raise ValueError for what is none, EOFError for one that breaks off."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) < 2 or not words[0].startswith("HTTP/1."):  # noqa: PLR2004 - version and status
        raise ValueError("what answers does not speak HTTP")
    status = int(words[1])
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
    }
    length = headers.get("content-length")
    if length is not None:
        if int(length) > MAX_ANSWER_BYTES:
            raise ValueError("its answer is too large")
        return Answer(status, await reader.readexactly(int(length)))
    body = b""
    while part := await reader.read(_MAX_HEAD_BYTES):
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError("its answer is too large")
    return Answer(status, body)
