"""What a request and a streamed token cost in Turnout's router and in its peers, on one core over the same workers.

Run as ``python benchmarks/router/run.py [--quick]`` from the repository's root (``make bench-router``). Turnout runs
with everything on. All routers stand at once, pinned to one core; each round gives every workload to each of them in
turn, so that what disturbs the machine disturbs all. Workers and client share the other core. CPU is the
process tree's own clock, which a busy machine hardly bends; requests/s and latencies it does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import contestants
import load
import processes
import report
import uvloop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

_READY_SECONDS = 60.0
_LOAD_SECONDS = 300.0
_CHUNKS_PER_SECOND = 8000
"""Events of all streams together: each is then its own read and its own write, in whatever router."""
_BYTES = {"2kB": 2_000, "32kB": 32_000}
_MANY_STREAMS = 2_000
_MANY_EVENTS = 20
_MANY_EVERY_MS = 500
_MANY_RAMP_SECONDS = 4.0
"""They begin within this time and last for 10 s, so that for 6 s all run at once."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: rounds, requests at each concurrency (a third of them at 32 kB), chunks per workload."""

    rounds: int
    requests: dict[int, int]
    chunks: int
    warm_up: int = 1000


FULL = Effort(rounds=5, requests={1: 1000, 8: 3000, 64: 6000}, chunks=40_000)
QUICK = Effort(rounds=3, requests={1: 300, 8: 1200, 64: 3000}, chunks=12_800)


