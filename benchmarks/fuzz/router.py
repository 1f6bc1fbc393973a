"""Feed a million inputs and more to everything in the router that reads bytes of others, and count what goes wrong.

Run as ``PYTHONPATH=tests python benchmarks/fuzz/router.py [--kinds client,answers] [--inputs 1800000] [--seed 0]`` from
the repository's root. Inputs are mutated from a corpus (`tests/support/router_fuzzing.py` has the kinds, and the promises
that are checked). Watched besides: inputs that hang, the longest time for which one input keeps a loop from everything
else, and memory that grows. ``--guided NAME`` lets atheris choose the inputs by coverage instead, where it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from support.router_fuzzing import Checks

if TYPE_CHECKING:
    from types import FrameType

HANG_SECONDS = 5.0
STALL_SECONDS = 0.05
"""An input that keeps the loop from everything else for longer is shown; by CPU time, and under tracemalloc."""
SHOWN = 5


def main() -> None:
    """Print what was tried and what failed; exit 1 where anything did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kinds", default="", metavar="NAME,NAME", help="only these kinds; all of them by default"
    )
    parser.add_argument("--inputs", type=int, default=1_800_000, help="inputs in all, spread over the kinds")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same inputs")
    parser.add_argument("--guided", metavar="NAME", help="let atheris choose the inputs of this kind")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _hung)
    checks = Checks(asyncio.new_event_loop())
    kinds = options.kinds.split(",") if options.kinds else list(checks.all())
    unknown = [name for name in (*kinds, *filter(None, [options.guided])) if name not in checks.all()]
    if unknown:
        parser.error(f"no kind is called {', '.join(unknown)}: choose among {', '.join(checks.all())}")
    if options.guided:
        guided(checks, options.guided, options.inputs)
        return
    each = max(1, options.inputs // len(kinds))
    failures = sum(run(checks, name, each, options.seed) for name in kinds)
    checks.close()
    print("in all:", each * len(kinds), "inputs,", failures, "failures")
    sys.exit(1 if failures else 0)


def run(checks: Checks, name: str, inputs: int, seed: int) -> int:
    """Try *inputs* inputs of one kind, and return how many failed. One of each sort of failure is printed, up to five."""
    kind = checks.all()[name]
    failures: dict[str, int] = {}
    began = time.process_time()
    tracemalloc.start(1)
    settled, longest, slowest = 0, 0.0, b""
    for number in range(inputs):
        draw = random.Random(f"{seed}-{number}")  # noqa: S311 - makes test inputs
        data = kind.mutate(draw.choice(kind.corpus), kind.corpus, draw)
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        checks.longest_seconds = 0.0
        started = time.thread_time()
        try:
            kind.check(data, draw)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            sort = f"{type(error).__name__}: {str(error).partition(':')[0][:60]}"
            failures[sort] = failures.get(sort, 0) + 1
            if failures[sort] == 1 and len(failures) <= SHOWN:
                print(f"{name}, input {seed}-{number}: {repr(error)[:1000]}\n  {data[:500]!r}")
        # The kinds that have no loop of their own do everything in one go.
        stood = checks.longest_seconds or time.thread_time() - started
        if stood > longest:
            longest, slowest = stood, data
        if number == inputs // 10:
            settled = tracemalloc.get_traced_memory()[0]
    signal.setitimer(signal.ITIMER_REAL, 0)
    grown = tracemalloc.get_traced_memory()[0] - settled
    tracemalloc.stop()
    seconds = time.process_time() - began
    print(
        f"{name}: {inputs} inputs, {sum(failures.values())} failures, {seconds:.0f} s of CPU, memory "
        f"{grown / 1024:+.0f} KiB, longest stall {1000 * longest:.1f} ms",
        flush=True,
    )
    if longest > STALL_SECONDS:
        print(f"  the longest stall: {slowest[:300]!r} ({len(slowest)} bytes)")
    for sort, count in failures.items():
        print(f"  {count} x {sort}")
    return sum(failures.values())


def guided(checks: Checks, name: str, inputs: int) -> None:
    """Let atheris look for inputs that reach new code. It ends the process itself."""
    try:
        import atheris  # noqa: PLC0415 - only needed for this
    except ImportError:
        sys.exit("atheris is not installed here: pip install atheris, or leave --guided out")
    check, corpus, _ = checks.all()[name]
    folder = Path(tempfile.mkdtemp(prefix="turnout-fuzz-"))
    for number, data in enumerate(corpus):
        (folder / str(number)).write_bytes(data)

    def one(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        check(data, random.Random(len(data)))  # noqa: S311 - makes test inputs

    atheris.instrument_all()
    print("inputs that reached new code:", folder)
    atheris.Setup([sys.argv[0], f"-runs={inputs}", "-max_len=4096", "-verbosity=0", str(folder)], one)
    atheris.Fuzz()


def _hung(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"one input took more than {HANG_SECONDS:g} s")


if __name__ == "__main__":
    main()
