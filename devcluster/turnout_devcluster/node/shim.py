"""Parent of one container: starts it, records how it ended, and ends with it or with its cluster.

Run as ``python -I -S shim.py`` by the node agent, in a session of its own, with the plan as JSON on
stdin (so that no secret lies on a disk); its stdout is closed once the start is recorded. It outlives the agent; the agent finds it again by the state
file. Only the standard library is imported, and little of it: there is one shim per container.

State file, replaced atomically: ``{"shim": [PID, START]}`` once claimed, then ``pid``, ``pid_start`` and
``started_at``, in the end ``finished_at``, ``exit_code``, ``signal`` and ``error``. It is claimed by link(2), which
fails where the file exists: an agent that gave the start up claims it first, and this process ends at once.

What ends it: the container's first process ends (what that left behind is killed then, as the end of a
PID namespace does); or the supervisor named in the plan's ``supervisor_file`` is gone for good.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost every container a megabyte
    from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
START_FAILED = 128
SUCCESSOR_SECONDS = 3.0
REAP_SECONDS = 5.0


def start_time(pid: int) -> int | None:
    """Return when process *pid* started, in clock ticks since boot; None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib costs this process a megabyte
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _write(path: str, state: dict[str, Any], *, claim: bool = False) -> bool:
    """Put *state* at *path* in one step. Return False where *claim* finds the file taken."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:  # noqa: PTH123 - as above
        json.dump(state, file)
    if not claim:
        os.replace(temporary, path)  # noqa: PTH105 - as above
        return True
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)  # noqa: PTH108 - as above
    return True


def _become(plan: dict[str, Any], errors: int, prctl: Any) -> None:
    """Turn this (forked) process into the container. Return only by an OSError."""
    os.setsid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != plan["shim"]:
        os._exit(START_FAILED)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.set_inheritable(errors, False)
    os.chdir(plan["cwd"])
    os.execvpe(plan["argv"][0], plan["argv"], plan["env"])  # noqa: S606 - no shell is wanted


def _fork(plan: dict[str, Any], prctl: Any) -> tuple[int, str]:
    """Start the container. Return its process id, and why it could not be started, if so."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(plan, write, prctl)
        except (OSError, ValueError) as error:
            os.write(write, f"exec {plan['argv'][0]!r} in {plan['cwd']}: {error}".encode()[:4000])
        os._exit(START_FAILED)
    os.close(write)
    problem = b""
    while part := os.read(read, 4096):
        problem += part
    os.close(read)
    return pid, problem.decode(errors="replace")


def _supervisor(path: str) -> int | None:
    """Return the process id of the supervisor that *path* names, None where it is not alive."""
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123 - as above
            pid, start = (int(word) for word in file.read().split()[:2])
    except (OSError, ValueError):
        return None
    return pid if start_time(pid) == start else None


class _SupervisorWatch:
    """Watches whether the supervisor is gone for good. Without a supervisor file in the plan it never is."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.handle = -1
        self.gone_since: float | None = None
        if path and os.path.exists(path):  # noqa: PTH110 - as above
            self._hold()

    def _hold(self) -> None:
        pid = _supervisor(self.path)
        try:
            self.handle = os.pidfd_open(pid) if pid is not None else -1
        except OSError:
            self.handle = -1
        self.gone_since = None if self.handle >= 0 else self.gone_since or time.monotonic()

    def is_gone(self) -> bool:
        """Return whether the supervisor has ended and no other has taken its place in time."""
        if self.handle < 0 and self.gone_since is None:
            return False
        if self.handle >= 0:
            if not select.select([self.handle], [], [], 0)[0]:
                return False
            os.close(self.handle)
            self.handle = -1
            self.gone_since = time.monotonic()
        self._hold()
        return self.gone_since is not None and time.monotonic() - self.gone_since > SUCCESSOR_SECONDS

    def wait_milliseconds(self) -> int | None:
        """How long a wait may last; None for as long as nothing happens."""
        return None if self.gone_since is None else 500


def _reap(main: int) -> int | None:
    """Reap every child that has ended. Return the wait status of *main* where it is among them."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == main:
            status = ended


def _children() -> list[int]:
    """Return the children of this process, orphans of the container that fell to it included."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:  # noqa: PTH123 - as above
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _kill_rest(group: int) -> None:
    """Kill what the container left behind, orphans of orphans included, and reap it."""
    deadline = time.monotonic() + REAP_SECONDS
    while time.monotonic() < deadline:
        try:  # noqa: SIM105 - contextlib would cost every container memory
            os.killpg(group, signal.SIGKILL)
        except OSError:
            pass  # the group is empty
        children = _children()
        for child in children:
            os.kill(child, signal.SIGKILL)
        if not children:
            return
        os.waitpid(-1, 0)


def _watch(main: int, supervisor: _SupervisorWatch, wakeups: int) -> int:
    """Return the wait status of *main* once it has ended, by itself or because its cluster is gone."""
    while True:
        status = _reap(main)
        if status is not None:
            return status
        if supervisor.is_gone():
            os.killpg(main, signal.SIGKILL)
            return os.waitpid(main, 0)[1]
        poll = select.poll()
        poll.register(wakeups, select.POLLIN)
        if supervisor.handle >= 0:
            poll.register(supervisor.handle, select.POLLIN)
        for handle, _ in poll.poll(supervisor.wait_milliseconds()):
            if handle == wakeups and int(signal.SIGTERM) in os.read(wakeups, 4096):
                os.killpg(main, signal.SIGTERM)


def main() -> int:
    """Run the container whose plan stdin has; return 0 once its end is recorded."""
    plan = json.loads(sys.stdin.buffer.read())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    plan["shim"] = os.getpid()
    state: dict[str, Any] = {"shim": [os.getpid(), start_time(os.getpid())]}
    if not _write(plan["state"], state, claim=True):
        return 0
    supervisor = _SupervisorWatch(plan.get("supervisor_file", ""))
    state["started_at"] = time.time()
    pid, problem = _fork(plan, libc.prctl)
    if problem:
        os.waitpid(pid, 0)
        state |= {"finished_at": time.time(), "exit_code": START_FAILED, "signal": 0, "error": problem}
        _write(plan["state"], state)
        return 0  # and with this process its stdout ends
    state |= {"pid": pid, "pid_start": start_time(pid)}
    _write(plan["state"], state)
    os.close(1)  # signals the agent, which reads the other end, that the state file has the result
    path = plan["state"]
    del plan  # it holds the container's secrets
    status = _watch(pid, supervisor, read)
    finished = time.time()
    _kill_rest(pid)
    killer = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 128 + killer if killer else os.WEXITSTATUS(status)
    _write(path, state | {"finished_at": finished, "exit_code": code, "signal": killer, "error": ""})
    return 0


if __name__ == "__main__":
    sys.exit(main())
