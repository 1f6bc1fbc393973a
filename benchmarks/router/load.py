"""The client side of the benchmark: prepared requests over a fixed number of connections, answers checked to the byte.

One request at a time per connection, as clients do it; the next one begins when the last one's answer is complete.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORDS = (
    "the of and to a in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said"
)
_VOCABULARY = _WORDS.split()
_LINE_WORDS = 12
_SHARED = 16
"""Number of different prefixes: prompts share their first 50 % with others."""
_VARIANTS = 256
"""Different requests; then they come again."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: `total` requests out of `requests` in turn, over `connections` that begin within `ramp_seconds`.

    `events` is how many each answer has, where it is streamed.
    """

    requests: tuple[bytes, ...]
    connections: int
    total: int
    events: int | None = None
    ramp_seconds: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What came of it. Latencies are seconds from the request's first byte to its answer's last one."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    events: int = 0


def requests(prompt_bytes: int, key: str, *, events: int = 0, every_ms: int = 0) -> tuple[bytes, ...]:
    """Return different requests with prompts of about *prompt_bytes*; streams where *events* is given."""
    return tuple(_request(_prompt(n, prompt_bytes), key, events, every_ms) for n in range(_VARIANTS))


async def run(port: int, load: Load, deadline_seconds: float) -> Outcome:
    """Send *load* to 127.0.0.1:*port*. Raise TimeoutError after *deadline_seconds*."""
    loop = asyncio.get_running_loop()
    outcome = Outcome()
    todo = (load.requests[n % len(load.requests)] for n in range(load.total))
    began = time.perf_counter()
    async with asyncio.timeout(deadline_seconds), asyncio.TaskGroup() as group:
        count = min(load.connections, load.total)
        for number in range(count):
            wait = load.ramp_seconds * number / count
            group.create_task(_keep_connected(loop, port, todo, load, outcome, wait_seconds=wait))
    outcome.seconds = time.perf_counter() - began
    return outcome


async def _keep_connected(
    loop: asyncio.AbstractEventLoop,
    port: int,
    todo: Iterator[bytes],
    load: Load,
    outcome: Outcome,
    *,
    wait_seconds: float,
) -> None:
    await asyncio.sleep(wait_seconds)
    left = True
    while left:
        client = _Client(loop, todo, load, outcome)
        try:
            transport, _ = await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
        except OSError as error:
            outcome.errors.append(f"connect: {error}")
            left = next(todo, None) is not None
            continue
        try:
            left = await client.done
        finally:
            transport.abort()


class _Client(asyncio.Protocol):
    """One connection. `done` says whether requests may be left when it ends."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, todo: Iterator[bytes], load: Load, outcome: Outcome
    ) -> None:
        self.done: asyncio.Future[bool] = loop.create_future()
        self._todo = todo
        self._load = load
        self._outcome = outcome
        self._transport: asyncio.Transport
        self._pieces: list[bytes] = []
        self._began = 0.0
        self._head_bytes = 0
        self._missing: int | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Count what was under way as an error."""
        if not self.done.done():
            self._outcome.errors.append("the connection was lost")
            self.done.set_result(True)

    def data_received(self, data: bytes) -> None:
        """Note what came; act on the answer's end."""
        self._pieces.append(data)
        if not self._head_bytes:
            data = self._head()
            if not self._head_bytes:
                return
        if self._missing is None:
            self._tail = (self._tail + data[-5:])[-5:]
            if self._tail == b"0\r\n\r\n":
                self._finish()
        else:
            self._missing -= len(data)
            if self._missing <= 0:
                self._finish()

    def _head(self) -> bytes:
        data = b"".join(self._pieces)
        end = data.find(b"\r\n\r\n") + 4
        if end >= 4:
            self._head_bytes = end
            head = data[:end].lower()
            at = head.find(b"\r\ncontent-length:")
            self._missing = None if at < 0 else int(head[at + 17 : head.index(b"\r\n", at + 2)])
        return data[end:]

    def _next(self) -> None:
        request = next(self._todo, None)
        if request is None:
            self.done.set_result(False)
            return
        self._pieces = []
        self._head_bytes = 0
        self._tail = b""
        self._began = time.perf_counter()
        self._transport.write(request)

    def _finish(self) -> None:
        self._outcome.latencies.append(time.perf_counter() - self._began)
        answer = b"".join(self._pieces)
        if not answer.startswith(b"HTTP/1.1 200 "):
            self._outcome.errors.append(answer[:300].decode("latin-1"))
        elif self._load.events is not None:
            body = _dechunk(answer[self._head_bytes :])
            events = body.count(b"data: {")
            self._outcome.events += events
            if events != self._load.events or not body.endswith(b"data: [DONE]\n\n"):
                self._outcome.errors.append(f"a stream of {events} events instead of {self._load.events}")
        elif self._missing:
            self._outcome.errors.append(f"{-self._missing} bytes more than announced")
        self._next()


def _dechunk(data: bytes) -> bytes:
    pieces = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def _prompt(number: int, size: int) -> str:
    shared = _words(number % _SHARED, size // 2)
    return shared + _words(1000 + number, size - len(shared))


def _words(seed: int, size: int) -> str:
    """Return text of *size* characters that looks like prose to a parser: words, and a line's end now and then."""
    pieces: list[str] = []
    length, state = 0, seed * 7919 + 1
    while length < size:
        state = (state * 1_103_515_245 + 12_345) % 2**31
        word = _VOCABULARY[(state >> 8) % len(_VOCABULARY)] + (
            "\n" if len(pieces) % _LINE_WORDS == 11 else " "
        )
        pieces.append(word)
        length += len(word)
    return "".join(pieces)[:size]


def _request(prompt: str, key: str, events: int, every_ms: int) -> bytes:
    body: dict[str, object] = {
        "messages": [
            {"role": "system", "content": f"One token every {every_ms} ms."},
            {"role": "user", "content": prompt},
        ],
        "model": "bench",
        "max_tokens": events or 64,
        "temperature": 0.7,
    }
    if events:
        body["stream"] = True
    data = json.dumps(body, separators=(",", ":")).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
        b"Accept-Encoding: gzip, deflate\r\nUser-Agent: OpenAI/Python 3.52.0\r\nAuthorization: Bearer %b\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (key.encode(), len(data), data)
    )
