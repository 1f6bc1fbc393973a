"""Measure Turnout on the dev cluster: starting, installing, serving, taking over, idling, deleting.

Run as ``python benchmarks/cluster/figures.py [--cold]``, on an idle machine. Progress goes to stderr, a table to
stdout, every single value to build/bench/cluster.json. Times are in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from installed import NAME, REPOSITORY, Installed, until
from many import many
from processes import Usage, pid_at, processes, usage

from turnout_devcluster.binaries import find_binaries
from turnout_devcluster.cluster import Cluster
from turnout_devcluster.processes import dying_with_parent
from turnout_devcluster.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

OUTPUT = REPOSITORY / "build" / "bench" / "cluster.json"
IDLE_SECONDS = 120.0
STARTS, APPLIES, TAKE_OVERS = 3, 5, 3
COLD_SECONDS = 3600.0
CHILD = f"{NAME}-decode"
"""Service that is deleted to see that an operator acts."""


class Timed(Progress):
    """Progress that remembers when it said what."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[float, str]] = []

    def line(self, text: str) -> None:
        """Write a line that stays, and remember it."""
        self.said.append((self.elapsed_seconds, text))
        super().line(text)

    def when(self, part: str) -> float:
        """Return the seconds until the line that has *part* in it. Raise LookupError where there was none."""
        for seconds, text in self.said:
            if part in text:
                return seconds
        raise LookupError(f"the dev cluster did not say {part!r}")


