"""One vLLM server on this machine's CPU: started, waited for, and ended with all that it started.

Each server has an address of loopback of its own, as a pod has, and usual ports there. Its processes carry the marker
of `turnout_devcluster.processes`, by which all of them are found and ended; a guard does so when the process that
started the server is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout.terms import KV_SIDE_CHANNEL_PORT, WORKER_PORT, Role
from turnout_devcluster import guard
from turnout_devcluster.errors import StartError, StopError
from turnout_devcluster.layout import cache_root
from turnout_devcluster.processes import MARKER, end_marked, identify
from turnout_devcluster.vllm.environment import python

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from turnout_devcluster.progress import Progress

_POLL_SECONDS: Final = 0.2
_ANSWER_SECONDS: Final = 2.0
_REPORT_SECONDS: Final = 15.0
_KILL_SECONDS: Final = 20.0
_LOG_BYTES: Final = 1 << 20
_SAID_LINES: Final = 30
_FIRST_PORT, _LAST_PORT = 10_240, 32_767
"""Below the ports that Linux gives to outgoing connections."""

_KV_ROLES: Final[dict[Role, str]] = {"prefill": "kv_producer", "decode": "kv_consumer"}


@dataclass(frozen=True, slots=True)
class KvEvents:
    """Where a server publishes what its prefix cache holds. It listens on all addresses: vLLM binds to no other."""

    port: int
    replay_port: int
    topic: str


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What one vLLM serves, and how."""

    model: Path
    served_name: str
    role: Role = "aggregated"
    """`prefill` and `decode` exchange KV caches over NIXL."""
    max_length: int = 2048
    kv_cache_bytes: str = "8M"
    """As vLLM's --kv-cache-memory-bytes takes it."""
    max_num_seqs: int = 16
    kv_lease_seconds: int = 30
    """How long a prefill worker keeps a prompt that no decode worker has fetched."""
    kv_events: KvEvents | None = None
    arguments: tuple[str, ...] = ()
    """More arguments of `vllm serve`; they come last."""
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = 300.0
    """How long it may take until /health answers."""