@dataclass(slots=True)
class Stand:
    """Everything that runs: the workers' ports, each router's process and port, and who is not here and why."""

    workers: list[int] = field(default_factory=list)
    routers: dict[str, tuple[subprocess.Popen[bytes], int]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Measure, print, write build/bench/router.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer requests and rounds: two minutes, coarser"
    )
    parser.add_argument("--only", metavar="NAME", action="append", help="leave the other contestants out")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("this needs two cores: one for the routers, one for workers and client")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    effort = QUICK if options.quick else FULL
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        stand = _set_up(stack, folder, cores[0], cores[-1], options.only)
        os.sched_setaffinity(0, {cores[-1]})
        answer = uvloop.run(_measure(stand, effort))
    path = Path("build/bench/router.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(answer, indent=1) + "\n")
    titles = {c.name: c.title for c in contestants.ALL}
    print(report.table(answer["peers"], titles))
    if any(answer["ratios"].values()):
        print("\n" + report.ratio_table(answer["ratios"], titles))
    if many := answer["many_streams"]:
        print(
            f"\n{many['streams']:,} streams at a time through Turnout: {many['rss_mb']} MB, "
            f"{many['errors']} errors, {many['chunks']:,} chunks."
        )
    for name, reason in stand.left_out.items():
        print(f"\nLeft out: {titles[name]}: {reason}")
    print(f"\nFigures: {path}")


def _set_up(
    stack: ExitStack, folder: Path, router_core: int, other_core: int, only: list[str] | None
) -> Stand:
    stand = Stand()
    script = Path(__file__).with_name("mock_backend.py")
    for port in (_free_port(), _free_port()):
        process = contestants.start(
            [sys.executable, str(script), str(port)], other_core, folder / f"worker-{port}.log"
        )
        stack.callback(contestants.stop, process)
        _wait_for(port, process, folder / f"worker-{port}.log")
        stand.workers.append(port)
    for contestant in contestants.ALL:
        if only and contestant.name not in only:
            continue
        port = _free_port()
        home = folder / contestant.name
        home.mkdir()
        try:
            argv = contestant.command(port, _free_port(), stand.workers, home)
        except contestants.LeftOutError as error:
            stand.left_out[contestant.name] = str(error)
            continue
        process = contestants.start(argv, router_core, home / "log")
        stack.callback(contestants.stop, process)
        try:
            _wait_for(port, process, home / "log")
        except contestants.LeftOutError as error:
            contestants.stop(process)
            stand.left_out[contestant.name] = str(error)
            continue
        stand.routers[contestant.name] = (process, port)
    return stand


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a completion is answered. Raise LeftOutError where that does not come."""
    (request,) = load.requests(100, contestants.KEY)[:1]
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                connection.sendall(request)
                if connection.recv(4096).startswith(b"HTTP/1.1 200 "):
                    return
        except OSError:
            pass  # not listening yet
        time.sleep(0.1)
    lines = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise contestants.LeftOutError(f"it did not come up: {' / '.join(lines) or 'its log is empty'}")


async def _measure(stand: Stand, effort: Effort) -> dict[str, Any]:
    samples = report.Samples()
    names = list(stand.routers)
    warm = load.Load(load.requests(2_000, contestants.KEY), 8, effort.warm_up)
    for name in names:
        await _sample(stand, name, "warm", warm)
    for number in range(effort.rounds):
        samples.rounds.append([])
        for kind, work in _workloads(effort):
            start = number % len(names)
            direct = [report.DIRECT] if kind != "stream" else []
            for name in (*direct, *names[start:], *names[:start]):
                samples.rounds[-1].append(await _sample(stand, name, kind, work))
        print(f"round {number + 1} of {effort.rounds} done", file=sys.stderr)
    peers = [name for name in names if name != report.OWN]
    own = report.OWN in names
    rss = {name: processes.memory_mb(stand.routers[name][0].pid, "VmHWM") for name in names}
    return {
        "peers": {name: report.figures(samples, name, rss[name]) for name in names},
        "ratios": report.ratios(samples, peers) if own and peers else {},
        "many_streams": await _many_streams(stand) if own else {},
        "left_out": stand.left_out,
        "rounds": effort.rounds,
    }


def _workloads(effort: Effort) -> Iterator[tuple[str, load.Load]]:
    for kind, size in _BYTES.items():
        prepared = load.requests(size, contestants.KEY)
        for concurrency, total in effort.requests.items():
            yield kind, load.Load(prepared, concurrency, total if size < 10_000 else total // 3)
    for streams in (16, 64):
        events = effort.chunks // streams
        every_ms = 1000 * streams // _CHUNKS_PER_SECOND
        prepared = load.requests(500, contestants.KEY, events=events, every_ms=every_ms)
        yield "stream", load.Load(prepared, streams, streams, events + 2)


async def _sample(stand: Stand, name: str, kind: str, work: load.Load) -> report.Sample:
    process, port = stand.routers.get(name, (None, stand.workers[0]))
    before = processes.cpu_seconds(process.pid) if process else 0.0
    outcome = await load.run(port, work, _LOAD_SECONDS)
    cpu = processes.cpu_seconds(process.pid) - before if process else 0.0
    if outcome.errors:
        raise SystemExit(
            f"{name}, {kind}: {len(outcome.errors)} of {work.total} failed, the first: {outcome.errors[0]}"
        )
    cuts = quantiles(outcome.latencies, n=100)
    return report.Sample(
        contestant=name,
        kind=kind,
        concurrency=work.connections,
        cpu_seconds=cpu,
        units=outcome.events or work.total,
        seconds=outcome.seconds,
        p50_ms=1000 * cuts[49],
        p99_ms=1000 * cuts[98],
    )


async def _many_streams(stand: Stand) -> dict[str, Any]:
    """Run 2,000 streams at a time through Turnout and report its memory and the errors."""
    process, port = stand.routers[report.OWN]
    prepared = load.requests(2_000, contestants.KEY, events=_MANY_EVENTS, every_ms=_MANY_EVERY_MS)
    work = load.Load(prepared, _MANY_STREAMS, _MANY_STREAMS, _MANY_EVENTS + 2, _MANY_RAMP_SECONDS)
    outcome = await load.run(port, work, _LOAD_SECONDS)
    return {
        "streams": _MANY_STREAMS,
        "chunks": outcome.events,
        "errors": len(outcome.errors),
        "first_error": outcome.errors[0] if outcome.errors else None,
        "rss_mb": round(processes.memory_mb(process.pid, "VmHWM"), 1),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
