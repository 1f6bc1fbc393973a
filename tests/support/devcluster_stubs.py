"""A `go` and a `uv` that only pretend, so that the logic around a build can be tested in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_GO = """#!/bin/sh
here=$(dirname "$0")
case "$1" in
version) echo "go version VERSION linux/amd64" ;;
list)
    echo "# get https://proxy.example/a/@v/v1.0.0.zip: 200 OK (0.1s)"
    printf 'one\\ntwo\\nthree\\n'
    ;;
build)
    echo "$GOTOOLCHAIN $CGO_ENABLED $GOFLAGS" >> "$here/builds"
    echo one
    while [ ! -e "$here/gate" ]; do sleep 0.05; done
    if [ -e "$here/fail" ]; then echo "main.go:1: broken"; exit 1; fi
    while [ "$1" != -o ]; do shift; done
    printf '#!/bin/sh\\n' > "$2"
    ;;
esac
"""

_UV = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/installs"
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/go/bin"
cp "$here/fetched-go" "$2/go/bin/go"
cp "$4" "$here/requirements"
touch "$2/go/bin/gate"
"""


def write_script(path: Path, text: str) -> None:
    """Write an executable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def stub_go(folder: Path, version: str = "go1.99.0") -> None:
    """Put a `go` in *folder* that builds an empty script once a file ``gate`` lies beside it.

    Each build adds a line with its settings to ``builds``; a file ``fail`` makes it fail.
    """
    write_script(folder / "go", _GO.replace("VERSION", version))


def stub_uv(folder: Path, version: str) -> None:
    """Put a `uv` in *folder* that installs a stub `go` of *version*; its arguments go to ``installs``."""
    write_script(folder / "uv", _UV)
    write_script(folder / "fetched-go", _GO.replace("VERSION", version))
