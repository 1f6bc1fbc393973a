"""HTTPS on the public port: served, renewed without a restart, and refused in words where the files are no good."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from support.router_hostile_inputs import MODELS
from support.router_mock_backend import mock_worker
from support.router_running import Running, chat, config, eventually, eventually_async, running_router
from turnout_router.errors import ConfigError
from turnout_router.http1.tls import Certificate
from turnout_router.settings import ClientLimits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = "router.example"
GREETING = bytes.fromhex("160301020001000100")
"""How a TLS client begins."""
LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)


def write(folder: Path) -> tuple[Path, Path]:
    """Write a new certificate for 127.0.0.1 and its key into *folder*."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(NAME), x509.DNSName("localhost")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "tls.crt", folder / "tls.key"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return chain, private


def client_of(r: Running, chain: Path) -> httpx.AsyncClient:
    """Return a client that trusts *chain* alone."""
    trust = ssl.create_default_context(cafile=str(chain))
    return httpx.AsyncClient(
        base_url=f"https://localhost:{r.router.port}", verify=trust, timeout=10, trust_env=False
    )


async def test_https_is_served_streams_included(tmp_path: Path) -> None:
    """A client that checks the certificate gets an answer and a stream; plain HTTP gets nothing."""
    chain, key = write(tmp_path)
    async with (
        mock_worker(tokens=2000, piece="x" * 200) as worker,
        running_router(
            tmp_path, config([("aggregated", worker.url)]), tls_certificate=chain, tls_key=key
        ) as r,
        client_of(r, chain) as client,
    ):
        assert (await client.get("/v1/models")).status_code == 200
        answer = await client.post("/v1/chat/completions", json=chat(stream=True))
        assert answer.text.endswith("[DONE]\n\n")
        assert answer.text.count("x" * 200) == 2000
        refused = await client.post("/v1/chat/completions", content=b" " * 17 * 1024 * 1024)
        assert refused.status_code == 413
        with pytest.raises(httpx.HTTPError):
            await r.client.get("/v1/models")


async def test_a_renewed_certificate_is_taken_over(tmp_path: Path) -> None:
    """New connections get the new one; files that do not fit together leave the old one in use."""
    chain, key = write(tmp_path)
    async with running_router(tmp_path, config([]), tls_certificate=chain, tls_key=key) as r:
        old = tmp_path / "old.crt"
        old.write_bytes(chain.read_bytes())
        key.write_text("no key at all")

        async def serves(trusted: Path) -> bool:
            async with client_of(r, trusted) as client:
                try:
                    return (await client.get("/v1/models")).status_code == 200
                except httpx.ConnectError:
                    return False

        assert await serves(old)
        write(tmp_path)
        await eventually_async(lambda: serves(chain))
        assert not await serves(old)


def test_files_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    """The message names both files."""
    chain, key = write(tmp_path)
    key.unlink()
    with pytest.raises(ConfigError, match=r"tls\.crt with the key .*tls\.key cannot be used"):
        Certificate(chain, key)


async def ended(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(reader.read(65536), 10):
            pass
    return True


async def _handshakes_end(tmp_path: Path, sent: bytes) -> None:
    chain, key = write(tmp_path)
    limits = ClientLimits(head_seconds=0.5)
    async with running_router(tmp_path, config([]), tls_certificate=chain, tls_key=key, client=limits) as r:
        listener = r.router._listener
        opened = [await asyncio.open_connection("127.0.0.1", r.router.port) for _ in range(5)]
        await eventually(lambda: len(listener) == 5)
        for reader, writer in opened:
            writer.write(sent)
            assert await ended(reader)
            writer.close()
        await eventually(lambda: not len(listener))
        assert not listener.handshakes
        async with client_of(r, chain) as client:
            assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("sent", [b"", GREETING, MODELS], ids=["nothing", "half a greeting", "plain HTTP"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_handshake_is_counted_and_has_a_deadline(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], sent: bytes
) -> None:
    """From when the connection is accepted; whatever becomes of it, it is let go."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_handshakes_end(tmp_path, sent))


async def _honest_clients_get_in(tmp_path: Path, limits: ClientLimits) -> None:
    chain, key = write(tmp_path)
    async with running_router(tmp_path, config([]), tls_certificate=chain, tls_key=key, client=limits) as r:
        silent = [await asyncio.open_connection("127.0.0.1", r.router.port) for _ in range(40)]
        for _, writer in silent:
            writer.write(GREETING)
        for _ in range(30):
            async with client_of(r, chain) as client:
                assert (await client.get("/v1/models")).status_code == 200
        assert r.router._listener.handshakes <= len(r.router._listener) <= 20
        for _, writer in silent:
            writer.transport.abort()


@pytest.mark.parametrize("bound", ["connections", "handshakes"])
@pytest.mark.parametrize("loop", LOOPS)
def test_handshakes_that_do_not_end_keep_no_one_out(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], bound: str
) -> None:
    """At the bound on connections, and at that on handshakes, the oldest of them make way."""
    limits = replace(ClientLimits(head_seconds=60), **{bound: 20})
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_honest_clients_get_in(tmp_path, limits))


async def _first_bytes_are_read(tmp_path: Path) -> None:
    chain, key = write(tmp_path)
    trust = ssl.create_default_context(cafile=str(chain))
    async with running_router(tmp_path, config([]), tls_certificate=chain, tls_key=key) as r:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
        reader, writer = await asyncio.open_connection("127.0.0.1", r.router.port)
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await asyncio.wait_for(reader.read(65536), 10))
        session.write(MODELS)
        writer.write(outgoing.read())  # the end of the handshake and the request, in one piece
        answer = b""
        while b"\r\n\r\n" not in answer:
            try:
                answer += session.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(await asyncio.wait_for(reader.read(65536), 10))
        assert answer.startswith(b"HTTP/1.1 200 ")
        writer.transport.abort()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_that_comes_with_the_handshakes_end_is_read(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """What arrives before the connection is handed over is not lost."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_first_bytes_are_read(tmp_path))


def _ask(port: int, chain: Path, times: int) -> list[bytes]:
    """Ask with blocking sockets, one connection after the other, as a client in another process does."""
    trust = ssl.create_default_context(cafile=str(chain))
    answers = []
    for _ in range(times):
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            trust.wrap_socket(raw, server_hostname="localhost") as secured,
        ):
            secured.sendall(MODELS)
            answers.append(secured.recv(64)[:12])
    return answers


async def _greetings_that_are_early_are_heard(tmp_path: Path) -> None:
    chain, key = write(tmp_path)
    async with running_router(tmp_path, config([]), tls_certificate=chain, tls_key=key) as r:
        answers = await asyncio.gather(*(asyncio.to_thread(_ask, r.router.port, chain, 40) for _ in range(3)))
    assert {answer for each in answers for answer in each} == {b"HTTP/1.1 200"}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_greeting_that_is_there_at_once_is_not_lost(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Clients in other processes have sent it before the router has looked at the connection."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_greetings_that_are_early_are_heard(tmp_path))
