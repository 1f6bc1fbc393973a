"""Local processes: identifying one beyond its pid, signaling, waiting, running."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from turnout_devcluster.node.shim import PR_SET_PDEATHSIG, start_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHIM: Final = str(Path(__file__).with_name("shim.py"))
OUTPUT_BYTES: Final = 4096
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _reap(pid: int) -> None:
    """Take *pid* where it is an ended child of ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@dataclass(frozen=True, slots=True)
class Process:
    """A process, identified by pid and start time: a later process may get the same pid."""

    pid: int
    start: int
    """Clock ticks since boot, from /proc/PID/stat."""

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return start_time(self.pid) == self.start

    def signal_group(self, number: signal.Signals) -> None:
        """Send *number* to its process group. No effect where it has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def ended(self) -> None:
        """Wait until it has ended, and take it where it is a child of ours."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.add_reader(handle, _resolve, done)
        try:
            if start_time(self.pid) == self.start:
                await done
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        _reap(self.pid)


async def spawn_shim(plan: Mapping[str, Any], timeout_seconds: float) -> None:
    """Start a shim that runs *plan* (see `turnout_devcluster.node.shim`).

    Return once its state file says how the start went, or after *timeout_seconds*.
    """
    started = _spawn(plan)
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    # The shim writes nothing there: the pipe becomes readable by its end.
    loop.add_reader(started, _resolve, done)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await done
    finally:
        loop.remove_reader(started)
        os.close(started)


def _spawn(plan: Mapping[str, Any]) -> int:
    """Start a shim. Return the end of a pipe whose other end it closes when it has recorded the start."""
    read, write = os.pipe()
    started, report = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", SHIM],
            # The marker is by what leftovers of a cluster are found in /proc/PID/environ.
            {"TURNOUT_DEV_CLUSTER": plan["env"].get("TURNOUT_DEV_CLUSTER", "")},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read, 0),
                (os.POSIX_SPAWN_DUP2, report, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
            ],
            setsid=True,
        )
    finally:
        for handle in (read, null, report):
            os.close(handle)
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb") as pipe:
        pipe.write(json.dumps(dict(plan)).encode())
    return started


def _die_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


async def run(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, timeout_seconds: float
) -> tuple[int, str]:
    """Run a probe's or hook's command. Return its exit code and the head of its output.

    It is killed, its group with it, after *timeout_seconds* (exit code 124), or when the caller is
    cancelled. One that cannot be started has exit code 127.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    except (OSError, ValueError) as error:
        return 127, str(error)
    head = bytearray()

    async def collect() -> None:
        while process.stdout is not None and (part := await process.stdout.read(65536)):
            head.extend(part[: max(0, OUTPUT_BYTES - len(head))])

    try:
        async with asyncio.timeout(timeout_seconds):
            await collect()
            return await process.wait(), head.decode(errors="replace")
    except TimeoutError:
        return 124, f"command {argv[0]} took longer than {timeout_seconds:g} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def kill_all(processes: Sequence[Process], grace_seconds: float) -> None:
    """End the groups of *processes*: SIGTERM, and SIGKILL to those still alive after *grace_seconds*."""
    for process in processes:
        process.signal_group(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while any(p.alive for p in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        process.signal_group(signal.SIGKILL)
