"""Ends the engine where the worker was killed and nothing else does: outside a container, where it is not PID 1.

Of PID 1 the kernel kills the whole PID namespace. Elsewhere the kernel kills the engine's first process (PR_SET_PDEATHSIG),
but not what that has started. A forked process of a few private pages waits for the worker's end and kills the rest: the
members of the engine's session, and whatever carries the worker's mark in its environment. It cannot help where it is killed
together with the worker, and does not find a process that has left the session and overwritten its environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from typing import Final

MARK: Final = "TURNOUT_WORKER_ID"
"""Variable in the environment of the engine: which worker started it."""
_SWEEP_SECONDS: Final = 0.05
_MOST_SECONDS: Final = 5.0
_SESSION_FIELD: Final = 3
"""Index into /proc/PID/stat behind the parenthesized name: field 6 of proc(5)."""


class Guard:
    """The worker's end of it. To be made before there is any other thread."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.pid = 0
        """0 where none is needed."""
        self._lifeline = -1
        if os.getpid() != 1:
            self._start()

    def watch(self, session: int) -> None:
        """Have the session of that number killed when the worker dies."""
        if self.pid:
            with contextlib.suppress(BrokenPipeError):  # it was killed: the engine still has its own signal
                os.write(self._lifeline, b"%d\n" % session)

    def dismiss(self) -> None:
        """End it: the worker has ended everything itself."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            os.close(self._lifeline)
            self.pid = 0

    def _start(self) -> None:
        read, self._lifeline = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _guard(read, self.mark)
            finally:
                os._exit(0)
        os.close(read)


def _guard(lifeline: int, mark: str) -> None:
    """Wait for the worker's end, and kill what it has left."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(lifeline, 3)
    os.closerange(4, 1024)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    received = b""
    while part := os.read(3, 4096):
        received = (received + part)[-4096:]
    words = received.split()
    session = int(words[-1]) if words else 0
    needle = f"{MARK}={mark}".encode()
    deadline = time.monotonic() + _MOST_SECONDS
    while (left := _left(session, needle)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_SWEEP_SECONDS)


def _left(session: int, needle: bytes) -> list[int]:
    """Return the living processes of *session*, and those with *needle* in their environment.

    0 is no session: the worker died before it had started an engine.
    """
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib would cost memory
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
            if fields[0] in (b"Z", b"X"):
                continue
            # /proc says 0 for every process whose session is led from outside this PID namespace: strangers, all of them.
            is_member = session > 1 and int(fields[_SESSION_FIELD]) == session
            if is_member or needle in _read(f"/proc/{name}/environ").split(b"\0"):
                found.append(int(name))
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - procfs
        return file.read()
