"""Measure what `turnout-worker serve` adds to a bare engine: seconds until it is ready, and memory.

Run as ``python benchmarks/engine/serve.py`` on an idle machine; takes half a minute. The engine is the simulated one, which starts
in a fraction of a second: nothing of what is measured is its own. Each figure is the median of ten starts.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from turnout_devcluster.processes import dying_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
PORT, STATUS_PORT = 28471, 28472
STARTS = 10
READY_SECONDS = 30.0
WORKER = [sys.executable, "-m", "turnout_worker.main"]
ENGINE = [
    *WORKER, "simulate", "--model", "hf://meta-llama/Llama-3.1-8B-Instruct", "--host", HOST, "--port", str(PORT)
]  # fmt: skip


def bare(_model: Path) -> tuple[float, float]:
    """Start the engine alone. Returns the seconds until its /health answers, and 0."""
    return _start(ENGINE, f"http://{HOST}:{PORT}/health", lambda _pid: 0.0)


def served(model: Path) -> tuple[float, float]:
    """Start it behind `serve`. Returns the seconds until /ready answers, and the worker's own memory in MiB."""
    command = [
        *WORKER,
        "serve",
        "--model",
        str(model),
        "--host",
        HOST,
        "--port",
        str(PORT),
        "--status-port",
        str(STATUS_PORT),
    ]
    return _start([*command, "--", *ENGINE], f"http://{HOST}:{STATUS_PORT}/ready", memory)


def memory(pid: int) -> float:
    """Return the resident memory of the process *pid* alone, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _start(command: list[str], url: str, measure: Callable[[int], float]) -> tuple[float, float]:
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ},
        preexec_fn=dying_with_parent(),  # noqa: PLW1509 - no threads here
    )
    try:
        while not _answers(url):
            if time.perf_counter() - began > READY_SECONDS:
                raise TimeoutError(f"{url} did not answer within {READY_SECONDS} s")
            time.sleep(0.005)
        return time.perf_counter() - began, measure(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def main() -> int:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        alone = [bare(model) for _ in range(STARTS)]
        behind = [served(model) for _ in range(STARTS)]
    bare_seconds, served_seconds = (statistics.median(one[0] for one in found) for found in (alone, behind))
    print("| | bare engine | behind serve | serve adds |")
    print("|---|---|---|---|")
    print(
        f"| seconds until ready | {bare_seconds:.2f} | {served_seconds:.2f} | {served_seconds - bare_seconds:.2f} |"
    )
    print(f"| memory of the worker (RSS, MiB) | | | {statistics.median(one[1] for one in behind):.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
