"""Asks what probes and hooks ask: HTTP, TCP, a command.

A hundred pods are probed every second, so an HTTP probe here is one socket and a few system calls,
not an HTTP library.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from turnout_devcluster.node.probes import Action, Execute, HttpGet, Sleep, TcpConnect

ANSWER_BYTES: Final = 10 * 1024
"""Most of an answer that is read, as in the kubelet."""
OK, TOO_HIGH = 200, 400
_CONNECTING: Final = frozenset({0, errno.EINPROGRESS})

Executor = Callable[[Execute, float], Awaitable[tuple[int, str]]]
"""Runs a command in the container within so many seconds; returns its exit code and output."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of asking."""

    success: bool
    message: str


def _is_loopback(host: str) -> bool:
    return host.startswith("127.")


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    if not _is_loopback(host):
        found = await loop.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
        host = str(found[0][4][0])
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        # On loopback the handshake is over when connect returns, although it says EINPROGRESS, so
        # that most often the loop need not be asked to wait.
        if (
            not _is_loopback(host)
            or sock.connect_ex((host, port)) not in _CONNECTING
            or not _is_connected(sock)
        ):
            await loop.sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _request(get: HttpGet) -> bytes:
    names = {name.lower() for name, _ in get.headers}
    head = [f"GET {get.path} HTTP/1.1"]
    if "host" not in names:
        head.append(f"Host: {get.host}:{get.port}")
    if "user-agent" not in names:
        head.append("User-Agent: kube-probe/turnout")
    head += [f"{name}: {value}" for name, value in get.headers]
    return "\r\n".join([*head, "Accept: */*", "Connection: close", "", ""]).encode("latin-1", "replace")


def _is_complete(answer: bytes) -> bool:
    """Return whether the announced body has arrived, so that the caller need not wait for the end of the stream."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    length = rest.split(b"\r\n", 1)[0].strip()
    return bool(found) and length.isdigit() and len(body) >= int(length)


async def _exchange_plain(get: HttpGet) -> bytes:
    loop = asyncio.get_running_loop()
    sock = await _connect(get.host, get.port)
    try:
        await loop.sock_sendall(sock, _request(get))
        answer = b""
        while len(answer) < ANSWER_BYTES and not _is_complete(answer):
            part = await loop.sock_recv(sock, ANSWER_BYTES)
            if not part:
                break
            answer += part
        return answer
    finally:
        sock.close()


async def _exchange_tls(get: HttpGet) -> bytes:
    # As the kubelet: a probe asks whether a server answers, not who it is.
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(get.host, get.port, ssl=tls)
    try:
        writer.write(_request(get))
        answer = b""
        while len(answer) < ANSWER_BYTES and not _is_complete(answer):
            part = await reader.read(ANSWER_BYTES)
            if not part:
                break
            answer += part
        return answer
    finally:
        writer.transport.abort()


async def _http(get: HttpGet) -> ProbeResult:
    answer = await (_exchange_tls(get) if get.scheme == "HTTPS" else _exchange_plain(get))
    words = answer.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():  # noqa: PLR2004
        return ProbeResult(success=False, message="the answer is not HTTP")
    status = int(words[1])
    if OK <= status < TOO_HIGH:
        return ProbeResult(success=True, message="")
    return ProbeResult(success=False, message=f"HTTP probe failed with statuscode: {status}")


async def _ask(action: Action, execute: Executor, timeout_seconds: float) -> ProbeResult:
    match action:
        case HttpGet():
            return await _http(action)
        case TcpConnect():
            (await _connect(action.host, action.port)).close()
            return ProbeResult(success=True, message="")
        case Execute():
            code, output = await execute(action, timeout_seconds)
            return ProbeResult(code == 0, f"command exited with {code}: {output.strip()}" if code else "")
        case Sleep():
            await asyncio.sleep(action.seconds)
            return ProbeResult(success=True, message="")


async def ask(action: Action, execute: Executor, timeout_seconds: float) -> ProbeResult:
    """Do what *action* says within *timeout_seconds*. What goes wrong is the answer, not an exception."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _ask(action, execute, timeout_seconds)
    except TimeoutError:
        return ProbeResult(success=False, message=f"no answer within {timeout_seconds:g} s")
    except (OSError, ssl.SSLError) as error:
        return ProbeResult(success=False, message=f"{type(error).__name__}: {error}")
