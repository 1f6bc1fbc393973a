"""What a request costs the compiled router in instructions of user space, counted by valgrind's callgrind.

Such counts hardly vary from run to run, where CPU seconds on a shared machine vary by 50 %. Run as ``make
bench-instructions``; `--compiled FOLDER` counts another build, so that two can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import contestants
import httpx
import load

_WARM_UP = 200
_REQUESTS = 400
_STREAMS = 8
_CHUNKS = 500
_EVERY_MS = 20
"""One token at a time, as engines send them."""
_ENDS = 2
"""Events behind the tokens: usage and the end."""
_START_SECONDS = 300.0
_RUN_SECONDS = 900.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--compiled", type=Path, default=contestants.COMPILED, help="folder of the compiled router"
    )
    folder = parser.parse_args().compiled
    if not (folder / "turnout_router").exists():
        sys.exit(f"{folder} holds no compiled router: make compiled")
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed (on Debian: apt-get install valgrind)")
    with tempfile.TemporaryDirectory() as temporary:
        for what, count in asyncio.run(_count(folder.resolve(), Path(temporary))):
            print(f"{what:<40} {count / 1000:10.1f}k")


async def _count(compiled: Path, folder: Path) -> list[tuple[str, float]]:
    port, spare, *workers = [_free_port() for _ in range(4)]
    core = min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for worker in workers:
            script = Path(__file__).with_name("mock_backend.py")
            process = contestants.start(
                [sys.executable, str(script), str(worker)], core, folder / "worker.log"
            )
            stack.callback(contestants.stop, process)
        out = folder / "callgrind"
        valgrind = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}"]
        env, path, *command = contestants.turnout(compiled, port, spare, workers, folder)
        router = contestants.start([env, path, *valgrind, *command], core, folder / "log")
        stack.callback(contestants.stop, router)
        await _ready(spare, router, folder / "log")
        print("counting: this takes some minutes", file=sys.stderr)

        async def count(requests: tuple[bytes, ...], total: int, events: int | None = None) -> int:
            asked = load.Load(requests, connections=4, total=total, events=events)
            outcome = await load.run(port, asked, _RUN_SECONDS)
            if outcome.errors:
                sys.exit(f"the router did not answer as it should: {outcome.errors[0]}")
            return await asyncio.to_thread(_dump, router.pid, out)

        small, large = (load.requests(size, contestants.KEY) for size in (2_000, 32_000))
        streams = load.requests(2_000, contestants.KEY, events=_CHUNKS, every_ms=_EVERY_MS)
        short = load.requests(2_000, contestants.KEY, events=4, every_ms=_EVERY_MS)
        await count(small, _WARM_UP)
        await count(large, 50)
        await count(short, 48, 4 + _ENDS)
        per_small = await count(small, _REQUESTS) / _REQUESTS
        per_large = await count(large, _REQUESTS) / _REQUESTS
        per_short = await count(short, 48, 4 + _ENDS) / 48
        per_stream = await count(streams, _STREAMS, _CHUNKS + _ENDS) / _STREAMS
    return [
        ("request of 2 kB", per_small),
        ("request of 32 kB", per_large),
        ("streamed chunk", (per_stream - per_short) / (_CHUNKS - 4)),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _ready(port: int, router: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the router serves. Exit with its log where it does not come up."""
    deadline = time.monotonic() + _START_SECONDS
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get("/readyz")).status_code == httpx.codes.OK:
                    return
            if router.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the router did not start, see {log}")
            await asyncio.sleep(0.5)


def _dump(pid: int, out: Path) -> int:
    """Have callgrind write its counts and begin anew; return how many instructions there were."""
    before = set(out.parent.glob(f"{out.name}.*"))
    subprocess.run(["callgrind_control", "--dump", str(pid)], check=True, capture_output=True, timeout=120)
    deadline = time.monotonic() + 60
    while not (new := set(out.parent.glob(f"{out.name}.*")) - before):
        if time.monotonic() > deadline:
            sys.exit("callgrind wrote no counts")
        time.sleep(0.1)
    text = new.pop().read_text()
    found = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
    if found is None:
        sys.exit("callgrind's counts cannot be read")
    return int(found[1])


if __name__ == "__main__":
    main()
