"""Keeps the processes of one cluster running, and ends all of them together.

``python -m turnout_devcluster.supervisor --state-dir DIR --claim-fd N`` is started detached by ``Cluster.up``. One
thread, one poll: children's ends, signals, the owner's end, and a tick for restarts that are due.

- What dies is started again, after 0.1 s at first and up to 5 s when it keeps dying.
- SIGTERM, or the end of the owner, ends the cluster: the node agent first so that it starts no pod again, then
  all other processes. The cluster's files are removed only if it had an owner; otherwise ``down`` does that.
- The kernel kills the components when this process dies; the guard ends the pods then.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout_devcluster import guard, logfiles
from turnout_devcluster.apiclient import is_ready
from turnout_devcluster.components import NODE, Component, plan_components
from turnout_devcluster.config import load_config
from turnout_devcluster.files import write_atomically
from turnout_devcluster.layout import ClusterFiles
from turnout_devcluster.processes import (
    MARKER,
    ProcessId,
    become_subreaper,
    dying_with_parent,
    end_marked,
    identify,
    is_alive,
    send_signal,
)
from turnout_devcluster.record import ComponentRecord, store_records

if TYPE_CHECKING:
    from turnout_devcluster.config import ClusterConfig

_FIRST_BACKOFF_SECONDS: Final = 0.1
_LONGEST_BACKOFF_SECONDS: Final = 5.0
_HEALTHY_SECONDS: Final = 20.0
"""A component that has run this long starts its back-off anew."""
_API_POLL_SECONDS: Final = 0.1
_TICK_SECONDS: Final = 10.0
_TERM_SECONDS: Final = 1.0
_KILL_SECONDS: Final = 10.0
_GUARD: Final = "guard"

_log = logging.getLogger("supervisor")


@dataclass(slots=True)
class _Running:
    """The mutable side of one component."""

    component: Component
    process: ProcessId | None = None
    started: float = 0.0
    due: float | None = 0.0
    backoff: float = _FIRST_BACKOFF_SECONDS
    restarts: int = 0
    last_exit: str | None = None


class Supervisor:
    """The loop; see the module's docstring."""

    def __init__(self, files: ClusterFiles, config: ClusterConfig) -> None:
        self._files = files
        self._config = config
        me = identify(os.getpid())
        assert me is not None  # noqa: S101 - we are running
        self._me = me
        guard_command = tuple(guard.command(files.directory, me, remove=config.owner is not None))
        components = (
            Component(_GUARD, guard_command, needs_api=False),
            *plan_components(files, config),
        )
        self._running = {component.name: _Running(component) for component in components}
        self._api_seen = False
        self._stopping = False

    def run(self) -> None:
        """Run until a signal or the owner's end; nothing of the cluster is left on return."""
        become_subreaper()
        wakeup = self._catch_signals()
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        owner = self._watch_owner()
        if owner is not None:
            poll.register(owner, select.POLLIN)
        write_atomically(self._files.supervisor_pid, str(self._me).encode())
        while not self._stopping:
            self._start_what_is_due()
            for descriptor, _ in poll.poll(self._next_wait() * 1000):
                if descriptor == owner:
                    _log.info("the owner, process %s, has ended", self._config.owner)
                    self._stopping = True
                else:
                    wakeup.recv(4096)
            self._reap()
            logfiles.bound(self._files.log("x").parent)
        self._end_all()

    def _catch_signals(self) -> socket.socket:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.detach())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake the poll
        return reader

    def _on_stop(self, number: int, _frame: object) -> None:
        _log.info("stopped by %s", signal.Signals(number).name)
        self._stopping = True

    def _watch_owner(self) -> int | None:
        owner = self._config.owner
        if owner is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(owner.pid)
            if is_alive(owner):
                return descriptor
        self._stopping = True
        return None

    def _next_wait(self) -> float:
        if not self._api_seen:
            return _API_POLL_SECONDS
        now = time.monotonic()
        due = [entry.due - now for entry in self._running.values() if entry.due is not None]
        return max(0.0, min([_TICK_SECONDS, *due]))

    def _start_what_is_due(self) -> None:
        if not self._api_seen and self._running["kube-apiserver"].process is not None:
            self._api_seen = is_ready(self._config, self._files)
        now = time.monotonic()
        changed = False
        for entry in self._running.values():
            waits_for_api = entry.component.needs_api and not self._api_seen
            if entry.due is not None and entry.due <= now and not waits_for_api:
                self._start(entry, now)
                changed = True
        if changed:
            self._write_records()

    def _start(self, entry: _Running, now: float) -> None:
        component = entry.component
        entry.due = None
        entry.started = now
        environment = {**os.environ, MARKER: str(self._files.directory), **component.environment}
        with logfiles.open_append(self._files.log(component.name)) as log:
            try:
                # Single-threaded, so the hook that runs between fork and exec is safe.
                child = subprocess.Popen(
                    component.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                    preexec_fn=None if component.name == _GUARD else dying_with_parent(),  # noqa: PLW1509
                )
            except OSError as error:
                self._ended(entry, f"could not be started: {error}", now)
                return
        child.returncode = 0  # reaped by pid in _reap, together with adopted orphans
        entry.process = identify(child.pid) or ProcessId(child.pid, 0)
        _log.info("%s runs as %d", component.name, child.pid)

    def _reap(self) -> None:
        changed = False
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                for entry in self._running.values():
                    if entry.process is not None and entry.process.pid == pid:
                        self._ended(entry, _describe(status), time.monotonic())
                        changed = True
        if changed:
            self._write_records()

    def _ended(self, entry: _Running, how: str, now: float) -> None:
        if self._stopping:
            _log.info("%s %s", entry.component.name, how)
            entry.process = None
            return
        if now - entry.started > _HEALTHY_SECONDS:
            entry.backoff = _FIRST_BACKOFF_SECONDS
        _log.warning("%s %s; starting it again in %.1f s", entry.component.name, how, entry.backoff)
        entry.process = None
        entry.last_exit = how
        entry.restarts += 1
        entry.due = now + entry.backoff
        entry.backoff = min(entry.backoff * 2, _LONGEST_BACKOFF_SECONDS)

    def _write_records(self) -> None:
        store_records(
            self._files,
            [
                ComponentRecord(name, entry.process, entry.restarts, entry.last_exit)
                for name, entry in self._running.items()
            ],
        )

    def _end_all(self) -> None:
        node = self._running.get(NODE)
        if node is not None and node.process is not None:
            send_signal(node.process, signal.SIGKILL)  # it must not take the pods' end for a crash to repair
        exempt = {os.getpid()}
        guardian = self._running[_GUARD].process
        if guardian is not None:
            exempt.add(guardian.pid)
        rest = end_marked(
            self._files.directory,
            exempt=frozenset(exempt),
            term_seconds=_TERM_SECONDS,
            kill_seconds=_KILL_SECONDS,
        )
        self._reap()
        if rest:
            _log.error("these processes could not be killed: %s", rest)
        if self._config.owner is not None:
            shutil.rmtree(self._files.directory, ignore_errors=True)


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with status {code}"
    return f"was killed by {signal.Signals(-code).name}"


def main() -> None:
    """Run the supervisor of the cluster whose state folder is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--state-dir", type=Path, required=True, help="the cluster's folder")
    parser.add_argument(
        "--claim-fd", type=int, required=True, help="descriptor that holds the network's claim"
    )
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    os.set_inheritable(arguments.claim_fd, False)
    files = ClusterFiles(arguments.state_dir)
    Supervisor(files, load_config(files)).run()


if __name__ == "__main__":
    main()
