"""The demo from nothing to a plot: cluster, chart, deployment, traffic, summary, and everything gone again."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from turnout.api import load_deployment
from turnout_cli.demo.diagnostics import write_diagnostics
from turnout_cli.demo.errors import DemoError, SetupError
from turnout_cli.demo.fleet import ApiServer
from turnout_cli.demo.plot import draw, write
from turnout_cli.demo.run import objectives_of, run_traffic
from turnout_cli.demo.screen import screen_for_terminal
from turnout_cli.demo.setup import Serving, install, serve
from turnout_cli.demo.source import CHART, EXAMPLE, choose_traffic, find_checkout, read_manifest
from turnout_cli.demo.summary import spoken, summarize
from turnout_cli.demo.tries import things_to_try
from turnout_devcluster.cluster import Cluster
from turnout_devcluster.errors import DevClusterError
from turnout_devcluster.progress import Progress

if TYPE_CHECKING:
    from turnout_cli.demo.source import Traffic

SUMMARY: Final = "summary.json"
PLOT: Final = "demo.svg"
DIAGNOSTICS: Final = "diagnostics.txt"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says."""

    minutes: float
    """Of traffic, in the deployment's time."""
    trace: Path | None
    time_scale: int | None
    seed: int
    keep: bool
    name: str
    output: Path


def run_demo(options: DemoOptions) -> int:
    """Run the whole demo and return how many requests failed.

    The cluster goes in the end, whatever happened, unless it is to be kept: then it stays, also for a look
    at a step that failed, and goes only when the user interrupts. Raise DemoError where a step fails.
    """
    checkout = find_checkout()
    manifest = read_manifest(checkout / EXAMPLE, time_scale=options.time_scale)
    traffic = choose_traffic(
        load_deployment(manifest),
        checkout=checkout,
        minutes=options.minutes,
        seed=options.seed,
        file=options.trace,
    )
    say = Progress()
    say.line(f"traffic: {traffic.trace.name}: {len(traffic.trace.requests)} requests")
    try:
        cluster = Cluster.up(options.name, owner_pid=None if options.keep else os.getpid(), progress=say)
    except DevClusterError as error:
        raise SetupError(str(error)) from error
    try:
        install(cluster, checkout / CHART, say)
        serving = serve(cluster, manifest, say)
        summary = _under_traffic(cluster, serving, traffic, options, say)
    except (DemoError, DevClusterError) as error:
        path = options.output / DIAGNOSTICS
        write_diagnostics(cluster, path)
        if not options.keep:
            _take_down(cluster, say)
        raise DemoError(f"{error}\nNodes, pods, events and the ends of all logs are in {path}") from error
    except BaseException:
        _take_down(cluster, say)
        raise
    if options.keep:
        program = Path(sys.argv[0])
        print("\n" + "\n".join(things_to_try(serving, program=program, cluster=cluster.name)))
    else:
        _take_down(cluster, say)
    return int(summary["failed"])


def _take_down(cluster: Cluster, say: Progress) -> None:
    """End the cluster and all that runs on it. Raise DemoError where something does not end."""
    say.line(f"taking the cluster {cluster.name} down")
    try:
        cluster.down()
    except DevClusterError as error:
        raise DemoError(str(error)) from error


def _under_traffic(
    cluster: Cluster, serving: Serving, traffic: Traffic, options: DemoOptions, say: Progress
) -> dict[str, Any]:
    """Replay the traffic, write summary and plot, report the result; return the summary."""
    scale = serving.deployment.spec.engine.simulated.time_scale
    say.line(
        f"replaying {len(traffic.trace.requests)} requests of {options.minutes:g} minutes in "
        f"{traffic.trace.duration_seconds / scale:.0f} s (x{scale}) at {serving.router_url}; "
        "all times are the deployment's"
    )
    screen = screen_for_terminal(time_scale=scale)
    result = uvloop.run(run_traffic(serving, traffic.trace, ApiServer.of(cluster), screen))
    summary = summarize(
        result.outcomes,
        result.samples,
        result.scalings,
        objectives_of(serving.deployment),
        traffic,
        time_scale=scale,
        wall_seconds=result.wall_seconds,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    key = serving.deployment.key
    figure = draw(
        result.samples,
        goodput_target_percent=serving.deployment.spec.slo.goodput_percent,
        title=f"{key} under {traffic.trace.name}",
    )
    write(figure, options.output / PLOT)
    print("\n".join(["", *spoken(summary)]))
    print(f"\nwritten: {options.output / SUMMARY}, {options.output / PLOT}")
    return summary
