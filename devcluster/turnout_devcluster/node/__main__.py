"""Command line of the node agent: ``python -m turnout_devcluster.node``.

SIGTERM and SIGINT end the agent and leave the pods running, so that the next one finds them again. SIGUSR1
ends the agent and all its pods; so does ``--terminate-pods``, for a cluster whose agent is gone already.
Exit status 2: an option cannot be used; the message says why.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from turnout_devcluster.node.agent import Agent, Options, terminate_pods
from turnout_devcluster.node.api import Api, load_kubeconfig
from turnout_devcluster.node.backoff import BackOff
from turnout_devcluster.node.errors import ConfigurationError

TERMINATE_GRACE_SECONDS = 5.0

_log = logging.getLogger("turnout_devcluster.node")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m turnout_devcluster.node",
        description="Runs the pods of a dev cluster as local processes.",
    )
    parser.add_argument("--state-dir", type=Path, required=True, help="folder of the cluster")
    parser.add_argument("--kubeconfig", type=Path, help="how to reach the API server (required to run)")
    parser.add_argument("--subnet", default="127.64.0.0/16", help="the cluster's /16 of loopback")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of each accelerator type")
    parser.add_argument(
        "--accelerators", default="", help="such as H100-SXM=16,H200-SXM=8: a count for each node"
    )
    parser.add_argument("--back-off-base", type=float, default=BackOff().base_seconds, help="seconds")
    parser.add_argument("--back-off-cap", type=float, default=BackOff().cap_seconds, help="seconds")
    parser.add_argument("--concurrent-starts", type=int, default=4, help="containers that may start at once")
    parser.add_argument(
        "--terminate-pods", action="store_true", help="end what runs in the state folder, and exit"
    )
    return parser


async def _run(options: Options, kubeconfig: Path) -> bool:
    """Run the agent until a signal. Return whether the pods are to end too."""
    loop = asyncio.get_running_loop()
    api = Api(load_kubeconfig(kubeconfig))
    terminate = False
    agent = asyncio.create_task(Agent(options, api).run())

    def stop(number: signal.Signals) -> None:
        nonlocal terminate
        terminate = terminate or number == signal.SIGUSR1
        agent.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        loop.add_signal_handler(number, stop, number)
    try:
        await agent
    except asyncio.CancelledError:
        _log.info("stopping%s", ", and to end the pods" if terminate else "; the pods go on")
    finally:
        await api.close()
    return terminate


def _options(parsed: argparse.Namespace) -> Options:
    """Return what the command line says. Raise ConfigurationError where it makes no sense."""
    if parsed.kubeconfig is None:
        raise ConfigurationError("--kubeconfig is missing: name the file that leads to the API server")
    if (
        parsed.concurrent_starts < 1
        or parsed.back_off_base <= 0
        or parsed.back_off_cap < parsed.back_off_base
    ):
        raise ConfigurationError(
            "--concurrent-starts must be at least 1, --back-off-base above 0, --back-off-cap not below it"
        )
    return Options(
        state_dir=parsed.state_dir.absolute(),
        subnet=parsed.subnet,
        node_count=parsed.nodes,
        accelerators=parsed.accelerators,
        back_off=BackOff(parsed.back_off_base, parsed.back_off_cap),
        concurrent_starts=parsed.concurrent_starts,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the agent, or end a cluster's pods. Return the exit status."""
    parsed = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if parsed.terminate_pods:
        count = terminate_pods(parsed.state_dir, TERMINATE_GRACE_SECONDS)
        _log.info("ended %d containers", count)
        return 0
    try:
        options = _options(parsed)
        if asyncio.run(_run(options, parsed.kubeconfig)):
            terminate_pods(options.state_dir, TERMINATE_GRACE_SECONDS)
    except ConfigurationError as error:
        sys.stderr.write(f"turnout node agent: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
