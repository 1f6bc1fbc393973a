"""Turnout and its peers: where each comes from, and how it is started over the same workers.

Peers from PyPI live in virtual environments of their own under the cache (`TURNOUT_CACHE`, default
~/.cache/turnout); nginx is Debian's. Each contestant is one process tree, pinned to one core.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KEY = "sk-turnout-bench-4f1b2c"
_INSTALL_SECONDS = 600.0
_PR_SET_PDEATHSIG = 1
COMPILED = Path("build/compiled")
_CACHE = Path(os.environ.get("TURNOUT_CACHE") or Path.home() / ".cache" / "turnout") / "bench"


class LeftOutError(Exception):
    """A peer that cannot be had here, and why."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One router: what people call it, and its command line for (own port, spare port, workers' ports, folder)."""

    name: str
    title: str
    command: Callable[[int, int, Sequence[int], Path], list[str]]


def turnout(compiled: Path, port: int, spare: int, workers: Sequence[int], folder: Path) -> list[str]:
    """Return the command line of the router that was compiled into *compiled*. Its libraries stand in `env`'s arguments."""
    libraries = f"{compiled.resolve()}:{sysconfig.get_path('platlib')}"
    start = "from turnout_router.main import main; main()"
    arguments = _interpreted(port, spare, workers, folder)[1:]
    return ["env", f"PYTHONPATH={libraries}", interpreter(), "-c", start, *arguments]


def _turnout(port: int, spare: int, workers: Sequence[int], folder: Path) -> list[str]:
    """As in the router's image: with the path of a request compiled."""
    if not (COMPILED / "turnout_router").exists():
        raise LeftOutError("it is not compiled: make compiled")
    return turnout(COMPILED, port, spare, workers, folder)


def interpreter() -> str:
    """Return Debian's Python where it is of this version: like the image's, it was built with profile-guided optimization.

    An interpreter that was built without takes an eighth more instructions for the same requests.
    """
    debian = "/usr/bin/python3"
    probe = "import sys; print(sys.version_info[:2])"
    if not Path(debian).exists():
        return sys.executable
    version = subprocess.run([debian, "-c", probe], capture_output=True, text=True, check=True).stdout
    return debian if version.strip() == str(sys.version_info[:2]) else sys.executable


def _interpreted(port: int, spare: int, workers: Sequence[int], folder: Path) -> list[str]:
    """Everything on: keys are required, admission, metrics and goodput are always on."""
    config = folder / "turnout.yaml"
    backends = "".join(f'\n      - {{url: "http://127.0.0.1:{w}", role: aggregated}}' for w in workers)
    config.write_text(
        f"""deployments:
  - name: default/bench
    servedNames: [bench]
    backends:{backends}
budgets:
  - name: default/team
    keys: [{{name: bench, sha256: {hashlib.sha256(KEY.encode()).hexdigest()}}}]
    models: [bench]
"""
    )
    binary = Path(sys.executable).parent / "turnout-router"
    own = ["--host", "127.0.0.1", "--port", str(port), "--admin-port", str(spare)]
    rest = ["--auth", "required", "--shutdown-delay", "0", "--log-level", "warning"]
    return [str(binary), "--config", str(config), *own, *rest]


def _nginx(port: int, _spare: int, workers: Sequence[int], folder: Path) -> list[str]:
    """As it stands in front of LLM workers: kept connections, answers passed on as they come, no access log."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise LeftOutError("nginx is not installed (on Debian: apt-get install nginx-light)")
    user = "user root;" if os.geteuid() == 0 else ""
    servers = "".join(f"server 127.0.0.1:{w}; " for w in workers)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"""{user} worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
worker_rlimit_nofile 10000;
events {{ worker_connections 5000; }}
http {{
  access_log off; {temporary}
  client_max_body_size 64m; client_body_buffer_size 128k; keepalive_requests 100000000;
  upstream workers {{ {servers} keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://workers; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""
    )
    return [binary, "-p", str(folder), "-e", f"{folder}/nginx.log", "-c", str(config)]


def _sglang(policy: str) -> Callable[[int, int, Sequence[int], Path], list[str]]:
    def command(port: int, spare: int, workers: Sequence[int], _folder: Path) -> list[str]:
        binary = _installed("sglang-router", "0.3.2")
        urls = ["--worker-urls", *(f"http://127.0.0.1:{w}" for w in workers)]
        return [binary, "launch", *urls, "--policy", policy, *_peer_ports(port, spare)]

    return command


def _vllm(policy: str) -> Callable[[int, int, Sequence[int], Path], list[str]]:
    def command(port: int, spare: int, workers: Sequence[int], _folder: Path) -> list[str]:
        binary = _installed("vllm-router", "0.1.17")
        urls = ["--worker-urls", *(f"http://127.0.0.1:{w}" for w in workers)]
        return [binary, *urls, "--policy", policy, *_peer_ports(port, spare)]

    return command


def _peer_ports(port: int, spare: int) -> list[str]:
    quiet = ["--log-level", "error"]
    return ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(spare), *quiet]


ALL = (
    Contestant("turnout", "Turnout", _turnout),
    Contestant("turnout_interpreted", "Turnout, not compiled", _interpreted),
    Contestant("nginx", "nginx", _nginx),
    Contestant("sglang_cache_aware", "sglang-router, cache_aware", _sglang("cache_aware")),
    Contestant("sglang_round_robin", "sglang-router, round_robin", _sglang("round_robin")),
    Contestant("vllm_cache_aware", "vllm-router, cache_aware", _vllm("cache_aware")),
)


def _installed(package: str, version: str) -> str:
    """Return the path of *package*'s command, installing it first where it is missing. Raise LeftOutError."""
    home = _CACHE / f"{package}-{version}"
    binary = home / "bin" / package
    if binary.exists():
        return str(binary)
    print(f"installing {package} {version} into {home} (once)", file=sys.stderr)
    uv = shutil.which("uv")
    wanted = f"{package}=={version}"
    steps = (
        ([uv, "venv", "--quiet", "--python", sys.executable, str(home)] if uv else None)
        or [sys.executable, "-m", "venv", "--clear", str(home)],
        ([uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), wanted] if uv else None)
        or [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", wanted],
    )
    for step in steps:
        try:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(home, ignore_errors=True)
            lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise LeftOutError(f"{wanted} cannot be installed: {lines[-1] if lines else error}") from error
    return str(binary)


def start(argv: Sequence[str], core: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a process on *core* that ends with this one."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        os.sched_setaffinity(0, {core})

    with log.open("wb") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=prepare,  # noqa: PLW1509 - this program has one thread when it starts its children
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that `start` began, its children with it."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
