"""HTTPS on the public port: served, renewed without a restart, and refused in words where the files are no good."""

from __future__ import annotations

import datetime as dt
import ssl
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from support.router_mock_backend import mock_worker
from support.router_running import Running, chat, config, eventually_async, running_router
from turnout_router.errors import ConfigError
from turnout_router.tls import Certificate

if TYPE_CHECKING:
    from pathlib import Path

NAME = "router.example"


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
