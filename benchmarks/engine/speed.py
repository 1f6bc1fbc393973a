"""Measure what simulation costs: tokens a second of the engine's model, and a worker's processor time per 1,000 tokens.

Run as ``python benchmarks/engine/speed.py`` on an idle machine; takes about a minute. The first table replays an hour
of generated conversation traffic over sixteen engines in virtual time, the second streams from a real worker process.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from turnout.simulation import Engine, EngineRequest, EngineSettings, Finished
from turnout_devcluster.processes import dying_with_parent
from turnout_simulator.generate import generate
from turnout_simulator.replay import ACCELERATOR, MODEL, default_latency
from turnout_simulator.traces import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnout.simulation import Event

ENGINES = 16
KV_TOKENS = 435_000
"""KV cache of one engine: an 8B model on an H100."""
HOUR = 3600.0
STREAM_TOKENS = 300
PROMPT_BYTES = 2000
HOST = "127.0.0.1"
READY_SECONDS = 20.0
STREAM_SECONDS = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")


def simulate() -> str:
    """Replay the traffic, each request on the engine with the fewest; return the row of the table."""
    latency = default_latency()
    settings = EngineSettings(KV_TOKENS // BLOCK_TOKENS, block_size=BLOCK_TOKENS)
    engines = [Engine(settings, latency) for _ in range(ENGINES)]
    trace = generate(HOUR, seed=0)
    finished: list[Finished] = []

    def take(events: list[Event]) -> None:
        finished.extend(event for event in events if isinstance(event, Finished))

    started = time.process_time()
    for number, request in enumerate(trace.requests):
        for engine in engines:
            take(engine.advance(request.arrival_seconds))
        chosen = min(engines, key=_load)
        blocks = request.block_ids[: request.input_tokens // BLOCK_TOKENS]
        work = EngineRequest(str(number), request.input_tokens, request.output_tokens, blocks)
        chosen.submit(work, request.arrival_seconds)
    for engine in engines:
        take(engine.advance(10 * HOUR))
    spent = time.process_time() - started
    for engine in engines:
        engine.check()
    if len(finished) != len(trace.requests):
        raise RuntimeError(f"{len(trace.requests) - len(finished)} requests did not finish")
    tokens = sum(event.output_tokens for event in finished)
    waits = sum(
        event.first_token_at - event.arrived_at for event in finished if event.first_token_at is not None
    )
    hits = sum(engine.counters.prefix_hits for engine in engines)
    queries = sum(engine.counters.prefix_queries for engine in engines)
    return (
        f"| {len(finished):,} | {tokens:,} | {spent:.1f} s | {tokens / spent:,.0f} | {HOUR / spent:,.0f} "
        f"| {waits / len(finished):.2f} s | {hits / queries:.0%} |"
    )


def _load(engine: Engine) -> int:
    stats = engine.stats()
    return stats.running + stats.waiting


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that answers."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """Return its processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss_mib(self) -> float:
        """Return its resident memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@contextmanager
def worker(time_scale: int) -> Iterator[Worker]:
    """Run a worker and wait until it answers."""
    port, side = _free_port(), _free_port()
    command = [
        *(sys.executable, "-m", "turnout_worker.main", "simulate", "--model", MODEL, "--served-name", "m"),
        *("--accelerator", ACCELERATOR, "--time-scale", str(time_scale), "--host", HOST),
        *("--port", str(port), "--side-channel-port", str(side)),
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        preexec_fn=dying_with_parent(),  # noqa: PLW1509 - one system call, no threads
    )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker does not answer; start it by hand: {' '.join(command)}")
            time.sleep(0.02)
        yield Worker(process.pid, port)
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://{HOST}:{port}/health", timeout=1).is_success
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def stream(port: int, number: int, tokens: int) -> None:
    """Read one streamed completion of *tokens* tokens to its end."""
    reader, writer = await asyncio.open_connection(HOST, port)
    prompt = f"{number} ".ljust(PROMPT_BYTES, "x")
    asked = {"model": "m", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    body = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = b""
    while part := await reader.read(1 << 16):
        answer = (answer + part)[-4096:]
    writer.close()
    if b"[DONE]" not in answer:
        raise RuntimeError(f"the worker broke off: {answer!r}")


async def streams(port: int, count: int, tokens: int) -> None:
    """Read *count* streams at the same time."""
    async with asyncio.timeout(STREAM_SECONDS):
        await asyncio.gather(*(stream(port, number, tokens) for number in range(count)))


def serve(time_scale: int, count: int) -> str:
    """Stream from a worker; return the row of the table."""
    tokens = STREAM_TOKENS * time_scale
    with worker(time_scale) as running:
        before, started = running.cpu_seconds(), time.monotonic()
        asyncio.run(streams(running.port, count, tokens))
        seconds, spent = time.monotonic() - started, running.cpu_seconds() - before
        return (
            f"| {time_scale} | {count} | {before:.2f} s | {spent / (count * tokens) * 1000 * 1000:.1f} ms "
            f"| {spent / seconds:.0%} | {running.rss_mib():.0f} MiB |"
        )


def main() -> None:
    """Print both tables."""
    print(
        "| requests | output tokens | processor time | tokens per second | times real time | mean TTFT | prefix hits |"
    )
    print("|---|---|---|---|---|---|---|")
    print(simulate(), flush=True)
    print()
    print("| time scale | streams | CPU to start | CPU per 1,000 tokens | of a core | memory (RSS) |")
    print("|---|---|---|---|---|---|")
    for time_scale in (1, 5):
        for count in (8, 32):
            print(serve(time_scale, count), flush=True)


if __name__ == "__main__":
    main()
