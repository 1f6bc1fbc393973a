"""The plot of the comparison: mean and p90 time to first token of every policy, a panel for each setting."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    Row = dict[str, Any]

OWN_COLOR: Final = "#0b6e4f"
PEER_COLOR: Final = "#8a97a6"


def mean_over_seeds(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each pool, blocks, load, routers and policy: the mean of its seeds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["pools"], row["blocks"], row["load"], row["routers"], row["policy"])
        groups.setdefault(key, []).append(row)
    return [
        group[0] | {name: fmean(row[name] for row in group) for name in group[0] if name.endswith(_MEASURED)}
        for group in groups.values()
    ]


_MEASURED: Final = ("_s", "_percent", "hit_rate")


def draw(rows: Sequence[Row], trace: str, path: Path) -> None:
    """Write the plot of *rows* to *path*, in the format that its name says."""
    means = [row for row in mean_over_seeds(rows) if row["routers"] == 1]
    pools = list(dict.fromkeys((row["pools"], row["blocks"]) for row in means))
    loads = sorted({row["load"] for row in means})
    figure, axes = plt.subplots(
        len(pools),
        len(loads),
        figsize=(4.6 * len(loads), 2.5 * len(pools)),
        squeeze=False,
        layout="constrained",
    )
    for line, (pool, blocks) in enumerate(pools):
        for column, load in enumerate(loads):
            panel = [
                row for row in means if (row["pools"], row["blocks"], row["load"]) == (pool, blocks, load)
            ]
            _panel(axes[line][column], panel, f"{pool} engines, {blocks:,} blocks, {load:.0%} load")
    figure.suptitle(
        f"Time to first token: mean (dot) and p90 (end of the line), seconds, log scale. {trace}", fontsize=11
    )
    figure.savefig(path)
    plt.close(figure)


def _panel(axes: Any, rows: Sequence[Row], title: str) -> None:
    axes.set_title(title, fontsize=9)
    if not rows:
        axes.set_axis_off()
        return
    places = range(len(rows))
    colors = [OWN_COLOR if row["policy"].startswith("Turnout") else PEER_COLOR for row in rows]
    means, tails = [row["ttft_mean_s"] for row in rows], [row["ttft_p90_s"] for row in rows]
    axes.hlines(list(places), means, tails, color=colors)
    axes.scatter(means, places, color=colors, s=28, zorder=3)
    axes.scatter(tails, places, color=colors, s=28, marker="|", zorder=3)
    for place, row in zip(places, rows, strict=True):
        axes.text(row["ttft_p90_s"] * 1.06, place, f"{row['ttft_mean_s']:.2f}", va="center", fontsize=6.5)
    axes.set_yticks(list(places), [row["policy"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(means) * 0.8, max(tails) * 1.9)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