class Figures:
    """What was measured: name of each figure, its unit and every single value."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}

    def add(self, name: str, unit: str, *values: float) -> None:
        """Take in values of a figure."""
        kept = self.values.setdefault(name, {"unit": unit, "values": []})["values"]
        kept += (round(value, 3) for value in values)
        say(f"{name}: {', '.join(f'{value:.3g}' for value in values)} {unit}")

    def table(self) -> str:
        """Return them as a table: the median, and the least and greatest where there are several."""
        rows = ["| figure | median | least to greatest | runs |", "|---|---|---|---|"]
        for name, figure in self.values.items():
            values, unit = figure["values"], figure["unit"]
            spread = f"{min(values):.3g} to {max(values):.3g}" if len(values) > 1 else ""
            rows.append(f"| {name} | {statistics.median(values):.3g} {unit} | {spread} | {len(values)} |")
        return "\n".join(rows)


def say(text: str) -> None:
    """Print progress."""
    print(f"[bench] {text}", file=sys.stderr, flush=True)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that *work* took."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def cold_build(figures: Figures) -> None:
    """Build the control plane with every cache empty, as a newcomer's machine does."""
    say("building the control plane with empty caches (minutes)")
    with tempfile.TemporaryDirectory(prefix="turnout-cold-") as name:
        scratch = Path(name)
        environment = {
            **os.environ,
            "TURNOUT_CACHE": str(scratch / "cache"),
            "GOCACHE": str(scratch / "objects"),
            "GOMODCACHE": str(scratch / "modules"),
            "GOPATH": str(scratch / "go"),
        }
        code = (
            "from turnout_devcluster.build import ensure_built; "
            "from turnout_devcluster.progress import Progress; ensure_built(Progress())"
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.monotonic()
        try:
            subprocess.run(
                [sys.executable, "-c", code],
                env=environment,
                check=True,
                timeout=COLD_SECONDS,
                preexec_fn=dying_with_parent(),  # a killed benchmark leaves no build running
            )
            seconds = time.monotonic() - started
        finally:
            _make_writable(scratch)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures.add("cold build of the control plane", "s", seconds)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures.add("processor time of the cold build", "s", spent)


def start(figures: Figures, name: str) -> Cluster:
    """Start the dev cluster a few times and return the last one, which runs."""
    find_binaries(Progress())
    for run in range(STARTS):
        progress = Timed()
        cluster = Cluster.up(name, owner_pid=os.getpid(), progress=progress)
        figures.add("dev cluster, warm: to /readyz", "s", progress.when("API server is ready"))
        figures.add("dev cluster, warm: to usable (nodes Ready)", "s", progress.elapsed_seconds)
        if run < STARTS - 1:
            figures.add("dev cluster: down", "s", timed(cluster.down))
    return cluster


def serve(figures: Figures, turnout: Installed) -> None:
    """Install Turnout, then apply and delete the example; the last one stays."""
    figures.add("chart: install to available", "s", timed(turnout.install))
    new = ", CRDs just installed"
    for startup, label in (("0s", "startupTime 0s"), (None, "its own startupTime")):
        for _ in range(APPLIES):
            started = time.monotonic()
            turnout.apply(startup)
            turnout.wait_ready()
            figures.add(f"apply to Ready, {label}", "s", time.monotonic() - started)
            # The garbage collector learns of a new kind only when it looks again, every half a minute.
            figures.add(f"delete to all gone{new}", "s", timed(turnout.delete))
            new = ""
    turnout.apply("0s")
    turnout.wait_ready()


def idle(figures: Figures, turnout: Installed) -> None:
    """Measure what everything costs while nothing happens."""
    until("the example has settled", lambda: _settled(turnout))
    say(f"measuring {IDLE_SECONDS:.0f} s of idleness")
    leader = turnout.leader()
    standby = [
        pod for pod in turnout.pods("operator") if pod["metadata"]["name"] != leader["metadata"]["name"]
    ]
    known = processes(turnout.cluster)
    requests = [turnout.requests(pod) for pod in (leader, *standby)]
    before, started = {pid: usage(pid) for pid in known}, time.monotonic()
    time.sleep(IDLE_SECONDS)  # the quantity that is measured is a rate over just this time
    seconds = time.monotonic() - started
    after = {pid: usage(pid) for pid in known}
    for index, pod in enumerate((leader, *standby)):
        which = "acting" if pod is leader else "standing by"
        now = turnout.requests(pod)
        for purpose in ("lease", "other"):
            rate = (now[purpose] - requests[index][purpose]) / seconds * 60
            figures.add(f"requests to the API server, operator {which}: {purpose}", "per minute", rate)
    for name in dict.fromkeys(known.values()):
        pairs = [(before[pid], after[pid]) for pid in known if known[pid] == name]
        lived = [(first, last) for first, last in pairs if first is not None and last is not None]
        if lived:
            figures.add(f"memory (RSS): {name}", "MiB", *(last.rss_mib for _, last in lived))
            figures.add(f"processor, idle: {name}", "% of a core", *_shares(lived, seconds))


def take_over(figures: Figures, turnout: Installed) -> None:
    """Kill or freeze the operator that acts; measure until a child that was deleted just then is back."""
    for number, label in ((signal.SIGKILL, "kill -9, its pod restarts it"), (signal.SIGSTOP, "it hangs")):
        for _ in range(TAKE_OVERS):
            until("two operators are ready", lambda: _operators_ready(turnout))
            address = turnout.leader()["status"]["podIP"]
            pid = pid_at(turnout.cluster, address, "turnout-operator")
            old = turnout.get("service", CHILD)["metadata"]["uid"]
            os.kill(pid, number)
            try:
                started, at = time.monotonic(), time.time()
                turnout.cluster.kubectl("delete", "service", CHILD, "--wait=false")
                _until_renewed(turnout, at)
                figures.add(f"take-over, {label}: lease", "s", time.monotonic() - started)
                _until_replaced(turnout, old)
                figures.add(f"take-over, {label}: acting", "s", time.monotonic() - started)
            finally:
                if number == signal.SIGSTOP:
                    os.kill(pid, signal.SIGCONT)
            _until_back(turnout, address, pid)


def _settled(turnout: Installed) -> bool:
    pools = [turnout.get("llmdeployment", NAME)["status"].get(role, {}) for role in ("prefill", "decode")]
    return all(pool.get("ready", 0) >= pool.get("desired", 1) for pool in pools) and _operators_ready(turnout)


def _operators_ready(turnout: Installed) -> bool:
    ready = [
        any(item["type"] == "Ready" and item["status"] == "True" for item in pod["status"]["conditions"])
        for pod in turnout.pods("operator")
    ]
    return len(ready) > 1 and all(ready)


def _until_renewed(turnout: Installed, since: float) -> None:
    until("the lease is renewed", lambda: turnout.lease()[1] > since)


def _until_replaced(turnout: Installed, uid: str) -> None:
    def replaced() -> bool:
        found = turnout.get("service", CHILD)
        return found is not None and found["metadata"]["uid"] != uid

    until("the child is back", replaced)


def _until_back(turnout: Installed, address: str, ended: int) -> None:
    """Return once another process than *ended* runs in that pod, for only then two operators stand again."""

    def back() -> bool:
        try:
            return pid_at(turnout.cluster, address, "turnout-operator") != ended
        except LookupError:
            return False

    until("the operator runs again", back)


def _shares(lived: Iterable[tuple[Usage, Usage]], seconds: float) -> list[float]:
    return [(last.cpu_seconds - first.cpu_seconds) / seconds * 100 for first, last in lived]


def _make_writable(folder: Path) -> None:
    """Go writes its module cache read-only, so that it could not be removed."""
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o700)


def main() -> None:
    """Measure everything, and print and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cold", action="store_true", help="also build the control plane with empty caches")
    parser.add_argument("--many", action="store_true", help="only measure what 500 LLMDeployments cost")
    given = parser.parse_args()
    figures = Figures()
    load = os.getloadavg()[0]
    say(f"{os.cpu_count()} cores, load {load:.1f} before the start")
    if given.cold:
        cold_build(figures)
    name = f"bench-{os.getpid()}"
    if given.many:
        with Cluster.up(name, owner_pid=os.getpid()) as cluster:
            turnout = Installed(cluster)
            turnout.install()
            many(figures, turnout)
    else:
        with start(figures, name) as cluster:
            turnout = Installed(cluster)
            serve(figures, turnout)
            idle(figures, turnout)
            take_over(figures, turnout)
            figures.add("delete to all gone", "s", timed(turnout.delete))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "load_before": round(load, 2)}
    OUTPUT.write_text(json.dumps({"machine": machine, "figures": figures.values}, indent=2) + "\n")
    print(figures.table())
    say(f"every value is in {OUTPUT.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
