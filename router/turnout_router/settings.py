"""Settings of the router. Under each one: its unit, its default's reason. Those made by `option` are flags, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from turnout.routing import HealthPolicy
from turnout.routing.admission import AdmissionLimits
from turnout.terms import ENV_BIND_ADDRESS, ROUTER_ADMIN_PORT, ROUTER_PORT
from turnout_runtime.options import (
    Option,
    group,
    option,
    read_port,
    read_positive,
    read_seconds,
    read_some_seconds,
)

AuthMode = Literal["open", "required"]
ExplainMode = Literal["keys", "all", "off"]


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What is accepted from clients. Sizes in bytes, times in seconds."""

    head_bytes: int = 32 * 1024
    """Request line and header fields together. More: 431."""
    target_bytes: int = 8 * 1024
    """The request target. More: 414."""
    header_fields: int = 100
    """Header fields. More: 431."""
    body_bytes: int = option(
        16 * 1024 * 1024, "--max-body-bytes", "largest request body", form=read_positive, metavar="N"
    )
    """The body: a prompt of a million tokens has about 4 MiB, images come on top. More: 413."""
    head_seconds: float = option(
        10.0, "--head-timeout", "for a request's head to arrive", form=read_some_seconds, metavar="SECONDS"
    )
    """From the first byte of a request, or the connection, to the end of its head. Longer: 408."""
    body_seconds: float = option(
        60.0, "--body-timeout", "for a request's body to arrive", form=read_some_seconds, metavar="SECONDS"
    )
    """From the end of the head to the end of the body. Longer: 408."""
    body_rate: float = 1024.0
    """Bytes a second at which a body must come at least, once `body_grace_seconds` have passed. Slower: 408."""
    body_grace_seconds: float = 5.0
    """How long a body may be slow to begin with."""
    bodies_bytes: int = 512 * 1024 * 1024
    """Bodies of all requests that are arriving or under way, shared out as `accounts` says. More: 503."""
    small_body_bytes: int = 64 * 1024
    """Bodies up to this size have an eighth of that room to themselves. What the head of a request decides is decided
    before a larger one is read."""
    chunk_extension_bytes: int = 4 * 1024
    """What chunk extensions of one body may take up, all together. More: 400."""
    idle_seconds: float = option(
        75.0,
        "--idle-timeout",
        "keep a client's connection without requests",
        form=read_some_seconds,
        metavar="SECONDS",
    )
    """How long a connection is kept without a request; longer than the usual load balancer's 60 s, so that it is
    the balancer which closes."""
    stall_seconds: float = option(
        60.0,
        "--stall-timeout",
        "for a client that does not read its answer",
        form=read_some_seconds,
        metavar="SECONDS",
    )
    """How long a client may leave the answer unread before it counts as gone."""
    pipelined_bytes: int = 64 * 1024
    """Bytes kept from a client that sends its next request early; then its socket is read no further."""
    write_buffer_bytes: int = 64 * 1024
    """Unsent bytes of an answer above which the worker's socket is read no further."""
    connections: int = option(
        10_000, "--max-connections", "most client connections", form=read_positive, metavar="N"
    )
    """Client connections at a time, those in a TLS handshake included. One more closes the longest idle one of the client
    that has most; where all are busy, it gets 503."""
    handshakes: int = 2_048
    """TLS handshakes at a time, which hold 56 KB each. One more closes the oldest one of the client that has most."""


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """What is expected of workers. Sizes in bytes, times in real seconds."""

    connect_seconds: float = option(
        2.0, "--connect-timeout", "to connect to a worker", form=read_some_seconds, metavar="SECONDS"
    )
    """A worker in the same cluster connects in milliseconds; one that does not is gone."""
    prefill_seconds: float = option(
        60.0, "--prefill-timeout", "for the prefill exchange", form=read_some_seconds, metavar="SECONDS"
    )
    """For the whole prefill exchange: a prompt of 128k tokens takes about 15 s on one H100, queueing comes on top."""
    first_byte_seconds: float = option(
        300.0,
        "--first-byte-timeout",
        "for the first byte of a streamed answer",
        form=read_some_seconds,
        metavar="SECONDS",
    )
    """From the request to the first byte of a streamed answer's body, queueing included."""
    answer_seconds: float = option(
        900.0,
        "--answer-timeout",
        "for an answer that is not streamed",
        form=read_some_seconds,
        metavar="SECONDS",
    )
    """From the request to the end of an answer that is not streamed."""
    stream_idle_seconds: float = option(
        120.0,
        "--stream-idle-timeout",
        "between two pieces of a stream",
        form=read_some_seconds,
        metavar="SECONDS",
    )
    """Between two pieces of a streamed answer."""
    head_bytes: int = 64 * 1024
    """Head of a worker's answer."""
    header_fields: int = 200
    """Header fields of a worker's answer, interim ones and those after its body included."""
    prefill_answer_bytes: int = 4 * 1024 * 1024
    """Body of a prefill worker's answer: block ids of a million tokens in blocks of 16 take 0.5 MiB."""
    hold_bytes: int = 1024 * 1024
    """Up to this size an answer that is not streamed is held until it is complete, so that a worker lost on the way
    can be replaced; larger ones are passed on as they come."""
    event_bytes: int = 1024 * 1024
    """One server-sent event."""
    idle_seconds: float = 4.0
    """How long an unused connection to a worker is kept: vLLM closes its own after 5 s."""
    idle_connections: int = 256
    """Unused connections kept per worker."""
    retries: int = 2
    """Retries of one request, beside which the fleet-wide budget holds."""
    health: HealthPolicy = field(default_factory=HealthPolicy)
    """When a worker is left alone."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Other routers in front of the same workers."""

    port: int
    """The address at which this router receives the others' messages."""
    hosts: tuple[tuple[str, int], ...] = ()
    """Where they listen; a host with several addresses is as many routers."""
    pods: tuple[str, str] | None = None
    """Namespace and label selector of their pods in Kubernetes, which have a port called peers."""
    secret_file: Path | None = None
    """A secret that only routers know. None: every process that reaches the port is accepted."""
    batch_seconds: float = 0.01
    """Least time between two batches of messages: about how long two routers may choose without each other."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of `turnout-router`."""

    host: str = option(
        "0.0.0.0",  # noqa: S104 - a pod must be reachable; TURNOUT_BIND_ADDRESS narrows it
        "--host",
        "address to listen on",
        environment=ENV_BIND_ADDRESS,
    )
    port: int = option(ROUTER_PORT, "--port", "public port: the OpenAI API", form=read_port, metavar="PORT")
    admin_port: int = option(
        ROUTER_ADMIN_PORT,
        "--admin-port",
        "health, metrics, the fleet's state",
        form=read_port,
        metavar="PORT",
    )
    admin_token_file: Path | None = option(
        None,
        "--admin-token-file",
        "token that /admin/... on the admin port requires (Authorization: Bearer), read again on changes; without it, those "
        "paths answer to loopback peers only",
        form=Path,
        metavar="FILE",
    )
    """The token that opens requests and workers on the admin port. None: they are shown to loopback peers only."""
    auth: AuthMode = option(
        "open",
        "--auth",
        "required: 401 without a key of a TokenBudget; open: a key is optional, a wrong one is refused",
        choices=get_args(AuthMode),
    )
    """open: a key is optional, but a wrong one is refused where keys are known at all. required: 401 without one."""
    explain: ExplainMode = option(
        "keys",
        "--explain",
        "which clients get the reason of a choice with x-turnout-explain: keys whose TokenBudget allows it (and all clients with "
        "--auth open), all, or none",
        choices=get_args(ExplainMode),
    )
    """The clients that get the reason of a choice (`x-turnout-explain: 1`), which names workers and their load.
    keys: holders of keys whose budget allows it, and all clients where no key is required. all: every client. off: none."""
    shutdown_delay_seconds: float = option(
        3.0,
        "--shutdown-delay",
        "after SIGTERM: still accept requests while /readyz says 503",
        form=read_seconds,
        metavar="SECONDS",
    )
    """After SIGTERM: how long new requests are still accepted while /readyz says 503, until load balancers know."""
    shutdown_grace_seconds: float = option(
        60.0,
        "--shutdown-grace",
        "after that: let running requests finish",
        form=read_seconds,
        metavar="SECONDS",
    )
    """After that: how long running requests may take to finish."""
    tls_certificate: Path | None = option(
        None,
        "--tls-cert",
        "serve HTTPS with this certificate chain (PEM), read again on changes",
        form=Path,
        metavar="FILE",
    )
    """PEM file of the public port's certificate chain, read again when it changes. None: plain HTTP."""
    tls_key: Path | None = option(
        None, "--tls-key", "the certificate's key (PEM, not encrypted)", form=Path, metavar="FILE"
    )
    """PEM file of its key, not encrypted."""
    peers: PeerSettings | None = None
    """None: this router is alone, or knows of others by scraping workers only."""
    admission: AdmissionLimits = group(
        AdmissionLimits,
        requests_per_worker=Option(
            "--max-requests-per-worker",
            "of one deployment under way at a time, for each worker that decodes; more wait",
            read_positive,
            "N",
        ),
        tokens_per_worker=Option(
            "--max-tokens-per-worker", "likewise, prompt and expected output tokens", read_positive, "N"
        ),
        waiting=Option(
            "--max-waiting", "requests of one deployment that wait; more get 503", read_positive, "N"
        ),
        waiting_tokens=Option(
            "--max-waiting-tokens",
            "tokens of the requests of one deployment that wait; beyond that 503",
            read_positive,
            "N",
        ),
        wait_seconds=Option(
            "--queue-timeout", "for a request to wait for room, before it gets 503", read_seconds, "SECONDS"
        ),
    )
    """How much of a deployment's requests is let in at a time, and how many wait how long, where it does not say so itself."""
    scrape_seconds: float = option(
        0.25,
        "--scrape-interval",
        "between two looks at a worker's metrics, by which several routers learn of each other's load; 0: never",
        form=read_seconds,
        metavar="SECONDS",
    )
    """How often each worker is scraped, where a prefix-aware policy chooses among several; less often where
    there are many, see `Scraper`. 0: never. docs/reference/routing.md has what an interval costs, docs/routing-measured.md what it gains."""
    client: ClientLimits = field(default_factory=ClientLimits)
    upstream: UpstreamLimits = field(default_factory=UpstreamLimits)
