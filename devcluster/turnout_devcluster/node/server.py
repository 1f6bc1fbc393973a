"""The part of the kubelet's HTTPS API that ``kubectl logs`` needs, and the agent's own metrics.

It listens on the nodes' loopback addresses and serves clients that show a client certificate of the cluster's
CA, as the API server does (``--kubelet-client-certificate``). Its own certificate is self-signed: the API
server is started without ``--kubelet-certificate-authority``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import logging
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from turnout_devcluster.node import logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from turnout_runtime.supervision import Supervisor

HEAD_BYTES: Final = 16 * 1024
HEAD_SECONDS: Final = 10.0
VALID_DAYS: Final = 3650
UNSUPPORTED: Final = {
    "exec": "the dev cluster has no exec into its containers: they are processes of this machine, see ps",
    "attach": "the dev cluster has no attach: use kubectl logs -f",
    "portForward": "the dev cluster has no port-forward: pods listen on their own addresses of this machine, "
    "see kubectl get pods -o wide",
}

_log = logging.getLogger(__name__)


class LogSource(Protocol):
    """Knows where the logs of containers are."""

    def log_of(self, namespace: str, pod: str, container: str, *, previous: bool) -> tuple[Path, int] | None:
        """Return the log and the number of a run, the newest or the one before; None where there is none."""

    def is_over(self, namespace: str, pod: str, container: str, attempt: int) -> bool:
        """Return whether that run has ended."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What answers a request: a text, or a stream."""

    status: str
    text: str = ""
    stream: AsyncIterator[bytes] | None = None


def make_tls(folder: Path, addresses: list[str], client_ca_pem: str) -> ssl.SSLContext:
    """Return TLS settings that ask clients for a certificate of *client_ca_pem*.

    The server's own certificate for *addresses* is fresh and self-signed, and kept in *folder*.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "turnout-node")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(cadata=client_ca_pem)
    return tls


class KubeletServer:
    """Serves logs on every node's address."""

    def __init__(
        self,
        source: LogSource,
        folder: Path,
        client_ca_pem: str,
        supervisor: Supervisor,
        metrics: Callable[[], str],
    ) -> None:
        """*metrics* makes the page at /metrics."""
        self._supervisor = supervisor
        self._metrics = metrics
        self._source = source
        self._client_ca_pem = client_ca_pem
        self._folder = folder
        self._servers: list[asyncio.Server] = []

    async def start(self, addresses: list[str]) -> dict[str, int]:
        """Listen on all *addresses*. Return the port by address."""
        tls = make_tls(self._folder, addresses, self._client_ca_pem)
        ports = {}
        for address in addresses:
            server = await asyncio.start_server(self._accept, address, 0, ssl=tls, limit=HEAD_BYTES)
            self._servers.append(server)
            ports[address] = int(server.sockets[0].getsockname()[1])
        return ports

    async def stop(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._supervisor.once("kubelet", self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            await self._send(writer, reader, self._answer(method, target))
        except (
            OSError,
            ValueError,
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ) as error:
            _log.debug("request dropped: %r", error)
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    def _answer(self, method: str, target: str) -> _Answer:
        url = urlsplit(target)
        parts = [unquote(p) for p in url.path.split("/") if p]
        if parts and parts[0] in UNSUPPORTED:
            return _Answer("501 Not Implemented", UNSUPPORTED[parts[0]])
        if method == "GET" and parts == ["metrics"]:
            return _Answer("200 OK", self._metrics())
        if method != "GET" or len(parts) != 4 or parts[0] != "containerLogs":  # noqa: PLR2004 - as below
            return _Answer(
                "404 Not Found", "only /containerLogs/NAMESPACE/POD/CONTAINER and /metrics are served here"
            )
        query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        for option in ("sinceSeconds", "sinceTime", "timestamps"):
            if query.get(option, "false") != "false":
                return _Answer(
                    "400 Bad Request",
                    f"the dev cluster keeps no time of a line: leave {option} out, use --tail",
                )
        return self._logs(parts[1], parts[2], parts[3], query)

    def _logs(self, namespace: str, pod: str, container: str, query: dict[str, str]) -> _Answer:
        found = self._source.log_of(namespace, pod, container, previous=query.get("previous") == "true")
        if found is None:
            which = "previous terminated container" if query.get("previous") == "true" else "container"
            return _Answer(
                "400 Bad Request", f'{which} "{container}" in pod "{pod}" not found: it has not run yet'
            )
        path, attempt = found
        stream = logs.read(
            path,
            lines=int(query["tailLines"]) if "tailLines" in query else None,
            limit=int(query["limitBytes"]) if "limitBytes" in query else None,
            is_over=lambda: self._source.is_over(namespace, pod, container, attempt),
            follow=query.get("follow") == "true",
        )
        return _Answer("200 OK", stream=stream)

    async def _send(
        self, writer: asyncio.StreamWriter, reader: asyncio.StreamReader, answer: _Answer
    ) -> None:
        head = f"HTTP/1.1 {answer.status}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        if answer.stream is None:
            body = answer.text.encode()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            return
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        await writer.drain()
        async for block in answer.stream:
            if reader.at_eof():
                return  # the client has left
            if not block:
                continue
            writer.write(b"%x\r\n%b\r\n" % (len(block), block))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
