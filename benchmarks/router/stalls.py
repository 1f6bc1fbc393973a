"""How long single inputs keep the router's event loop busy, and what they make it hold.

Run as ``python benchmarks/router/stalls.py`` from the repository's root (``make bench-stalls``). The router (compiled, where
`make compiled` was run) serves in a process of its own, in which a callback that calls itself measures the longest time
between two turns of the event loop. Clients and workers are in this process. Beside it stands how long this machine takes
to hash 16 MiB once, and to parse them with Python's garbage collector on, as a router without bounds would.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import contestants
import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MIB = 1 << 20
_MOST = 16 * _MIB - 1024
_REPEATS = 3
_SECONDS = 120.0
_GOAL_MS = 50.0
_CHAT = b"/v1/chat/completions"
_SAY = b'"messages":[{"role":"user","content":"hi"}]'
_EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
_LONG = b'"messages":[{"role":"user","content":"' + b"word " * 2000 + b'"}]'


@dataclass(frozen=True, slots=True)
class Input:
    """One input: what a client sends, and what a worker answers; `kind` is who made it odd."""

    kind: str
    name: str
    path: bytes
    body: bytes
    model: str = "plain"
    worker: bytes = b""
    prefill: bytes = b""


def client_inputs() -> Iterator[Input]:
    """Yield odd bodies of clients, as large as they may be."""

    def chat(more: bytes) -> bytes:
        return b'{"model":"plain",' + _SAY + b"," + more + b"}"

    def text(prompt: bytes) -> bytes:
        return b'{"model":"plain","prompt":' + prompt + b"}"

    def filled(piece: bytes, size: int = _MOST) -> bytes:
        return piece * ((size - 200) // len(piece))

    yield Input("client", "ASCII text", b"/v1/completions", text(b'"' + filled(b"x") + b'"'))
    yield Input(
        "client",
        "ASCII text with one emoji",
        b"/v1/completions",
        text(b'"' + filled(b"x") + "😀".encode() + b'"'),
    )
    yield Input("client", "emoji", b"/v1/completions", text(b'"' + filled("😀".encode()) + b'"'))
    yield Input("client", "escaped line ends", b"/v1/completions", text(b'"' + filled(b"\\n") + b'"'))
    yield Input("client", "escaped letters", b"/v1/completions", text(b'"' + filled(b"\\u00e9") + b'"'))
    yield Input("client", "backslashes", b"/v1/completions", text(b'"' + filled(b"\\\\") + b'"'))
    yield Input(
        "client", "a million token ids", b"/v1/completions", text(b"[" + b"128000," * 1_000_000 + b"1]")
    )
    yield Input("client", "a million floats", b"/v1/completions", text(b"[" + b"1e15," * 1_000_000 + b"1]"))
    yield Input(
        "client",
        "an image of 16 MiB",
        _CHAT,
        b'{"model":"plain","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,'
        + filled(b"QUJD")
        + b'"}}]}]}',
    )
    message = b'{"role":"user","content":"hello, [you] {there}"},'
    yield Input(
        "client",
        "150,000 messages",
        _CHAT,
        b'{"model":"plain","messages":[' + message * 150_000 + message[:-1] + b"]}",
    )
    yield Input("client", "empty lists, unknown field", _CHAT, chat(b'"x":[' + filled(b"[],") + b"1]"))
    yield Input("client", "empty lists in tools", _CHAT, chat(b'"tools":[' + filled(b"[],") + b"1]"))
    yield Input(
        "client", "empty lists in messages", _CHAT, b'{"model":"plain","messages":[' + filled(b"[],") + b"1]}"
    )
    yield Input("client", "empty objects", _CHAT, chat(b'"x":[' + filled(b"{},") + b"1]"))
    yield Input(
        "client", "names", _CHAT, chat(b'"x":{' + b",".join(b'"%x":1' % n for n in range(1_200_000)) + b"}")
    )
    yield Input("client", "fields", _CHAT, chat(b",".join(b'"%x":1' % n for n in range(1_200_000))))
    yield Input("client", "short texts", _CHAT, chat(b'"x":[' + filled(b'"",') + b'""]'))
    yield Input("client", "310,000 empty lists (accepted)", _CHAT, chat(b'"x":[' + b"[]," * 310_000 + b"1]"))
    yield Input(
        "client",
        "250,000 objects in tools (accepted)",
        _CHAT,
        chat(b'"tools":[' + b'{"a":1},' * 240_000 + b"1]"),
    )
    yield Input(
        "client", "600,000 short texts (accepted)", _CHAT, chat(b'"x":[' + b'"a",' * 600_000 + b'""]')
    )
    yield Input("client", "white space", _CHAT, chat(b'"x":' + filled(b" ") + b"1"))
    for size in (127, 1023):
        for name, piece in (("empty lists", b"[],"), ("objects", b'{"a":1},'), ("floats", b"1e9,")):
            yield Input(
                "client", f"{name}, {size} KiB", _CHAT, chat(b'"x":[' + filled(piece, size << 10) + b"1]")
            )
    yield Input("client", "1,000 levels", _CHAT, chat(b'"x":' + b"[" * 1000 + b"]" * 1000))


def worker_inputs() -> Iterator[Input]:
    """Yield odd answers of workers."""
    ask = b'{"model":"plain",' + _SAY + b"}"
    stream = b'{"model":"plain","stream":true,' + _SAY + b"}"
    lists = b"[]," * (_MIB // 3 - 100) + b"1"
    for name, body in (
        ("lists before usage", b'{"x":[' + lists + b'],"usage":{"prompt_tokens":1}}'),
        ("lists within usage", b'{"usage":{"prompt_tokens":1,"x":[' + lists + b"]}}"),
        ("lists beside an abort", b'{"a":"abort","x":[' + lists + b"]}"),
        ("usage 60,000 times", b'{"x":[' + b'{"usage":1,"a":1},' * 58_000 + b"1]}"),
    ):
        yield Input("worker", f"answer of 1 MiB: {name}", _CHAT, ask, worker=_whole(body))
    yield Input(
        "worker", "answer of 64 MiB", _CHAT, ask, worker=_whole(b'{"x":"' + b"x" * (64 * _MIB) + b'"}')
    )
    yield Input(
        "worker",
        "error of 16 MiB",
        _CHAT,
        ask,
        worker=_whole(b'{"error":{"message":"' + b"x" * (16 * _MIB) + b'"}}', b"400 X"),
    )
    first = b'data: {"choices":[{"delta":{"content":"t"}}]}\n\n'
    for name, events in (
        ("lists in the first event", b'data: {"x":[' + lists + b"]}\n\n"),
        ("lists beside usage", first + b'data: {"usage":{"a":1},"x":[' + lists + b"]}\n\n"),
        ("an event of 64 MiB", b'data: {"x":"' + b"x" * (64 * _MIB) + b'"}\n\n'),
        ("a million comments", first + b":\n\n" * 1_000_000),
        ("200,000 events in a row", first * 200_000),
    ):
        yield Input("worker", f"stream: {name}", _CHAT, stream, worker=_EVENTS + events + b"data: [DONE]\n\n")
    pair = b'{"model":"pair",' + _LONG + b"}"
    answer = _whole(b'{"usage":{}}')
    for name, body in (
        ("lists as parameters", b'{"kv_transfer_params":{"x":[' + lists * 4 + b"]}}"),
        ("lists beside parameters", b'{"x":[' + lists * 4 + b'],"kv_transfer_params":{"a":1}}'),
        ("lists as choices", b'{"choices":[' + lists * 4 + b'],"kv_transfer_params":{"a":1}}'),
    ):
        yield Input("prefill worker", f"answer of 4 MiB: {name}", _CHAT, pair, "pair", answer, _whole(body))


def _whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    return (
        b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
        % (status, len(body), body)
    )


class Workers:
    """Three workers, in a thread: each answers with what it was given last."""

    def __init__(self) -> None:
        self.answers = {"plain": b"", "prefill": b"", "decode": b""}
        self.ports: dict[str, int] = {}
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True).start()
        started.wait(10)

    async def _serve(self, started: threading.Event) -> None:
        for name in self.answers:
            server = await asyncio.start_server(self._one(name), "127.0.0.1", 0, limit=64 * _MIB)
            self.ports[name] = server.sockets[0].getsockname()[1]
        started.set()
        await asyncio.Event().wait()

    def _one(self, name: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line[15:])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    0,
                )
                await reader.readexactly(length)
                writer.write(
                    self.answers[name]
                    if head.startswith(b"POST")
                    else b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n"
                )
                await writer.drain()
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the router has had enough of it
            finally:
                writer.close()

        return serve


class Measured:
    """The router in a process of its own, and what it measures there."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        def backend(role: str, name: str) -> dict[str, str]:
            return {"role": role, "url": f"http://127.0.0.1:{ports[name]}"}

        deployments = [
            {"name": "bench/plain", "servedNames": ["plain"], "backends": [backend("aggregated", "plain")]},
            {
                "name": "bench/pair",
                "servedNames": ["pair"],
                "policy": "LeastLoaded",
                "backends": [backend("prefill", "prefill"), backend("decode", "decode")],
            },
        ]
        config = folder / "router.yaml"
        config.write_text(json.dumps({"deployments": deployments}))
        compiled = contestants.COMPILED.resolve()
        self.compiled = (compiled / "turnout_router").exists()
        python, environment = sys.executable, {}
        if self.compiled:
            python = contestants.interpreter()
            environment = {"PYTHONPATH": f"{compiled}:{sysconfig.get_path('platlib')}"}
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("stalls_router.py")), str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", **environment},
        )
        self._in: IO[bytes] = self.process.stdin  # type: ignore[assignment] # a pipe, as asked for
        self._out: IO[bytes] = self.process.stdout  # type: ignore[assignment]
        self.port = self._read()["port"]

    def ask(self, what: str) -> dict[str, Any]:
        """Send one word, and return what the router's process answers."""
        self._in.write(what.encode() + b"\n")
        self._in.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._out.readline()
        if not line:
            sys.exit("the router's process has ended: see above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def send(port: int, path: bytes, body: bytes) -> int:
    """Send one request, read its answer to the end, and return the status; 0 where the connection ends first."""
    head = b"POST %b HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        connection.sendall(head % (path, len(body)) + body)
        answer = connection.recv(64)
        while connection.recv(_MIB):
            pass
    return int(answer.split()[1]) if answer else 0


def main() -> None:
    """Measure, print, write build/bench/stalls.json."""
    hashing = _least(lambda: hashlib.sha256(b"x" * _MOST).digest())
    parsing = _least(lambda: orjson.loads(b"[" + b"[]," * (_MOST // 3) + b"1]"), 1)
    workers = Workers()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="turnout-stalls-") as folder:
        router = Measured(Path(folder), workers.ports)
        try:
            for one in (*client_inputs(), *worker_inputs()):
                rows.append(_measure(router, workers, one))
                print(".", end="", file=sys.stderr, flush=True)
        finally:
            router.process.terminate()
            router.process.wait(30)
    print(file=sys.stderr)
    print("| input | MiB | answer | longest stall, ms | held, of the bytes counted |\n|---|---|---|---|---|")
    for row in rows:
        held = "" if row["held_ratio"] is None else f"{row['held_ratio']:.1f}"
        print(
            f"| {row['kind']}: {row['name']} | {row['mib']:.1f} | {row['status'] or 'none'} | {row['stall_ms']:.1f} | {held} |"
        )
    longest = max(rows, key=lambda row: float(row["stall_ms"]))
    print(
        f"\nLongest: {longest['stall_ms']:.1f} ms ({longest['kind']}: {longest['name']}); the goal is {_GOAL_MS:g} ms."
    )
    print(
        f"This machine hashes 16 MiB (SHA-256) in {hashing:.1f} ms, and parses 16 MiB of empty lists in {parsing:.0f} ms."
    )
    print("" if router.compiled else "\nNot compiled: make compiled")
    path = Path("build/bench/stalls.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {"rows": rows, "hash_ms": hashing, "parse_ms": parsing, "compiled": router.compiled}
    path.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"Figures: {path}")


def _measure(router: Measured, workers: Workers, one: Input) -> dict[str, Any]:
    workers.answers.update(
        plain=one.worker or _whole(b'{"usage":{}}'), decode=one.worker, prefill=one.prefill
    )
    stalls, ratios, status = [], [], 0
    for _ in range(_REPEATS):
        router.ask("begin")
        status = send(router.port, one.path, one.body)
        found = router.ask("end")
        stalls.append(found["stall_ms"])
        if one.kind == "client" and found["counted"] > _MIB:
            ratios.append(found["held"] / found["counted"])
    return {
        "kind": one.kind,
        "name": one.name,
        "mib": max(len(one.body), len(one.worker), len(one.prefill)) / _MIB,
        "status": status,
        "stall_ms": min(stalls),
        "stalls_ms": stalls,
        "held_ratio": min(ratios) if ratios else None,
    }


def _least(work: Callable[[], object], times: int = 5) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(1000 * (time.perf_counter() - began))
    return min(found)


if __name__ == "__main__":
    main()
