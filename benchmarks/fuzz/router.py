"""Feed a million inputs and more to everything in the router that reads bytes of others, and count what goes wrong.

Run as ``PYTHONPATH=tests python benchmarks/fuzz/router.py [--inputs 1200000] [--seed 0]`` from the repository's root.
Inputs are mutated from a corpus (`tests/support/router_fuzzing.py` has it, and the promises that are checked);
``--guided NAME`` lets atheris choose them by coverage instead, where it is installed, for one of the checks.
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

from support.router_fuzzing import Checks, mutate

if TYPE_CHECKING:
    from types import FrameType

HANG_SECONDS = 5.0


def main() -> None:
    """Print what was tried and what failed; exit 1 where anything did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_200_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same inputs")
    parser.add_argument("--guided", metavar="NAME", help="let atheris choose the inputs of this check")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _hung)
    checks = Checks(asyncio.new_event_loop())
    if options.guided:
        guided(checks, options.guided, options.inputs)
        return
    failures = sum(
        run(checks, name, options.inputs // len(checks.all()), options.seed) for name in checks.all()
    )
    print("in all:", options.inputs // len(checks.all()) * len(checks.all()), "inputs,", failures, "failures")
    sys.exit(1 if failures else 0)


def run(checks: Checks, name: str, inputs: int, seed: int) -> int:
    """Try *inputs* inputs on one check, and return how many failed. The first few are printed."""
    check, corpus = checks.all()[name]
    failures = 0
    began = time.process_time()
    tracemalloc.start(1)
    settled = 0
    for number in range(inputs):
        draw = random.Random(f"{seed}-{number}")  # noqa: S311 - makes test inputs
        data = mutate(draw.choice(corpus), corpus, draw)
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            check(data, draw)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            failures += 1
            if failures <= 5:
                print(f"{name}, input {seed}-{number}: {error!r}\n  {data[:500]!r}")
        if number == inputs // 10:
            settled = tracemalloc.get_traced_memory()[0]
    signal.setitimer(signal.ITIMER_REAL, 0)
    grown = tracemalloc.get_traced_memory()[0] - settled
    tracemalloc.stop()
    seconds = time.process_time() - began
    print(
        f"{name}: {inputs} inputs, {failures} failures, {seconds:.0f} s of CPU, memory {grown / 1024:+.0f} KiB",
        flush=True,
    )
    return failures


def guided(checks: Checks, name: str, inputs: int) -> None:
    """Let atheris look for inputs that reach new code. It ends the process itself."""
    try:
        import atheris  # noqa: PLC0415 - only needed for this
    except ImportError:
        sys.exit("atheris is not installed here: pip install atheris, or leave --guided out")
    check, corpus = checks.all()[name]
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
