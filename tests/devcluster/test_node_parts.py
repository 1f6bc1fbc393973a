"""Parts of the node on their own: shim, splice, mounts, logs, disk; real processes, sockets and files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support.devcluster_waiting import eventually
from turnout_devcluster.node import logs
from turnout_devcluster.node.attempts import PodDisk, PodRecord, RunAttempt
from turnout_devcluster.node.mounts import link_host_path, make_mounts, write_volume
from turnout_devcluster.node.plan import Mount
from turnout_devcluster.node.processes import SHIM, Process, run, spawn_shim
from turnout_devcluster.node.shim import start_time
from turnout_devcluster.node.splice import Inbound
from turnout_devcluster.node.volumes import File
from turnout_runtime.supervision import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def record() -> PodRecord:
    return PodRecord("n", "p", "u", "node-0", "127.70.1.1", 0.0, {"c": [RunAttempt(0, "abcd", 0)]})


def _plan(disk: PodDisk, *argv: str, **fields: Any) -> dict[str, Any]:
    disk.container("c").mkdir(parents=True, exist_ok=True)
    return {
        "argv": list(argv),
        "env": {"PATH": os.environ["PATH"]},
        "cwd": str(disk.path),
        "log": str(disk.log_path("c", 0)),
        "state": str(disk.state_path("c", RunAttempt(0, "abcd", 0))),
        "supervisor_file": "",
        **fields,
    }


async def _start(disk: PodDisk, *argv: str, **fields: Any) -> Process:
    """Run a container under a shim; return the shim."""
    await spawn_shim(_plan(disk, *argv, **fields), 10)
    file = disk.read_run("c", RunAttempt(0, "abcd", 0))
    assert file is not None
    return file.shim


async def _end(shim: Process) -> None:
    async with asyncio.timeout(15):
        await shim.ended()


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [("exit 0", 0, 0), ("exit 7", 7, 0), ("kill -9 $$", 137, 9), ("kill -15 $$", 143, 15)],
)
async def test_shim_records_how_it_ended(tmp_path: Path, script: str, code: int, number: int) -> None:
    """Exit code and signal of the container are in the state file, its output in the log."""
    disk = PodDisk(tmp_path)
    await _end(await _start(disk, "sh", "-c", f"echo out; echo err >&2; {script}"))
    file = disk.read_run("c", RunAttempt(0, "abcd", 0))
    assert file is not None
    assert (file.run.exit_code, file.run.signal, file.run.running) == (code, number, False)
    assert disk.log_path("c", 0).read_text() == "out\nerr\n"


async def test_shim_records_why_nothing_started(tmp_path: Path) -> None:
    """A program that does not exist is a StartError with its name."""
    disk = PodDisk(tmp_path)
    await _end(await _start(disk, "no-such-program"))
    file = disk.read_run("c", RunAttempt(0, "abcd", 0))
    assert file is not None
    assert file.run.reason == "StartError"
    assert "no-such-program" in file.run.message


async def test_shim_ends_what_the_container_leaves(tmp_path: Path) -> None:
    """Processes that the container started in sessions of their own end with its first process."""
    disk = PodDisk(tmp_path)
    shim = await _start(disk, "sh", "-c", "setsid sleep 600 & echo $! ; sleep 0.3")
    await _end(shim)
    left = int(disk.log_path("c", 0).read_text())
    eventually(lambda: start_time(left) is None, seconds=60, what="the orphan is gone")


async def test_shim_whose_run_was_given_up_starts_nothing(tmp_path: Path) -> None:
    """A shim that comes after its run was given up leaves without a trace; one that was first keeps it."""
    disk, run_attempt = PodDisk(tmp_path), RunAttempt(0, "abcd", 0)
    assert disk.give_up("c", run_attempt)
    plan = json.dumps(_plan(disk, "sh", "-c", "echo started"))
    shim = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", SHIM, stdin=subprocess.PIPE)
    async with asyncio.timeout(10):
        await shim.communicate(plan.encode())
    assert shim.returncode == 0
    assert disk.read_run("c", run_attempt) is None
    assert not disk.log_path("c", 0).exists()


@pytest.fixture
def supervisors() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that stand for supervisors."""
    started = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def _name(file: Path, supervisor: subprocess.Popen[bytes]) -> str:
    file.write_text(f"{supervisor.pid} {start_time(supervisor.pid)}")
    return str(file)


