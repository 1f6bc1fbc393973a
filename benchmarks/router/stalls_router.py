"""The router that `stalls.py` measures: it answers `begin` and `end` on stdin with what happened between them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from turnout_router.fleet.discovery.file import FileSource
from turnout_router.main import Router
from turnout_router.settings import Settings


class Watch:
    """Calls itself again and again, and keeps the longest time between two calls, and the most bytes that were counted."""

    def __init__(self, router: Router, loop: asyncio.AbstractEventLoop) -> None:
        self._router = router
        self._loop = loop
        self._last = time.perf_counter()
        self._longest = 0.0
        self._counted = 0
        self._before = 0

    def turn(self) -> None:
        """Look at the clock."""
        now = time.perf_counter()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        self._counted = max(self._counted, self._router._listener.accounts.held_bytes)  # noqa: SLF001 - what it counts is what is measured
        self._loop.call_soon(self.turn)

    def answer(self) -> None:
        """Answer one word of stdin."""
        word = sys.stdin.readline().strip()
        if not word:
            self._loop.remove_reader(0)
            self._router.stop()
            return
        if word == "begin":
            Path("/proc/self/clear_refs").write_text("5")
            self._before = memory("VmRSS")
            say({})
        else:
            held = memory("VmHWM") - self._before
            say({"stall_ms": 1000 * self._longest, "counted": self._counted, "held": max(0, held)})
        self._longest, self._counted, self._last = 0.0, 0, time.perf_counter()


def memory(field: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def say(value: dict[str, Any]) -> None:
    """Write one line to stdout."""
    os.write(1, json.dumps(value).encode() + b"\n")


async def main() -> None:
    """Serve until stdin ends or SIGTERM comes."""
    settings = Settings(
        host="127.0.0.1", port=0, admin_port=0, shutdown_delay_seconds=0, shutdown_grace_seconds=1
    )
    router = Router(settings, FileSource(Path(sys.argv[1])))
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(router.run())
    await router.started.wait()
    while router.not_ready_because:  # noqa: ASYNC110 - the router offers no event
        await asyncio.sleep(0.01)
    watch = Watch(router, loop)
    loop.add_reader(0, watch.answer)
    loop.call_soon(watch.turn)
    say({"port": router.port})
    await serving


if __name__ == "__main__":
    uvloop.run(main())
