"""Real `turnout-worker simulate` processes for tests: on a loopback port of their own, gone with the test."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "hf://meta-llama/Llama-3.1-8B-Instruct"
NAME = "llama"
READY_SECONDS = 20.0
_FIRST_PORT = 10_240
_FIRST_OUTGOING = 32_768
"""Where Linux' default range of ports for outgoing connections begins."""
_given: set[int] = set()
"""Ports that `free_port` has returned."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that no process listens on.

    It is below those that the kernel gives to outgoing connections meanwhile, in this test process' own share, and was not
    given before: a test that ends a process and starts it again finds its ports free.
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % count
    share = (_FIRST_OUTGOING - _FIRST_PORT) // count
    while True:
        port = _FIRST_PORT + number * share + secrets.randbelow(share)
        if port in _given and len(_given) < share // 2:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        _given.add(port)
        return port


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends. For `preexec_fn`."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class WorkerProcess:
    """A worker that answers."""

    host: str
    port: int
    side_channel_port: int
    process: subprocess.Popen[bytes]
    name: str = NAME
    _log: IO[bytes] = field(repr=False, default_factory=tempfile.TemporaryFile)

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """What it has written so far."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of *name* in its /metrics that carry *labels*. Raise KeyError where there is none."""
        text = httpx.get(f"{self.url}/metrics").text
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = [
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith(f"{name}{{") and all(w in line for w in wanted)
        ]
        if not found:
            raise KeyError(name)
        return sum(found)

    def fault(self, kind: str, **fields: Any) -> None:
        """Order a fault."""
        httpx.post(f"{self.url}/admin/faults", json={"kind": kind, **fields}).raise_for_status()

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for its end and return the exit status. Raise TimeoutExpired."""
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self.process.wait()


def worker_command(**flags: Any) -> list[str]:
    """Return the command line of a simulated worker. ``time_scale=5`` becomes ``--time-scale 5``; lists repeat."""
    command = [sys.executable, "-m", "turnout_worker.main", "simulate"]
    for key, value in {"model": MODEL, "served_name": NAME, **flags}.items():
        flag = f"--{key.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        for one in values:
            if isinstance(one, bool):
                command.append(flag if one else f"--no-{flag[2:]}")
            else:
                command += [flag, str(one)]
    return command


@contextmanager
def running_worker(host: str = "127.0.0.1", **flags: Any) -> Iterator[WorkerProcess]:
    """Start a worker with *flags* (see `worker_command`), wait until it answers, and end it at the end."""
    port = int(flags.pop("port", 0)) or free_port(host)
    side = int(flags.pop("side_channel_port", 0)) or free_port(host)
    served = flags.get("served_name", NAME)
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
    process = subprocess.Popen(
        worker_command(host=host, port=port, side_channel_port=side, **flags),
        stdout=log,
        stderr=log,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no locks
    )
    worker = WorkerProcess(host, port, side, process, served if isinstance(served, str) else served[0], log)
    try:
        _wait_until_ready(worker)
        yield worker
    finally:
        process.kill()
        process.wait()
        log.close()


def _wait_until_ready(worker: WorkerProcess) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if worker.process.poll() is not None:
            raise AssertionError(f"the worker ended with {worker.process.returncode}: {worker.log}")
        try:
            if httpx.get(f"{worker.url}/health", timeout=1).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.02)
    raise AssertionError(f"the worker was not ready after {READY_SECONDS} s: {worker.log}")