async def test_shim_ends_with_its_cluster(tmp_path: Path, supervisors: list[subprocess.Popen[bytes]]) -> None:
    """When the supervisor that the state folder names is gone for good, the container is killed."""
    named = _name(tmp_path / "supervisor.pid", supervisors[0])
    disk = PodDisk(tmp_path / "pod")
    shim = await _start(disk, "sleep", "600", supervisor_file=named)
    assert shim.alive
    supervisors[0].kill()
    await _end(shim)
    file = disk.read_run("c", RunAttempt(0, "abcd", 0))
    assert file is not None
    assert file.run.signal == signal.SIGKILL


async def test_shim_goes_on_under_a_new_supervisor(
    tmp_path: Path, supervisors: list[subprocess.Popen[bytes]]
) -> None:
    """A supervisor that is replaced in time does not end the containers."""
    named = _name(tmp_path / "supervisor.pid", supervisors[0])
    disk = PodDisk(tmp_path / "pod")
    # It shows when the time that a successor has is over for certain.
    shim = await _start(disk, "sh", "-c", "sleep 5; echo survived", supervisor_file=named)
    _name(tmp_path / "supervisor.pid", supervisors[1])
    supervisors[0].kill()
    await _end(shim)
    assert disk.log_path("c", 0).read_text() == "survived\n"


async def test_hook_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    """A command that outlives its time is killed with its children and reported as such."""
    code, output = await run(["sh", "-c", "sleep 606 & sleep 606"], dict(os.environ), str(tmp_path), 0.3)
    assert code == 124
    assert "longer than 0.3 s" in output


def test_records_survive(tmp_path: Path, record: PodRecord) -> None:
    """A record comes back as it was; one that cannot be read counts as none."""
    disk = PodDisk(tmp_path)
    disk.save(record)
    assert disk.load() == record
    (tmp_path / "pod.json").write_text("{")
    assert disk.load() is None


def test_volume_is_swapped_in_one_step(tmp_path: Path) -> None:
    """Readers go through one link that is replaced; what is gone from the source is gone from the folder."""
    assert write_volume(tmp_path / "v", {"a": File(b"1", 0o644), "d/b": File(b"2", 0o600)})
    before = (tmp_path / "v" / "..data").readlink()
    assert not write_volume(tmp_path / "v", {"a": File(b"1", 0o644), "d/b": File(b"2", 0o600)})
    assert write_volume(tmp_path / "v", {"a": File(b"3", 0o644)})
    assert (tmp_path / "v" / "..data").readlink() != before
    assert (tmp_path / "v" / "a").read_bytes() == b"3"
    assert sorted(p.name for p in (tmp_path / "v").iterdir() if not p.name.startswith("..")) == ["a"]
    assert len(list((tmp_path / "v").iterdir())) == 3  # a, ..data, and the folder it leads to


def test_mounts_can_be_made_again(tmp_path: Path) -> None:
    """Mounts, one within another too, are the same after a second start."""
    source = tmp_path / "volumes"
    for name in ("x", "y"):
        (source / name).mkdir(parents=True)
    (source / "x" / "f").write_text("f")
    mounts = (
        Mount("/data", f"{source}/x", is_sub_path=False),
        Mount("/data/in/y", f"{source}/y", is_sub_path=False),
    )
    for _ in range(2):
        make_mounts(tmp_path / "root", mounts)
        assert (tmp_path / "root/data/f").read_text() == "f"
        assert (tmp_path / "root/data/in/y").resolve() == source / "y"


def test_log_over_its_bound_is_cut(tmp_path: Path) -> None:
    """What a log held over its bound moves aside, and the writer goes on at the file's new end."""
    path = tmp_path / "0.log"
    with path.open("ab") as writer:
        writer.write(b"x" * 100)
        writer.flush()
        assert logs.cut(path, 50)
        writer.write(b"new")
        writer.flush()
        assert not logs.cut(path, 50)
    assert path.read_bytes() == b"new"
    assert (tmp_path / "0.log.1").read_bytes() == b"x" * 100