class VllmServer:
    """A server that is ready when the constructor returns. Leaving the context kills it."""

    def __init__(
        self,
        settings: ServerSettings,
        progress: Progress,
        *,
        host: str | None = None,
        port: int = WORKER_PORT,
    ) -> None:
        """Start it on *host*, an address of 127.0.0.0/8 (a free one where it is None), and wait until it is healthy.

        :raises ToolchainError: when vLLM is not installed.
        :raises StartError: when it ends, or is not healthy in time; the message ends with its last words.
        """
        self.settings = settings
        self.host = host or free_address(port, KV_SIDE_CHANNEL_PORT)
        self.port = port
        interpreter = python()
        self._folder = Path(tempfile.mkdtemp(prefix="turnout-vllm-"))
        self._log = self._folder / "log"
        me = identify(os.getpid())
        assert me is not None  # noqa: S101 - we are running
        self._guard = subprocess.Popen(
            guard.command(self._folder, me, remove=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [str(interpreter.with_name("vllm")), "serve", *self.arguments()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    env={**os.environ, **self._environment()},
                    start_new_session=True,
                )
            self._wait_until_healthy(progress)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """The last megabyte of what it has written."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")
        return ""

    @property
    def pid(self) -> int:
        """Its main process, which leads the process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its main process has not ended."""
        return self._process.poll() is None

    def arguments(self) -> list[str]:
        """Return the arguments of ``vllm serve``."""
        settings = self.settings
        found = [
            *(str(settings.model), "--served-model-name", settings.served_name),
            *("--host", self.host, "--port", str(self.port)),
            *(
                "--kv-cache-memory-bytes",
                settings.kv_cache_bytes,
                "--max-model-len",
                str(settings.max_length),
            ),
            *("--max-num-seqs", str(settings.max_num_seqs)),
            "--enforce-eager",  # compiling takes minutes
        ]
        if settings.role != "aggregated":
            transfer = {
                "kv_connector": "NixlConnector",
                "kv_role": _KV_ROLES[settings.role],
                "kv_buffer_device": "cpu",
                "kv_connector_extra_config": {"kv_lease_duration": settings.kv_lease_seconds},
            }
            found += ["--kv-transfer-config", json.dumps(transfer)]
        if settings.kv_events is not None:
            events = {
                "enable_kv_cache_events": True,
                "publisher": "zmq",
                "endpoint": f"tcp://*:{settings.kv_events.port}",
                "replay_endpoint": f"tcp://*:{settings.kv_events.replay_port}",
                "topic": settings.kv_events.topic,
            }
            found += ["--kv-events-config", json.dumps(events)]
        return [*found, *settings.arguments]

    def terminate(self) -> None:
        """Send SIGTERM to its main process, as the kubelet does."""
        self._process.terminate()

    def wait(self, seconds: float) -> int:
        """Return the exit status of its main process. Raise subprocess.TimeoutExpired after *seconds*."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Kill all of its processes at once, as the kernel does with a container's.

        :raises StopError: when one is still there after 20 s.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        rest = end_marked(self._folder, exempt=frozenset(), term_seconds=0.0, kill_seconds=_KILL_SECONDS)
        self._process.wait(_KILL_SECONDS)
        if rest:
            raise StopError(f"These processes of vLLM at {self.url} could not be killed: {rest}.")

    def close(self) -> None:
        """Kill what still runs of it, and remove its folder."""
        try:
            if hasattr(self, "_process"):
                self.kill()
        finally:
            self._guard.kill()
            self._guard.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        return {
            MARKER: str(self._folder),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": str(cache_root() / "vllm"),
            "VLLM_HOST_IP": self.host,
            "VLLM_NIXL_SIDE_CHANNEL_HOST": self.host,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(KV_SIDE_CHANNEL_PORT),
            "UCX_TLS": "tcp,self,sm",
            "UCX_NET_DEVICES": "lo",
            # One thread for each server: several of them share few cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
            **self.settings.environment,
        }

    def _wait_until_healthy(self, progress: Progress) -> None:
        started = reported = time.monotonic()
        called = f"vLLM ({self.settings.role}) at {self.url}"
        progress.line(f"starting {called}")
        while not self._healthy():
            now = time.monotonic()
            if not self.running:
                raise StartError(
                    f"{called} ended with status {self._process.returncode}:\n{self._last_words()}"
                )
            if now - started > self.settings.ready_seconds:
                raise StartError(
                    f"{called} was not healthy after {self.settings.ready_seconds:.0f} s:\n{self._last_words()}"
                )
            if now - reported > _REPORT_SECONDS:
                reported = now
                progress.passing(f"... {called} is loading")
            time.sleep(_POLL_SECONDS)
        progress.line(f"{called} is ready after {time.monotonic() - started:.0f} s")

    def _healthy(self) -> bool:
        try:
            # Our own address, and plain HTTP.
            urllib.request.urlopen(f"{self.url}/health", timeout=_ANSWER_SECONDS).close()  # noqa: S310
        except OSError:  # as urllib's errors are
            return False
        return True

    def _last_words(self) -> str:
        return "\n".join(self.log.splitlines()[-_SAID_LINES:])


def free_address(*ports: int) -> str:
    """Return an address of loopback where nothing listens on *ports*.

    :raises StartError: when none is found.
    """
    for _ in range(100):
        address = f"127.{64 + secrets.randbelow(192)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
        if all(_is_free(address, port) for port in ports):
            return address
    raise StartError(
        f"No address of loopback has free ports {ports}: does a process listen on all addresses?"
    )


def free_port(*taken: int) -> int:
    """Return a port that is free on all addresses and not among *taken*.

    :raises StartError: when none is found.
    """
    for _ in range(100):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if port not in taken and _is_free("0.0.0.0", port):  # noqa: S104 - asked for, not served on
            return port
    raise StartError("No free TCP port was found.")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True
