"""`turnout replay`: a trace, or generated traffic, against any server with the OpenAI API."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, Final

import typer
import uvloop

from turnout_cli.replay.client import Client, Target
from turnout_cli.replay.errors import TargetError
from turnout_cli.replay.figures import Figures, Objectives, ReplayOutcome, figures
from turnout_cli.replay.replay import Replay, ReplaySettings
from turnout_simulator.generate import generate
from turnout_simulator.traces import Trace, TraceError, clip, read_trace, spread, window

LINE_SECONDS: Final = 5.0
"""Wall seconds between progress lines."""


def replay(  # noqa: PLR0917 - options of the command line
    url: Annotated[str, typer.Option(help="Where to send requests, as in http://127.0.0.1:8080.")],
    model: Annotated[str, typer.Option(help="The model's name.")],
    trace: Annotated[
        Path | None,
        typer.Option(help="Traffic in Mooncake's trace format. Default: generated conversations."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, max=1440, help="Minutes of traffic.")] = 10.0,
    offset_minutes: Annotated[float, typer.Option(min=0, help="Where in the trace to begin.")] = 0.0,
    time_scale: Annotated[
        float,
        typer.Option(
            min=0.01, max=1000, help="Seconds of traffic per second; latencies are multiplied by this."
        ),
    ] = 1.0,
    max_length: Annotated[
        int, typer.Option(min=2, help="Prompt plus output, in tokens; longer prompts are shortened.")
    ] = 32_704,
    ttft: Annotated[float, typer.Option(help="Objective: seconds to the first token.")] = 2.0,
    itl: Annotated[float, typer.Option(help="Objective: mean seconds between tokens.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Decides arrivals and generated traffic.")] = 0,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.", show_default=False)
    ] = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Wall seconds to wait for an answer.")] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Replay traffic against a server with the OpenAI API and print latencies and goodput.

    Arrivals keep their times whatever the server does. Exits with 1 when a request failed.
    """
    objectives = Objectives(ttft, itl)
    settings = ReplaySettings(model=model, time_scale=time_scale, deadline_seconds=deadline)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        traffic, clipped = clip(_traffic(trace, minutes, offset_minutes, seed), max_tokens=max_length)
        client = Client(Target.parse(url), headers=headers)
    except (TraceError, TargetError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    print(f"{len(traffic.requests)} requests from {traffic.name}, {clipped} shortened", file=sys.stderr)
    outcomes = uvloop.run(_run(traffic, client, settings, objectives))
    total = figures(outcomes, objectives)
    print(json.dumps(asdict(total), indent=2) if as_json else _spoken(total))
    for reason, count in Counter(each.failure for each in outcomes if each.failure).most_common(5):
        print(f"failed {count} times: {reason}", file=sys.stderr)
    if total.failed:
        raise typer.Exit(1)


def _traffic(trace: Path | None, minutes: float, offset_minutes: float, seed: int) -> Trace:
    """Return the traffic to replay. Raise TraceError where there is none."""
    begin, length = offset_minutes * 60, minutes * 60
    if trace is None:
        traffic = window(generate(begin + length, seed=seed), duration_seconds=length, offset_seconds=begin)
    else:
        traffic = spread(window(read_trace(trace), duration_seconds=length, offset_seconds=begin), seed=seed)
    if not traffic.requests:
        raise TraceError(
            f"no request in {minutes:g} minutes from minute {offset_minutes:g} of {traffic.name}"
        )
    return traffic


async def _run(
    traffic: Trace, client: Client, settings: ReplaySettings, objectives: Objectives
) -> list[ReplayOutcome]:
    """Replay *traffic* and write a line every few seconds; return all outcomes."""
    async with client:
        run = Replay(traffic, client, settings)
        replaying = asyncio.create_task(run.run())
        try:
            while not replaying.done():
                await asyncio.wait([replaying], timeout=LINE_SECONDS)
                now = figures(run.progress.outcomes, objectives)
                print(
                    f"sent {run.progress.sent}/{run.progress.total}, in flight {run.progress.in_flight}, "
                    f"failed {now.failed}, {_latencies(now)}",
                    file=sys.stderr,
                )
            replaying.result()
        finally:
            replaying.cancel()
            await asyncio.gather(replaying, return_exceptions=True)
        return run.progress.outcomes


def _latencies(figures_: Figures) -> str:
    return (
        f"TTFT p50 {_ms(figures_.ttft_p50_seconds)} p99 {_ms(figures_.ttft_p99_seconds)}, "
        f"ITL p50 {_ms(figures_.itl_p50_seconds)} p99 {_ms(figures_.itl_p99_seconds)}"
    )


def _spoken(total: Figures) -> str:
    goodput = "-" if total.goodput_percent is None else f"{total.goodput_percent:.1f} %"
    return (
        f"{total.succeeded} of {total.requests} requests succeeded; {_latencies(total)}; goodput {goodput}; "
        f"{total.prompt_tokens:,} prompt tokens ({total.cached_tokens:,} cached), {total.output_tokens:,} output tokens; "
        f"client lag p99 {_ms(total.lag_p99_seconds)}"
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.0f} ms"
