"""The side channel between a prefill and a decode worker, standing in for NIXL.

One TCP connection per pair, kept; JSON lines. The prefill worker greets with ``{"engine_id": E}``: the handshake.
The decode worker asks ``{"fetch": REQUEST}`` and hears ``{"held": true}`` and the blocks are released, or
``{"held": false}``: they had been fetched before or their lease has expired. No KV travels, for there is none; how
long it would take is the engine's business.

Failures are vLLM's: a worker that cannot be reached is tried for 5 seconds; one that answered before and is gone
fails at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import orjson

from turnout_worker.errors import EngineFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_runtime.supervision import Supervisor
    from turnout_worker.openai import RemotePrefill

REACH_SECONDS: Final = 5.0
"""How long an unreachable prefill worker is tried, in real time."""
ANSWER_SECONDS: Final = 5.0
GREETING_SECONDS: Final = 1.0
"""How long a connection may take to be greeted."""
MAX_PEERS: Final = 256
_RETRY_SECONDS: Final = 0.1

_Key = tuple[str, int, str]
"""Host, port and engine id of a prefill worker."""


class SideChannel:
    """The prefill worker's end."""

    def __init__(self, engine_id: str, release: Callable[[str], bool], supervisor: Supervisor) -> None:
        self.engine_id = engine_id
        self._supervisor = supervisor
        self._release = release
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen. Returns the port, which the system has chosen where *port* is 0."""
        self._server = await asyncio.start_server(self._accept, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Stop listening and close all connections."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._supervisor.once("side_channel", self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            writer.write(orjson.dumps({"engine_id": self.engine_id}) + b"\n")
            while line := await reader.readline():
                request_id = orjson.loads(line).get("fetch")
                writer.write(orjson.dumps({"held": self._release(str(request_id))}) + b"\n")
                await writer.drain()
        except (
            OSError,
            ValueError,
            AttributeError,
            RuntimeError,
        ):  # uvloop: RuntimeError for a closed transport
            return  # the other side is gone or speaks something else: closing is all there is to say
        finally:
            self._writers.discard(writer)
            writer.close()


class _Peer:
    """A prefill worker that greeted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.lock = asyncio.Lock()


class Fetcher:
    """The decode worker's end."""

    def __init__(self) -> None:
        self._peers: dict[_Key, _Peer] = {}  # least recently used first
        self._met: dict[_Key, None] = {}  # engines that greeted once, least recently used first
        self._connecting: dict[_Key, asyncio.Task[_Peer]] = {}

    async def fetch(self, remote: RemotePrefill) -> bool:
        """Fetch the KV of a prompt. Returns False where it is there no more; raises EngineFailedError."""
        key = (remote.host, remote.port, remote.engine_id)
        peer = self._peers.pop(key, None) or await self._reach(key)
        self._peers[key] = peer
        self._bound()
        try:
            async with asyncio.timeout(ANSWER_SECONDS), peer.lock:
                peer.writer.write(orjson.dumps({"fetch": remote.request_id}) + b"\n")
                answer = orjson.loads(await peer.reader.readline())
                return bool(answer["held"])
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            # uvloop raises RuntimeError for a closed transport; the rest is of an answer that is none.
            if self._peers.get(key) is peer:
                del self._peers[key]
            peer.writer.close()
            raise EngineFailedError("KV transfer failed: the prefill worker is gone") from error

    def stop(self) -> None:
        """Close all connections."""
        for task in self._connecting.values():
            task.cancel()
        for peer in self._peers.values():
            peer.writer.close()

    async def _reach(self, key: _Key) -> _Peer:
        """Connect, together with other requests to the same worker."""
        task = self._connecting.get(key)
        if task is None:
            task = asyncio.create_task(_connect(key, patience=0.0 if key in self._met else REACH_SECONDS))
            self._connecting[key] = task
            task.add_done_callback(lambda _: self._connecting.pop(key, None))
        try:
            peer = await asyncio.shield(task)
        except (OSError, RuntimeError, ValueError) as error:
            raise EngineFailedError(
                f"KV transfer failed: handshake with {key[0]}:{key[1]}: {error}"
            ) from error
        self._met.pop(key, None)
        self._met[key] = None
        return self._peers.pop(key, peer)

    def _bound(self) -> None:
        while len(self._peers) > MAX_PEERS:
            self._peers.pop(next(iter(self._peers))).writer.close()
        while len(self._met) > MAX_PEERS:
            del self._met[next(iter(self._met))]


async def _connect(key: _Key, patience: float) -> _Peer:
    """Connect and shake hands, trying again for *patience* seconds.

    Raises OSError where no process answers, ValueError where another engine does.
    """
    host, port, engine_id = key
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while True:
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + GREETING_SECONDS)):
                reader, writer = await asyncio.open_connection(host, port)
        except OSError:  # refused or too slow
            if loop.time() >= deadline:
                raise
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        if await _greets(reader, engine_id):
            return _Peer(reader, writer)
        writer.close()
        raise ValueError(f"engine {engine_id} does not answer there")


async def _greets(reader: asyncio.StreamReader, engine_id: str) -> bool:
    """Whether the engine that was promised greets."""
    try:
        async with asyncio.timeout(GREETING_SECONDS):
            return bool(orjson.loads(await reader.readline()) == {"engine_id": engine_id})
    except (OSError, ValueError):
        return False
