"""The command line of the worker: `turnout-worker serve`, `simulate`, `fetch` and `drain`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING, get_args

from turnout.terms import ENV_BIND_ADDRESS, ENV_POD_IP, KV_SIDE_CHANNEL_PORT, WORKER_PORT, Role
from turnout_runtime.options import read_port, read_positive, read_seconds
from turnout_worker.errors import ConfigurationError, SourceError
from turnout_worker.settings import (
    WorkerSettings,
    architecture,
    engine_settings,
    kv_events_settings,
)
from turnout_worker.sources.options import add_source_options
from turnout_worker.supervise.settings import add_serve, serve_settings

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 2 for flags that cannot work, 3 where a model's files cannot be had."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    reader = parser()
    options = reader.parse_args(given[:end])
    options.own_arguments, options.engine_command = given[1:end], given[end + 1 :]
    if end < len(given) and options.run is not _serve:
        reader.error("only serve takes a command behind --")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        status: int = options.run(options)
    except ConfigurationError as error:
        sys.stderr.write(f"turnout-worker: {error}\n")
        return 2
    except SourceError as error:
        # The last line of the log, which Kubernetes keeps in the pod's status.
        sys.stderr.write(f"turnout-worker: {error.reason}: {error}\n")
        return 3
    return status


def _serve(options: argparse.Namespace) -> int:
    settings = serve_settings(options, options.engine_command, os.environ)
    from turnout_worker.supervise.life import run  # noqa: PLC0415 - `drain` starts without asyncio

    return run(settings)


def _simulate(options: argparse.Namespace) -> int:
    from turnout_worker.serve import run  # noqa: PLC0415 - `drain` starts without uvloop and asyncio

    return run(settings_of(options))


def _fetch(options: argparse.Namespace) -> int:
    try:
        from turnout_worker.sources.command import run  # noqa: PLC0415 - the simulated worker has no such libraries

        return run(options)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"fetching needs {error.name}, which is not installed: install turnout[fetch]"
        ) from error


def _drain(options: argparse.Namespace) -> int:
    from turnout_worker.drain import drain  # noqa: PLC0415 - `simulate` starts without an HTTP client

    host = options.host or os.environ.get(ENV_BIND_ADDRESS) or "127.0.0.1"
    return drain(host, options.port, idle_seconds=options.idle_seconds, deadline_seconds=options.deadline)


def settings_of(options: argparse.Namespace) -> WorkerSettings:
    """Complete and check what was parsed. Raise ConfigurationError, saying what to write instead."""
    size = architecture(options.model, options.architecture)
    engine, latency = engine_settings(
        model=size,
        accelerator=options.accelerator,
        tensor_parallel=options.tensor_parallel,
        max_length=options.max_length,
        kv_cache_tokens=options.kv_cache_tokens,
        block_size=options.block_size,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_queued=options.max_num_queued_reqs,
        kv_lease_seconds=options.kv_lease_seconds,
    )
    host = options.host or os.environ.get(ENV_BIND_ADDRESS) or "0.0.0.0"  # noqa: S104 - a pod listens on all
    advertised = os.environ.get(ENV_POD_IP) or host
    if options.role == "prefill" and advertised == "0.0.0.0":  # noqa: S104 - compared, not bound
        raise ConfigurationError(
            f"a prefill worker must know the address that decode workers reach it at: set {ENV_POD_IP} "
            "(status.podIP) or --host"
        )
    return WorkerSettings(
        model=options.model,
        architecture=size,
        served_names=tuple(options.served_name or [options.model.removeprefix("hf://")]),
        adapters=_adapters(options),
        max_loras=options.max_loras,
        role=options.role,
        accelerator=options.accelerator,
        tensor_parallel=options.tensor_parallel,
        max_length=options.max_length,
        seed=options.seed,
        time_scale=options.time_scale,
        startup_seconds=options.startup_seconds,
        host=host,
        port=options.port,
        advertised_host=advertised,
        side_channel_port=options.side_channel_port,
        shutdown_timeout=options.shutdown_timeout,
        prompt_tokens_details=options.enable_prompt_tokens_details,
        engine=engine,
        latency=latency,
        kv_events=kv_events_settings(options.kv_events_config),
    )


def _adapters(options: argparse.Namespace) -> dict[str, str]:
    """Return the adapters' paths by name. Raise ConfigurationError, saying what to write instead."""
    found: dict[str, str] = {}
    for module in options.lora_modules:
        name, _, path = module.partition("=")
        if not name or not path:
            raise ConfigurationError(f"--lora-modules {module!r} says no adapter: write NAME=PATH")
        if name in found or name in (options.served_name or ()):
            raise ConfigurationError(f"--lora-modules: {name!r} is taken: give each adapter its own name")
        found[name] = path
    return found


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = argparse.ArgumentParser(prog="turnout-worker", description="What runs in a pool's pod.")
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="start a real engine, watch it and end it",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.set_defaults(run=_serve)
    add_serve(serve)
    _add_simulate(
        commands.add_parser(
            "simulate",
            help="serve a simulated engine in vLLM's likeness",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )
    fetch = commands.add_parser(
        "fetch",
        help="copy the files of a model and its LoRA adapters into a cache",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    fetch.set_defaults(run=_fetch)
    add_source_options(fetch)
    fetch.add_argument(
        "--dry-run", action="store_true", help="list the files and their sizes, and copy nothing"
    )
    drain = commands.add_parser(
        "drain",
        help="return when the worker is idle: for a preStop hook",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    drain.set_defaults(run=_drain)
    drain.add_argument(
        "--host", help=f"where the worker listens; ${ENV_BIND_ADDRESS}, or 127.0.0.1, where it is not given"
    )
    drain.add_argument("--port", type=read_port, default=WORKER_PORT, metavar="PORT", help="its port")
    drain.add_argument(
        "--idle-seconds", type=read_seconds, default=2.0, metavar="SECONDS", help="how long it must be idle"
    )
    drain.add_argument(
        "--deadline", type=read_seconds, default=110.0, metavar="SECONDS", help="give up after"
    )
    return found


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_simulate)
    add = parser.add_argument
    add("--model", required=True, metavar="SOURCE", help="such as hf://meta-llama/Llama-3.1-8B-Instruct")
    add(
        "--architecture",
        metavar="JSON",
        help="the model's size, as an operator writes it; that of the catalog where it is not given",
    )
    add(
        "--served-name",
        action="append",
        metavar="NAME",
        help="a name that clients call it by; may be repeated",
    )
    add(
        "--lora-modules",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a LoRA adapter that clients call by NAME; may be repeated; the path is not read",
    )
    add("--max-loras", type=read_positive, metavar="N", default=1, help="adapters that find room at a time")
    add(
        "--role",
        choices=get_args(Role),
        default="aggregated",
        help="what it does for a request",
    )
    add("--accelerator", default="H100-SXM", metavar="TYPE", help="whose speed and memory it simulates")
    add("--tensor-parallel", type=read_positive, default=1, metavar="N", help="accelerators of one replica")
    add(
        "--max-length",
        type=read_positive,
        metavar="N",
        default=32768,
        help="longest prompt plus output, in tokens",
    )
    add("--seed", type=int, metavar="N", default=0, help="the same seed and prompt give the same text")
    add("--time-scale", type=_factor, metavar="FACTOR", default=1.0, help="engine seconds in one real second")
    add(
        "--startup-seconds",
        type=read_seconds,
        metavar="SECONDS",
        default=0.0,
        help="engine seconds until the port opens",
    )
    add("--host", help=f"address to listen on; ${ENV_BIND_ADDRESS}, or all, where it is not given")
    add("--port", type=read_port, default=WORKER_PORT, metavar="PORT", help="the OpenAI API, health, metrics")
    add(
        "--side-channel-port",
        type=read_port,
        metavar="PORT",
        default=KV_SIDE_CHANNEL_PORT,
        help="where prefill hands out KV",
    )
    add(
        "--kv-cache-tokens",
        type=read_positive,
        metavar="N",
        help="of its KV cache; what the accelerator's memory leaves where it is not given",
    )
    add("--block-size", type=read_positive, metavar="N", default=16, help="tokens of a KV block")
    add("--max-num-seqs", type=read_positive, default=1024, metavar="N", help="requests in a batch")
    add("--max-num-batched-tokens", type=read_positive, default=8192, metavar="N", help="tokens in a step")
    add(
        "--max-num-queued-reqs",
        type=read_positive,
        metavar="N",
        help="more waiting requests get 503; no bound where it is not given",
    )
    add(
        "--kv-lease-seconds",
        type=read_seconds,
        metavar="SECONDS",
        default=30.0,
        help="engine seconds that a prefilled prompt is kept",
    )
    add(
        "--shutdown-timeout",
        type=read_seconds,
        metavar="SECONDS",
        default=0.0,
        help="real seconds that requests have after SIGTERM; those that are left end like whole ones, with "
        "finish_reason abort (0: all of them, as with vLLM)",
    )
    add(
        "--kv-events-config",
        metavar="JSON",
        help="publish what the prefix cache holds, as vLLM does; nothing where it is not given",
    )
    add(
        "--enable-prompt-tokens-details",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="report cached_tokens in usage",
    )


def _factor(value: str) -> float:
    number = float(value)
    if not 0 < number <= 1000:  # noqa: PLR2004 - beyond it the event loop could not follow
        raise argparse.ArgumentTypeError(f"{value} must be above 0 and at most 1000")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