@pytest.mark.parametrize(
    ("lines", "tail"), [(None, "a\nb\nc\n"), (0, ""), (1, "c\n"), (2, "b\nc\n"), (9, "a\nb\nc\n")]
)
async def test_tail(tmp_path: Path, lines: int | None, tail: str) -> None:
    """The last lines are found from the end."""
    path = tmp_path / "0.log"
    path.write_text("a\nb\nc\n")
    blocks = logs.read(path, lines=lines, limit=None, is_over=lambda: True, follow=False)
    assert b"".join([block async for block in blocks]).decode() == tail


class _Echo(asyncio.Protocol):
    """Answers with what it got once the client has said all."""

    def __init__(self) -> None:
        self.got = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> bool:
        self.transport.write(bytes(self.got))
        self.transport.close()
        return True


async def _talk(choose: Callable[[], tuple[str, int] | None], payload: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(lambda _: None, logging.getLogger("test.splice"))
    front = await loop.create_server(lambda: Inbound(choose, supervisor), "127.0.0.1", 0)
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*front.sockets[0].getsockname()[:2])
        try:
            writer.write(payload)
            await writer.drain()
            writer.write_eof()
            answer = await reader.read()
        except OSError:
            answer = b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    front.close()
    await front.wait_closed()
    await supervisor.stop()
    return answer


async def test_splice_passes_everything_and_half_closes() -> None:
    """Megabytes go both ways, and the end of one direction leaves the other open until its answer is through."""
    loop = asyncio.get_running_loop()
    back = await loop.create_server(_Echo, "127.0.0.1", 0)
    payload = os.urandom(8 * 1024 * 1024)
    host, port = back.sockets[0].getsockname()[:2]
    assert await _talk(lambda: (host, port), payload) == payload
    back.close()
    await back.wait_closed()


async def test_splice_without_a_target_closes() -> None:
    """No address to forward to, or no process that answers there: the client's connection ends."""
    assert await _talk(lambda: None, b"hello") == b""
    assert await _talk(lambda: ("127.0.0.1", 1), b"hello") == b""


def test_process_is_not_taken_for_a_later_one() -> None:
    """A process id with another start time is another process: it is neither alive nor signaled."""
    mine = start_time(os.getpid())
    assert mine is not None
    other = Process(os.getpid(), mine - 1)
    assert not other.alive
    other.signal_group(signal.SIGKILL)


def test_host_path_leads_to_the_folder(tmp_path: Path) -> None:
    """A hostPath is the machine's own folder, made where its type says so, and is no part of the pod's that is deleted."""
    volume, folder = tmp_path / "pod" / "volumes" / "v", tmp_path / "host" / "models"
    assert link_host_path(volume, {"path": str(folder), "type": "DirectoryOrCreate"}) is None
    assert link_host_path(volume, {"path": str(folder), "type": "Directory"}) is None
    (volume / "file").write_text("kept")
    shutil.rmtree(tmp_path / "pod")
    assert (folder / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"path": "/does/not/exist", "type": "Directory"}, "/does/not/exist is not a directory: make it"),
        ({"path": "/does/not/exist"}, "is not a directory"),
        ({"path": "/dev/null", "type": "CharDevice"}, "the dev cluster has only folders"),
    ],
)
def test_host_path_that_is_no_folder(tmp_path: Path, source: dict[str, str], says: str) -> None:
    """A hostPath that the machine does not have ends in a sentence of the pod's Event."""
    refusal = link_host_path(tmp_path / "v", source)
    assert refusal is not None
    assert says in refusal.message


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("", ""),
        ("a\nb\n", "a\nb\n"),
        ("x\n" * 100, "x\n" * 80),
        ("y" * 5000 + "\nthe end\n", "y" * 2039 + "\nthe end\n"),
    ],
)
def test_last_words_of_a_log(tmp_path: Path, written: str, kept: str) -> None:
    """A container that fails leaves the end of its log as its message, no more of it than under the kubelet."""
    path = tmp_path / "0.log"
    path.write_text(written)
    assert logs.last_words(path) == kept
    assert logs.last_words(tmp_path / "1.log") == ""
