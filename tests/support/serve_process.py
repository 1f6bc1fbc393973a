"""Real `turnout-worker serve` processes for tests, with a scripted or a simulated engine behind them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from support.worker_process import die_with_parent, free_port, worker_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
SECONDS = 60.0
_ENGINE = str(Path(__file__).with_name("scripted_engine.py"))


@dataclass
class ServeProcess:
    """A worker with its engine."""

    port: int
    status_port: int
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def engine_url(self) -> str:
        """Where the engine is, without a slash at its end."""
        return f"http://{HOST}:{self.port}"

    @property
    def out(self) -> bytes:
        """What the engine has printed."""
        return (self.folder / "out").read_bytes()

    @property
    def log(self) -> str:
        """What the worker has printed."""
        return (self.folder / "err").read_text(errors="replace")

    @property
    def last_words(self) -> str:
        """What stands in the termination log."""
        return (self.folder / "termination").read_text()

    def check(self, path: str) -> int:
        """Return the status of *path* on the status port; 0 where nothing listens."""
        try:
            return httpx.get(f"http://{HOST}:{self.status_port}{path}", timeout=10).status_code
        except httpx.TransportError:
            return 0

    def status(self) -> dict[str, Any]:
        """Return what /status shows."""
        found: dict[str, Any] = httpx.get(f"http://{HOST}:{self.status_port}/status", timeout=10).json()
        return found

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for *condition*; what fails to connect does not meet it."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except (httpx.TransportError, FileNotFoundError):
                pass
            time.sleep(0.02)
        raise AssertionError(f"it did not come to that: {self.log}")

    def until_phase(self, phase: str) -> None:
        """Wait until it is in *phase*."""
        self.until(lambda: self.status()["phase"] == phase)

    def until_ready(self) -> None:
        """Wait until /ready answers well."""
        self.until(lambda: self.check("/ready") == httpx.codes.OK)

    def order(self, path: str, **fields: Any) -> None:
        """Order the scripted engine to do something."""
        httpx.post(f"{self.engine_url}{path}", json=fields, timeout=10).raise_for_status()

    def environment(self) -> dict[str, Any]:
        """Return what the scripted engine knows of itself."""
        found: dict[str, Any] = httpx.get(f"{self.engine_url}/environment", timeout=10).json()
        return found

    def wait(self) -> int:
        """Wait for the worker's end. Returns its exit status."""
        return self.process.wait(SECONDS)


def alive(pid: int) -> bool:
    """Say whether the process *pid* runs; a zombie does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def scripted(port: int, **orders: Any) -> list[str]:
    """Return the command of an engine that behaves as ordered."""
    return [sys.executable, "-u", _ENGINE, HOST, str(port), json.dumps(orders)]


def simulated(port: int, **flags: Any) -> list[str]:
    """Return the command of a simulated engine."""
    return worker_command(host=HOST, port=port, **flags)


def serve_command(folder: Path, port: int, status_port: int, engine: list[str], **flags: Any) -> list[str]:
    """Return the command line of a worker; it makes a model in *folder*."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    given = {
        "model": model, "host": HOST, "port": port, "status_port": status_port, "termination_log": folder / "termination",
    } | flags  # fmt: skip
    words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "turnout_worker.main", "serve", *words, "--", *engine]


@contextmanager
def serving(
    folder: Path, engine: Callable[..., list[str]] = scripted, **orders: Any
) -> Iterator[ServeProcess]:
    """Start a worker with *engine*, which gets *orders*; those in `flags` are the worker's own. Gone at the end."""
    flags: dict[str, Any] = orders.pop("flags", {})
    environment: dict[str, str] = orders.pop("environment", {})
    port = flags.pop("port", 0) or free_port(HOST)
    status_port = flags.pop("status_port", 0) or free_port(HOST)
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            serve_command(folder, port, status_port, engine(port, **orders), **flags),
            stdout=out,
            stderr=err,
            env={**os.environ, **environment},
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, no locks
        )
    worker = ServeProcess(port, status_port, process, folder)
    try:
        yield worker
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
