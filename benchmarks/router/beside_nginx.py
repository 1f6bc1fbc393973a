"""What nginx answers to the inputs of docs/hardening.md, where it answers otherwise than the router.

Run as ``PYTHONPATH=tests python benchmarks/router/beside_nginx.py`` from the repository's root, with nginx installed. It has
the tests' small bounds, and a worker behind it that answers 200 to everything; what only the router's own API decides
(paths, keys, JSON) is left out.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from support.router_hostile_inputs import BODY_LIMIT, CASES, HEAD_LIMIT, KEYS, Case
from support.worker_process import free_port

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

_LEFT_OUT = {"JSON", KEYS, "What the head decides, its body still to come"}
_OWN_PATHS = re.compile(r"path|/metrics|dot seg|percent|two slashes|model's name|OPTIONS")
_QUIET_SECONDS = 2.5
_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_header_buffer_size 1k; large_client_header_buffers 4 {head}; client_max_body_size {body};
  client_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 1s;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{worker}; }} }}
}}
"""


async def answer(reader: StreamReader, writer: StreamWriter) -> None:
    """Be a worker that reads a request, and answers 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if length:
        await reader.readexactly(int(length[1]))
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    writer.close()


async def ask(port: int, case: Case) -> tuple[list[int], bool]:
    """Return the statuses that come, and whether the connection is still open after a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in case.parts:
        writer.write(part)
        await asyncio.sleep(0.02)
    received, is_open = b"", False
    try:
        async with asyncio.timeout(_QUIET_SECONDS):
            while data := await reader.read(65536):
                received += data
    except TimeoutError:
        is_open = True
    except ConnectionError:
        pass
    writer.transport.abort()
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", received)], is_open


def main() -> None:
    """Print one row for each input whose answer differs."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        sys.exit("nginx is not installed (on Debian: apt-get install nginx-light)")
    with tempfile.TemporaryDirectory() as name:
        port, worker = free_port(), free_port()
        config = Path(name, "nginx.conf")
        config.write_text(
            _CONFIG.format(folder=name, port=port, worker=worker, head=HEAD_LIMIT, body=BODY_LIMIT)
        )
        process = subprocess.Popen([binary, "-p", name, "-e", f"{name}/log", "-c", str(config)])
        try:
            asyncio.run(_compare(port, worker))
        finally:
            process.terminate()
            process.wait()


async def _serving(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def _compare(port: int, worker_port: int) -> None:
    worker = await asyncio.start_server(answer, "127.0.0.1", worker_port)
    await _serving(port)
    asked = [case for case in CASES if case.area not in _LEFT_OUT and not _OWN_PATHS.search(case.name)]
    same = 0
    print("| Input | Router | nginx |\n|---|---|---|")
    for case in asked:
        statuses, _ = await ask(port, case)
        if tuple(statuses) == case.statuses:
            same += 1
        else:
            ours, theirs = (", ".join(map(str, each)) or "none" for each in (case.statuses, statuses))
            print(f"| {case.name} | {ours} | {theirs} |")
    print(f"\n{same} of {len(asked)} inputs get the same answers.")
    worker.close()


if __name__ == "__main__":
    main()
