"""The command line of ``turnout-router``: what can be told, with the settings' own defaults."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout import terms
from turnout.routing.admission import AdmissionLimits
from turnout_router.settings import ClientLimits, PeerSettings, Settings, UpstreamLimits

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTINGS: Final = Settings()
_CLIENT: Final = _SETTINGS.client
_UPSTREAM: Final = _SETTINGS.upstream

_WAITS: Final = (
    (
        "--shutdown-delay",
        _SETTINGS.shutdown_delay_seconds,
        "after SIGTERM: still accept requests while /readyz says 503",
    ),
    ("--shutdown-grace", _SETTINGS.shutdown_grace_seconds, "after that: let running requests finish"),
    ("--head-timeout", _CLIENT.head_seconds, "for a request's head to arrive"),
    ("--body-timeout", _CLIENT.body_seconds, "for a request's body to arrive"),
    ("--idle-timeout", _CLIENT.idle_seconds, "keep a client's connection without requests"),
    ("--stall-timeout", _CLIENT.stall_seconds, "for a client that does not read its answer"),
    (
        "--queue-timeout",
        _SETTINGS.admission.wait_seconds,
        "for a request to wait for room, before it gets 503",
    ),
    ("--connect-timeout", _UPSTREAM.connect_seconds, "to connect to a worker"),
    ("--prefill-timeout", _UPSTREAM.prefill_seconds, "for the prefill exchange"),
    ("--first-byte-timeout", _UPSTREAM.first_byte_seconds, "for the first byte of a streamed answer"),
    ("--answer-timeout", _UPSTREAM.answer_seconds, "for an answer that is not streamed"),
    (
        "--scrape-interval",
        _SETTINGS.scrape_seconds,
        "between two looks at a worker's metrics, by which several routers learn of each other's load; 0: never",
    ),
    ("--stream-idle-timeout", _UPSTREAM.stream_idle_seconds, "between two pieces of a stream"),
)

_MAY_BE_NOTHING: Final = frozenset(
    {"--queue-timeout", "--scrape-interval", "--shutdown-delay", "--shutdown-grace"}
)
"""Times of which 0 means that something is not done."""

_ADMISSION: Final = (
    (
        "--max-requests-per-worker",
        _SETTINGS.admission.requests_per_worker,
        "of one deployment under way at a time, for each worker that decodes; more wait",
    ),
    (
        "--max-tokens-per-worker",
        _SETTINGS.admission.tokens_per_worker,
        "likewise, prompt and expected output tokens",
    ),
    ("--max-waiting", _SETTINGS.admission.waiting, "requests of one deployment that wait; more get 503"),
    (
        "--max-waiting-tokens",
        _SETTINGS.admission.waiting_tokens,
        "tokens of the requests of one deployment that wait; beyond that 503",
    ),
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line says. Exits with a message where it says nothing sensible."""
    parser = argparse.ArgumentParser(
        prog="turnout-router",
        description="The front door: the OpenAI API in front of pools of prefill and decode workers. The fleet is "
        "read from Kubernetes (KUBECONFIG, or the pod's service account) unless --config names a file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        type=Path,
        help="read the fleet from this YAML file, again on changes and on SIGHUP",
    )
    add("--check", action="store_true", help="check the file of --config and exit")
    add(
        "--watch-namespace",
        metavar="NAME",
        action="append",
        default=[],
        help="watch this namespace only; may be repeated; all where it is not given",
    )
    add(
        "--namespace",
        default=os.environ.get(terms.ENV_POD_NAMESPACE, ""),
        help="own namespace: only TokenBudgets in it may open names of every namespace with the scope Cluster "
        f"(environment: {terms.ENV_POD_NAMESPACE})",
    )
    host = os.environ.get(terms.ENV_BIND_ADDRESS) or _SETTINGS.host
    add("--host", default=host, help=f"address to listen on (environment: {terms.ENV_BIND_ADDRESS})")
    add("--port", type=_port, default=terms.ROUTER_PORT, help="public port: the OpenAI API")
    add(
        "--admin-port", type=_port, default=terms.ROUTER_ADMIN_PORT, help="health, metrics, the fleet's state"
    )
    add(
        "--admin-token-file",
        type=Path,
        metavar="FILE",
        help="token that /admin/... on the admin port asks for (Authorization: Bearer), read again on changes; without "
        "it, those paths answer to loopback peers only",
    )
    add(
        "--auth",
        choices=("open", "required"),
        default=_SETTINGS.auth,
        help="required: 401 without a key of a TokenBudget; open: a key is optional, a wrong one is refused",
    )
    add(
        "--explain",
        choices=("keys", "all", "off"),
        default=_SETTINGS.explain,
        help="who may ask with x-turnout-explain why a worker was chosen: keys whose TokenBudget allows it (and "
        "everybody with --auth open), all, or nobody",
    )
    add(
        "--tls-cert",
        metavar="FILE",
        type=Path,
        help="serve HTTPS with this certificate chain (PEM), read again on changes",
    )
    add("--tls-key", metavar="FILE", type=Path, help="the certificate's key (PEM, not encrypted)")
    add(
        "--peers-port",
        type=_port,
        metavar="PORT",
        help="listen for other routers in front of the same workers here; for nobody else to reach "
        f"({terms.ROUTER_PEERS_PORT} where one of the next two is given)",
    )
    add(
        "--peer",
        type=_peer,
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="another router's peers port; may be repeated; a name with several addresses is as many routers",
    )
    add(
        "--peers-pods",
        type=_pods,
        metavar="NAMESPACE/SELECTOR",
        help="find other routers in Kubernetes: pods with these labels (a=b,c=d) and a port called peers",
    )
    add(
        "--peers-secret-file",
        type=Path,
        metavar="FILE",
        help="what only routers know; without it whoever reaches the peers port is believed",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what is logged")
    add("--max-body-bytes", type=_positive, default=_CLIENT.body_bytes, help="largest request body")
    add("--max-connections", type=_positive, default=_CLIENT.connections, help="most client connections")
    for flag, bound, meaning in _ADMISSION:
        add(flag, type=_positive, metavar="N", default=bound, help=meaning)
    for flag, default, meaning in _WAITS:
        kind = _seconds if flag in _MAY_BE_NOTHING else _some_seconds
        add(flag, type=kind, metavar="SECONDS", default=default, help=meaning)
    options = parser.parse_args(argv)
    if options.check and options.config is None:
        parser.error("--check needs --config FILE")
    if (options.tls_cert is None) != (options.tls_key is None):
        parser.error("--tls-cert and --tls-key go together: give both or neither")
    asked = options.peers_port is not None or options.peer or options.peers_pods
    if options.peers_secret_file is not None and not asked:
        parser.error("--peers-secret-file needs one of --peers-port, --peer, --peers-pods")
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that *options* amount to."""
    return Settings(
        host=options.host,
        port=options.port,
        admin_port=options.admin_port,
        admin_token_file=options.admin_token_file,
        auth=options.auth,
        explain=options.explain,
        shutdown_delay_seconds=options.shutdown_delay,
        shutdown_grace_seconds=options.shutdown_grace,
        tls_certificate=options.tls_cert,
        tls_key=options.tls_key,
        peers=_peers_of(options),
        scrape_seconds=options.scrape_interval,
        admission=AdmissionLimits(
            requests_per_worker=options.max_requests_per_worker,
            tokens_per_worker=options.max_tokens_per_worker,
            waiting=options.max_waiting,
            waiting_tokens=options.max_waiting_tokens,
            wait_seconds=options.queue_timeout,
        ),
        client=ClientLimits(
            body_bytes=options.max_body_bytes,
            head_seconds=options.head_timeout,
            body_seconds=options.body_timeout,
            idle_seconds=options.idle_timeout,
            stall_seconds=options.stall_timeout,
            connections=options.max_connections,
        ),
        upstream=UpstreamLimits(
            connect_seconds=options.connect_timeout,
            prefill_seconds=options.prefill_timeout,
            first_byte_seconds=options.first_byte_timeout,
            answer_seconds=options.answer_timeout,
            stream_idle_seconds=options.stream_idle_timeout,
        ),
    )


def _peers_of(options: argparse.Namespace) -> PeerSettings | None:
    """Return how to talk to other routers; None where nothing says that there are any."""
    port = options.peers_port
    if port is None:
        if not options.peer and options.peers_pods is None:
            return None
        port = terms.ROUTER_PEERS_PORT
    return PeerSettings(port, tuple(options.peer), options.peers_pods, options.peers_secret_file)


def _peer(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= 65535:  # noqa: PLR2004 - the range of ports
        raise argparse.ArgumentTypeError(f"{text} is no peer: write HOST:PORT, or [ADDRESS]:PORT for IPv6")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _pods(text: str) -> tuple[str, str]:
    namespace, _, selector = text.partition("/")
    if not namespace or "=" not in selector:
        raise argparse.ArgumentTypeError(f"{text} names no pods: write NAMESPACE/LABEL=VALUE,LABEL=VALUE")
    return namespace, selector


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:  # noqa: PLR2004 - the range of ports
        raise argparse.ArgumentTypeError(f"{text} is no port: give 0 (any free one) to 65535")
    return port


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:  # noqa: PLR2004 - eleven days: anything longer is a mistake
        raise argparse.ArgumentTypeError(f"{text} is no sensible number of seconds")
    return value


def _some_seconds(text: str) -> float:
    value = _seconds(text)
    if not value:
        raise argparse.ArgumentTypeError("0 would end everything before it has begun: give a longer time")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
