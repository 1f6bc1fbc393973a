"""The demo's plot: load, replicas and goodput over time, one above the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from turnout_cli.demo.samples import Sample

BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREEN: Final = "#009E73"
GRAY: Final = "#666666"
"""Okabe and Ito's palette: distinguishable with every common color blindness."""

RATE_SECONDS: Final = 20.0
"""Arrivals are averaged over this long, in the deployment's seconds."""


def draw(samples: Sequence[Sample], *, goodput_target_percent: int, title: str) -> Figure:
    """Return the plot of *samples*. Lines are labeled where they run, so that no legend is needed."""
    minutes = [sample.at_seconds / 60 for sample in samples]
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    load, replicas, goodput = figure.subplots(3, 1, sharex=True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)

    load.plot(minutes, arrival_rates(samples), color=BLUE, linewidth=1.6)
    load.set_ylabel("requests\nper second", color=BLUE)
    load.set_ylim(bottom=0)
    under_way = load.twinx()
    under_way.plot(minutes, [sample.in_flight for sample in samples], color=ORANGE, linewidth=1.2)
    under_way.set_ylabel("in flight", color=ORANGE)
    under_way.set_ylim(bottom=0)
    under_way.spines[["top"]].set_visible(False)

    _replicas(replicas, minutes, samples)
    _goodput(goodput, minutes, samples, goodput_target_percent)
    for axes in (load, replicas, goodput):
        axes.spines[["top"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in (replicas, goodput):
        axes.spines[["right"]].set_visible(False)
    goodput.set_xlabel("minutes of the deployment's time")
    goodput.set_xlim(left=0, right=max(minutes, default=1) or 1)
    return figure


def write(figure: Figure, path: Path) -> None:
    """Write *figure* to *path* in the format of its suffix."""
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def arrival_rates(samples: Sequence[Sample]) -> list[float]:
    """Return requests sent per second over the last `RATE_SECONDS` before each sample."""
    rates = []
    first = 0
    for sample in samples:
        while samples[first].at_seconds < sample.at_seconds - RATE_SECONDS:
            first += 1
        begin = samples[first]
        since = (begin.at_seconds, begin.sent) if begin is not sample else (0.0, 0)
        seconds = sample.at_seconds - since[0]
        rates.append((sample.sent - since[1]) / seconds if seconds > 0 else 0.0)
    return rates


def _replicas(axes: Axes, minutes: Sequence[float], samples: Sequence[Sample]) -> None:
    pools = (
        (
            "prefill",
            BLUE,
            [each.prefill_desired for each in samples],
            [each.prefill_ready for each in samples],
        ),
        (
            "decode",
            ORANGE,
            [each.decode_desired for each in samples],
            [each.decode_ready for each in samples],
        ),
    )
    for name, color, desired, ready in pools:
        axes.step(minutes, desired, where="post", color=color, linewidth=1, linestyle=":")
        axes.step(minutes, ready, where="post", color=color, linewidth=1.8, label=name)
    axes.plot([], [], color=GRAY, linewidth=1, linestyle=":", label="asked for")
    axes.set_ylabel("ready replicas")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=2))
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", ncols=3, frameon=False, fontsize=9)


def _goodput(axes: Axes, minutes: Sequence[float], samples: Sequence[Sample], target: int) -> None:
    known = [
        (minute, sample.recent.goodput_percent)
        for minute, sample in zip(minutes, samples, strict=True)
        if sample.recent.goodput_percent is not None
    ]
    axes.axhline(target, color=GRAY, linewidth=1, linestyle="--")
    axes.annotate(
        f"target {target} %",
        (1, target),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=GRAY,
        fontsize=9,
    )
    axes.plot([minute for minute, _ in known], [value for _, value in known], color=GREEN, linewidth=1.8)
    axes.set_ylabel("goodput, %\n(last minute)")
    axes.set_ylim(0, 103)
