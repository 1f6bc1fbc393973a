"""OpenAI's client for Node, streaming through the router to a pair of prefill and decode workers.

Needs `node` and `npm`, and the registry once: the packages of the lock file are kept in `$TURNOUT_CACHE`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.clients_pair import Pair, running_pair
from support.router_running import Running, running_router
from support.worker_process import NAME, die_with_parent
from turnout_devcluster.layout import cache_root

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = Path(__file__).parent / "node"
INSTALL_SECONDS = 200
ASK_SECONDS = 60


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as running:
        yield running


@pytest.fixture(scope="session")
def modules() -> Path:
    """Folder of the packages that the lock file names. Skips where there is no node, or they cannot be fetched."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: apt-get install nodejs npm)")
    lock = (NODE / "package-lock.json").read_bytes()
    folder = cache_root() / "clients" / f"node-{hashlib.sha256(lock).hexdigest()[:16]}"
    if (folder / "complete").exists():
        return folder / "node_modules"
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE / name, unfinished)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=unfinished,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        shutil.rmtree(unfinished)
        pytest.skip(f"npm ci failed: {done.stderr.strip()[-500:]}")
    (unfinished / "complete").touch()
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder / "node_modules"


async def ask(r: Running, modules: Path, kind: str, prompt: str) -> dict[str, Any]:
    """Return what the client printed."""
    process = await asyncio.create_subprocess_exec(
        "node", str(NODE / "ask.cjs"), r.base_url, NAME, prompt, kind,
        env=os.environ | {"NODE_PATH": str(modules)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), ASK_SECONDS)
    assert process.returncode == 0, err.decode()
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.mark.parametrize("kind", ["chat", "tools", "completion", "response"])
async def test_it_streams_over_the_pair(pair: Pair, modules: Path, tmp_path: Path, kind: str) -> None:
    """Sixteen tokens of four bytes arrive, and the prompt's cache has moved."""
    moved = pair.moved_tokens
    async with running_router(tmp_path, pair.config) as r:
        answer = await ask(r, modules, kind, f"Tell node about {kind}. " * 100)
    assert "error" not in answer, answer
    assert len(answer["text"]) == 16 * 4
    assert answer["tokens"] in ({0} if kind == "completion" else {16})
    assert pair.moved_tokens > moved


async def test_it_gets_embeddings(pair: Pair, modules: Path, tmp_path: Path) -> None:
    """A vector, and usage."""
    async with running_router(tmp_path, pair.config) as r:
        answer = await ask(r, modules, "embedding", "night train")
    assert answer["dimensions"] == 256


@pytest.mark.parametrize("kind", ["chat", "response"])
async def test_a_cut_stream_is_an_error(pair: Pair, modules: Path, tmp_path: Path, kind: str) -> None:
    """A worker that dies mid-stream is an error to the client, never a short answer."""
    pair.decode.fault("reset", afterTokens=10, count=1)
    async with running_router(tmp_path, pair.config) as r:
        answer = await ask(r, modules, kind, f"Break {kind} off. " * 100)
    assert "The stream broke" in answer["error"]
