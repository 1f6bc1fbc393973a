"""The command line of ``turnout-router``: the settings' options, and those that are no setting of a running router."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from turnout import terms
from turnout_router.settings import PeerSettings, Settings
from turnout_runtime.options import add_options, from_options, read_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def parser(environment: Mapping[str, str] = os.environ) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = argparse.ArgumentParser(
        prog="turnout-router",
        description="The front door: the OpenAI API in front of pools of prefill and decode workers. The fleet is "
        "read from Kubernetes (KUBECONFIG, or the pod's service account) unless --config names a file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = found.add_argument
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
        default=environment.get(terms.ENV_POD_NAMESPACE, ""),
        help="own namespace: only TokenBudgets in it may open names of every namespace with the scope Cluster "
        f"(environment: {terms.ENV_POD_NAMESPACE})",
    )
    add_options(found, Settings, environment)
    add(
        "--peers-port",
        type=read_port,
        metavar="PORT",
        help="listen here for other routers in front of the same workers; no other client should reach it "
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
        help="secret that only routers know; without it the router trusts every peer that reaches the port",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what is logged")
    return found


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the settings of the command line. Exits with a message if they are invalid."""
    reads = parser()
    options = reads.parse_args(argv)
    if options.check and options.config is None:
        reads.error("--check needs --config FILE")
    if (options.tls_cert is None) != (options.tls_key is None):
        reads.error("--tls-cert and --tls-key go together: give both or neither")
    asked = options.peers_port is not None or options.peer or options.peers_pods
    if options.peers_secret_file is not None and not asked:
        reads.error("--peers-secret-file needs one of --peers-port, --peer, --peers-pods")
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that *options* amount to."""
    return from_options(Settings, options, peers=_peers_of(options))


def _peers_of(options: argparse.Namespace) -> PeerSettings | None:
    """Return the settings for exchanging messages with other routers; None without any."""
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
