"""Runs ``go`` and reports its progress."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout_devcluster.errors import BuildError
from turnout_devcluster.processes import dying_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from turnout_devcluster.progress import Progress

_SAY_EVERY_SECONDS: Final = 3.0
_KEPT_LINES: Final = 30
_END_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class GoCommand:
    """One installation of Go."""

    path: Path
    version: str
    """As ``go version`` prints it, for example ``go1.26.6 linux/amd64``."""
    fetched: bool
    """Whether it was fetched for this build alone. Its modules and objects (4 GB) then lie in the folder *own*
    of each call, to be removed with it; an installed Go keeps them in its usual caches."""

    def list_dependencies(self, source: Path, own: Path, progress: Progress) -> int:
        """Fetch the modules that *source* needs and return the number of packages to compile."""
        fetched = packages = 0

        def on_line(line: str) -> None:
            nonlocal fetched, packages
            if line.startswith("# get ") and ".zip: 200" in line:
                fetched += 1
            elif not line.startswith(("#", "go: ")):
                packages += 1

        self._run(
            ["list", "-x", "-deps", "."],
            source,
            own,
            on_line,
            lambda: progress.passing(f"fetching modules: {fetched} so far"),
        )
        progress.line(f"modules are here ({fetched} fetched); {packages} packages to compile")
        return packages

    def build(
        self,
        source: Path,
        own: Path,
        progress: Progress,
        *,
        output: Path,
        linker_flags: str,
        packages: int,
    ) -> None:
        """Compile and link *source* into *output*."""
        compiled = 0

        def on_line(_line: str) -> None:
            nonlocal compiled
            compiled += 1

        def say() -> None:
            progress.passing(f"compiling: {compiled} packages of at most {packages}, then linking")

        command = ["build", "-v", "-trimpath", f"-ldflags={linker_flags}", "-o", str(output), "."]
        self._run(command, source, own, on_line, say)

    def _run(
        self,
        arguments: list[str],
        source: Path,
        own: Path,
        on_line: Callable[[str], None],
        say: Callable[[], None],
    ) -> None:
        environment = {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOFLAGS": "-mod=readonly",
            "GOTOOLCHAIN": "local",
            "GOTMPDIR": str(own),
            "GOWORK": "off",
        }
        if self.fetched:
            environment |= {
                "GOCACHE": str(own / "objects"),
                "GOFLAGS": "-mod=readonly -modcacherw",  # so that the modules can be removed
                "GOMODCACHE": str(own / "modules"),
                "GOROOT": "",
            }
        last: deque[str] = deque(maxlen=_KEPT_LINES)
        child = subprocess.Popen(
            [str(self.path), *arguments],
            cwd=source,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=dying_with_parent(),  # noqa: PLW1509 - a killed parent must not leave a build running
        )
        try:
            for line in _lines(child, say):
                last.append(line)
                on_line(line)
            status = child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
            if child.stdout is not None:
                child.stdout.close()
        if status != 0:
            said = "\n".join(f"  {line}" for line in last)
            raise BuildError(
                f"'go {arguments[0]}' ended with status {status}. If it could not fetch modules, check the network or "
                f"set GOPROXY to a module proxy that you can reach. Its last lines:\n{said}"
            )


def _lines(child: subprocess.Popen[bytes], say: Callable[[], None]) -> Iterator[str]:
    """Yield the child's lines as they come, calling *say* every few seconds whether any come or not."""
    assert child.stdout is not None  # noqa: S101 - it was opened as a pipe
    descriptor = child.stdout.fileno()
    rest = b""
    due = time.monotonic() + _SAY_EVERY_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0.0, due - time.monotonic()))
            if time.monotonic() >= due:
                due = time.monotonic() + _SAY_EVERY_SECONDS
                say()
            if not ready:
                continue
            chunk = os.read(descriptor, 65536)
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole if chunk else [rest]:
                if line:
                    yield line.decode(errors="replace")
            if not chunk:
                return
