"""Child processes of PID 1: started in sessions of their own, reaped all, ended with everything they started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
import time
from pathlib import Path
from signal import SIGCHLD, SIGKILL, Signals
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_SWEEP_SECONDS: Final = 0.02
_PARENT_DIED: Final = 128


class Child:
    """A process that the worker started, the leader of its own session and group."""

    def __init__(self, pid: int, ended: asyncio.Future[int]) -> None:
        self.pid = pid
        self.ended = ended
        """Its exit status; 128 plus the number of the signal where one ended it."""

    def signal(self, number: Signals) -> None:
        """Send *number* to the process alone. No effect where it has ended."""
        if not self.ended.done():  # until then its number is its own: it is reaped by this very thread
            os.kill(self.pid, number)

    def signal_group(self, number: Signals) -> None:
        """Send *number* to the process and to those of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Children:
    """All children of this process, orphans that fell to it included. To be made on the event loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._known: dict[int, tuple[asyncio.Future[int], subprocess.Popen[bytes]]] = {}
        libc = ctypes.CDLL(None, use_errno=True)
        self._prctl: Callable[..., int] = libc.prctl
        self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what PID 1 is anyway
        self._loop.add_signal_handler(SIGCHLD, self.reap)

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], *, output: int, errors: int) -> Child:
        """Start *argv* in a session of its own; the kernel kills it when the worker dies.

        *output* and *errors* become its stdout and stderr. Raise OSError where it cannot be started.
        """
        process = subprocess.Popen(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            preexec_fn=self._die_with_parent(),  # noqa: PLW1509 - no other thread runs when a child is started
        )
        ended: asyncio.Future[int] = self._loop.create_future()
        self._known[process.pid] = ended, process
        return Child(process.pid, ended)

    def reap(self) -> None:
        """Take every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            known = self._known.pop(pid, None)
            if known is not None:
                ended, process = known
                code = os.waitstatus_to_exitcode(status)
                process.returncode = code  # what Popen would wait for is taken
                if not ended.done():
                    ended.set_result(code if code >= 0 else 128 - code)

    async def kill_rest(self, seconds: float, *, spared: frozenset[int]) -> None:
        """Kill and take all children but those in *spared*, and the orphans that fall to this process by that.

        At most *seconds*: what the kernel does not let go of then is left to the container's end.
        """
        deadline = time.monotonic() + seconds
        while True:
            self.reap()
            left = [pid for pid in _children() if pid not in spared]
            if not left or time.monotonic() >= deadline:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, SIGKILL)
            await asyncio.sleep(_SWEEP_SECONDS)

    def _die_with_parent(self) -> Callable[[], None]:
        prctl, parent = self._prctl, os.getpid()

        def arm() -> None:
            prctl(_PR_SET_PDEATHSIG, SIGKILL)
            if os.getppid() != parent:  # it died between fork and prctl
                os._exit(_PARENT_DIED)

        return arm


def _children() -> list[int]:
    """Return the children of this process; empty where the kernel does not list them."""
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]


def oom_kills() -> int:
    """Return how many processes the kernel has killed for the container's memory limit; 0 where it does not say."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
