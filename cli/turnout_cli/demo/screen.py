"""What a person watches while traffic runs: a table that renews itself, or plain lines where no terminal is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from turnout_cli.demo.samples import Sample
    from turnout_cli.replay.figures import Figures

LINE_SECONDS: Final = 5.0
"""Wall seconds between plain lines."""


class Screen(Protocol):
    """Shows samples while it is entered."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, sample: Sample, *, wall_seconds: float, note: str) -> None:
        """Show *sample*, taken *wall_seconds* after the replay began. *note*: what else to know, or empty."""


def screen_for_terminal(*, time_scale: int) -> Screen:
    """Return the live table on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    return LiveTable(console, time_scale) if console.is_terminal else PlainLines()


class PlainLines:
    """One line every few seconds, for logs."""

    def __init__(self) -> None:
        self._next = 0.0
        self._sentence = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, sample: Sample, *, wall_seconds: float, note: str) -> None:
        """Write a line when it is time for one, and every new scaling sentence."""
        if sample.last_scaling and sample.last_scaling != self._sentence:
            self._sentence = sample.last_scaling
            _print(f"         scaling: {self._sentence}")
        if wall_seconds < self._next:
            return
        self._next = wall_seconds + LINE_SECONDS
        _print(plain_line(sample) + (f"  [{note}]" if note else ""))


def plain_line(sample: Sample) -> str:
    """Return *sample* in one line."""
    done, recent = sample.so_far, sample.recent
    return (
        f"{_clock(sample.at_seconds)}  sent {sample.sent}/{sample.total}, done {done.succeeded}, "
        f"failed {done.failed}  TTFT {_ms(recent.ttft_p50_seconds)}/{_ms(recent.ttft_p99_seconds)} ms  "
        f"ITL {_ms(recent.itl_p50_seconds)} ms  goodput {_percent(recent.goodput_percent)}  "
        f"prefill {sample.prefill_ready}/{sample.prefill_desired} KV {_kv(sample, 'prefill')}  "
        f"decode {sample.decode_ready}/{sample.decode_desired} KV {_kv(sample, 'decode', 'aggregated')}"
    )


class LiveTable:
    """A table in place, renewed with every sample."""

    def __init__(self, console: Console, time_scale: int) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._time_scale = time_scale

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, sample: Sample, *, wall_seconds: float, note: str) -> None:
        """Renew the table."""
        self._live.update(
            table(sample, time_scale=self._time_scale, wall_seconds=wall_seconds, note=note), refresh=True
        )


def table(sample: Sample, *, time_scale: int, wall_seconds: float, note: str) -> Group:
    """Return *sample* as what a terminal shows."""
    requests = Table(title=None, box=None, padding=(0, 2), show_edge=False)
    for heading in ("", "requests", "failed", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "goodput"):
        requests.add_column(heading, justify="left" if not heading else "right")
    requests.add_row("last minute", *_cells(sample.recent))
    requests.add_row("whole run", *_cells(sample.so_far))
    pools = Table(box=None, padding=(0, 2), show_edge=False)
    for heading in ("", "ready", "asked for", "KV cache in use"):
        pools.add_column(heading, justify="left" if not heading else "right")
    pools.add_row("prefill", str(sample.prefill_ready), str(sample.prefill_desired), _kv(sample, "prefill"))
    pools.add_row(
        "decode", str(sample.decode_ready), str(sample.decode_desired), _kv(sample, "decode", "aggregated")
    )
    head = Text(
        f"{_clock(sample.at_seconds)} of traffic in {wall_seconds:.0f} s (x{time_scale})   "
        f"sent {sample.sent}/{sample.total}, {sample.in_flight} in flight",
        style="bold",
    )
    scaling = Text(f"scaling: {sample.last_scaling or 'nothing yet'}", style="cyan")
    parts: list[Text | Table] = [head, requests, pools, scaling]
    if note:
        parts.append(Text(note, style="yellow"))
    return Group(*parts)


def _cells(figures: Figures) -> tuple[str, ...]:
    return (
        str(figures.requests),
        str(figures.failed),
        f"{_ms(figures.ttft_p50_seconds)} ms",
        f"{_ms(figures.ttft_p99_seconds)} ms",
        f"{_ms(figures.itl_p50_seconds)} ms",
        f"{_ms(figures.itl_p99_seconds)} ms",
        _percent(figures.goodput_percent),
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"


def _kv(sample: Sample, *roles: str) -> str:
    known = [sample.kv_utilization[role] for role in roles if role in sample.kv_utilization]
    return f"{100 * known[0]:.0f} %" if known else "-"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
