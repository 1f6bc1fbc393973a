"""The demo's summary, table and plot from known outcomes and samples."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from support.demo_values import OBJECTIVES, outcome, sample_at, scaling
from turnout.api import LastScaling
from turnout_cli.demo.plot import arrival_rates, draw, write
from turnout_cli.demo.screen import LiveTable, PlainLines
from turnout_cli.demo.source import Traffic
from turnout_cli.demo.summary import spoken, summarize
from turnout_simulator.traces import Trace, TraceRequest

if TYPE_CHECKING:
    from pathlib import Path

TRAFFIC = Traffic(
    Trace("a trace", tuple(TraceRequest(float(at), 100, 10, (0,)) for at in range(4))), clipped=1
)
OUTCOMES = [outcome(0), outcome(1, ttft=3.0), outcome(2), outcome(3, failure="HTTP 503: nothing serves")]
SAMPLES = [
    sample_at(0, prefill={"ready": 1, "desired": 1}, decode={"ready": 1, "desired": 1}),
    sample_at(
        30, *OUTCOMES[:2], sent=60, prefill={"ready": 1, "desired": 2}, decode={"ready": 2, "desired": 2}
    ),
    sample_at(60, *OUTCOMES, sent=150, prefill={"ready": 2, "desired": 2}, decode={"ready": 1, "desired": 1}),
]
SCALINGS = [LastScaling.model_validate(scaling(number)) for number in (1, 2)]


def test_the_summary_has_what_was_promised() -> None:
    """Counts, latencies in the deployment's milliseconds, goodput, replica ranges, scalings, traffic."""
    summary = summarize(OUTCOMES, SAMPLES, SCALINGS, OBJECTIVES, TRAFFIC, time_scale=5, wall_seconds=12.34)
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["requests"], summary["succeeded"], summary["failed"]) == (4, 3, 1)
    assert summary["ttft_ms"] == {"p50": 1000, "p99": 2960}
    assert summary["itl_ms"] == {"p50": 20, "p99": 20}
    assert summary["goodput_percent"] == 50
    assert summary["prefill_replicas"] == {"min": 1, "max": 2}
    assert summary["decode_replicas"] == {"min": 1, "max": 2}
    assert summary["scaling_actions"] == 2
    assert summary["trace"] == "a trace"
    assert summary["failures"] == {"HTTP 503: nothing serves": 1}


def test_a_request_that_never_ended_failed() -> None:
    """What was in the trace and has no outcome counts as failed: the exit status must not flatter."""
    summary = summarize(OUTCOMES[:1], SAMPLES, [], OBJECTIVES, TRAFFIC, time_scale=5, wall_seconds=1)
    assert summary["failed"] == 3


def test_a_person_reads_the_same() -> None:
    """The printed summary has counts, the time scale, every scaling sentence and every reason of failure."""
    text = "\n".join(
        spoken(summarize(OUTCOMES, SAMPLES, SCALINGS, OBJECTIVES, TRAFFIC, time_scale=5, wall_seconds=12))
    )
    assert "3 of 4 requests succeeded, 1 failed" in text
    assert "5 s of it pass in one" in text
    assert "  00:00:01  decode 1 -> 2: KV cache 91 % in use, target 80 %" in text
    assert "failed 1 times: HTTP 503: nothing serves" in text


def test_nothing_ended_is_reported_without_figures() -> None:
    """A run in which nothing came back is summed up, not divided by zero."""
    summary = summarize([], [], [], OBJECTIVES, TRAFFIC, time_scale=5, wall_seconds=1)
    assert summary["failed"] == 4
    assert summary["goodput_percent"] is None
    assert "goodput -" in "\n".join(spoken(summary))


def test_the_last_minute_is_the_last_minute() -> None:
    """Recent figures leave out what ended more than a minute ago; the whole run's do not."""
    old, new = outcome(0, failure="HTTP 500", sent_at=0), outcome(1, sent_at=100)
    sample = sample_at(110, old, new)
    assert (sample.recent.requests, sample.recent.goodput_percent) == (1, 100)
    assert (sample.so_far.requests, sample.so_far.goodput_percent) == (2, 50)


def test_arrival_rates_are_averages() -> None:
    """Rates are requests sent over the last seconds, in the deployment's time."""
    samples = [sample_at(float(at), sent=3 * at) for at in range(0, 101, 5)]
    rates = arrival_rates(samples)
    assert rates[0] == 0
    assert rates[1:] == pytest.approx([3.0] * 20)


def test_the_plot_is_whole(tmp_path: Path) -> None:
    """The SVG is well formed and names load, replicas, goodput and the target."""
    figure = draw(SAMPLES, goodput_target_percent=95, title="default/tiny under a trace")
    write(figure, tmp_path / "demo.svg")
    root = ET.parse(tmp_path / "demo.svg").getroot()  # noqa: S314 - written a line above
    assert root.tag.endswith("svg")
    labels = [axes.get_ylabel().replace("\n", " ") for axes in figure.axes]
    assert labels == ["requests per second", "ready replicas", "goodput, % (last minute)", "in flight"]


def test_no_samples_still_plot(tmp_path: Path) -> None:
    """A run that was over before its first sample has an empty plot, not a crash."""
    write(draw([], goodput_target_percent=95, title="nothing"), tmp_path / "demo.svg")
    assert (tmp_path / "demo.svg").stat().st_size > 0


def test_plain_lines_come_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal: a line when it is time, and what matters in it."""
    with PlainLines() as screen:
        for wall, sample in ((0, SAMPLES[0]), (1, SAMPLES[1]), (6, SAMPLES[2])):
            screen.show(sample, wall_seconds=wall, note="")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "sent 150/1000, done 3, failed 1" in lines[1]
    assert "prefill 2/2 KV 25 %" in lines[1]


def test_the_live_table_shows_everything() -> None:
    """On a terminal: counts, latencies, goodput, KV cache, replicas and what is wrong."""
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    with LiveTable(console, 5) as screen:
        screen.show(SAMPLES[2], wall_seconds=12, note="status not current: gone")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("TTFT p99", "goodput", "KV cache in use", "25 %", "prefill", "decode", "150/1000", "gone"):
        assert part in text
