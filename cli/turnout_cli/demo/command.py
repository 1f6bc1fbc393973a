"""`turnout demo run` and `turnout demo down`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from turnout_cli.demo.errors import DemoError
from turnout_devcluster.cluster import Cluster
from turnout_devcluster.errors import DevClusterError, UnknownClusterError
from turnout_simulator.traces import TraceError

app = typer.Typer(no_args_is_help=True, help="See all of Turnout at work on a cluster of its own.")

NAME: Final = "demo"
INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as shells have it."""

Name = Annotated[str, typer.Option(help="The dev cluster's name.")]


@app.command("run")
def run(  # noqa: PLR0917 - options of the command line
    minutes: Annotated[
        float, typer.Option(min=0.1, max=600, help="Minutes of traffic, in the deployment's time.")
    ] = 10.0,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Traffic in Mooncake's format. Default: the real trace under $TURNOUT_DATA, else generated."
        ),
    ] = None,
    time_scale: Annotated[
        int | None, typer.Option(min=1, max=100, help="Another time scale than the example's own.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Decides arrivals within a trace's rounding, and generated traffic.")
    ] = 0,
    keep: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--keep", help="Leave the cluster running and say what to try.")
    ] = False,
    name: Name = NAME,
    output: Annotated[Path, typer.Option(help="Folder for summary.json and demo.svg.")] = Path("build/demo"),
) -> None:
    """Start a cluster, install Turnout, deploy a model, replay real traffic, and report what happened.

    Exits with 1 when a request failed or a step of the setup did.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from turnout_cli.demo.whole import DemoOptions, run_demo  # noqa: PLC0415 - matplotlib takes long to import

        failed = run_demo(DemoOptions(minutes, trace, time_scale, seed, keep, name, output))
    except KeyboardInterrupt:
        print("interrupted: the cluster is gone", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (DemoError, TraceError) as error:
        print(f"The demo cannot go on: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if failed:
        raise typer.Exit(1)


@app.command("vllm")
def vllm(
    keep: Annotated[  # noqa: FBT002 - a flag of the command line
        bool, typer.Option("--keep", help="Leave the cluster running and say what to try.")
    ] = False,
    name: Name = NAME,
    output: Annotated[Path, typer.Option(help="Folder for diagnostics where a step fails.")] = Path(
        "build/demo"
    ),
) -> None:
    """Serve a real model with vLLM on this machine's processor, prefill and decode apart, and ask it questions.

    `make vllm` installs vLLM and makes the model. Exits with 1 when a question was not answered or a step failed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from turnout_cli.demo.vllm import run_vllm_demo  # noqa: PLC0415 - as above

        failed = run_vllm_demo(keep=keep, name=name, output=output)
    except KeyboardInterrupt:
        print("interrupted: the cluster is gone", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except DemoError as error:
        print(f"The demo cannot go on: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if failed:
        raise typer.Exit(1)


@app.command("down")
def down(name: Name = NAME) -> None:
    """End a demo that was left running with --keep."""
    try:
        Cluster.attach(name).down()
    except UnknownClusterError:
        print(f"no demo called {name} is there", file=sys.stderr)
        return
    except DevClusterError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"the demo cluster {name} is gone", file=sys.stderr)
