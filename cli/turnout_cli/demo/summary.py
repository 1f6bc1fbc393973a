"""What a demo adds up to: the figures of summary.json, and the lines that a person reads."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from turnout_cli.replay.figures import figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.api import LastScaling
    from turnout_cli.demo.samples import Sample
    from turnout_cli.demo.source import Traffic
    from turnout_cli.replay.figures import Objectives, ReplayOutcome

LISTED_FAILURES: Final = 5
"""Different reasons of failure that are listed."""


def summarize(
    outcomes: Sequence[ReplayOutcome],
    samples: Sequence[Sample],
    scalings: Sequence[LastScaling],
    objectives: Objectives,
    traffic: Traffic,
    *,
    time_scale: int,
    wall_seconds: float,
) -> dict[str, Any]:
    """Return summary.json's content. Latencies are milliseconds of the deployment; replicas are ready ones."""
    total = figures(outcomes, objectives)
    reasons = Counter(outcome.failure for outcome in outcomes if outcome.failure is not None)
    return {
        "requests": len(traffic.trace.requests),
        "succeeded": total.succeeded,
        "failed": len(traffic.trace.requests) - total.succeeded,
        "ttft_ms": {"p50": _ms(total.ttft_p50_seconds), "p99": _ms(total.ttft_p99_seconds)},
        "itl_ms": {"p50": _ms(total.itl_p50_seconds), "p99": _ms(total.itl_p99_seconds)},
        "goodput_percent": None if total.goodput_percent is None else round(total.goodput_percent, 2),
        "prefill_replicas": _range([sample.prefill_ready for sample in samples]),
        "decode_replicas": _range([sample.decode_ready for sample in samples]),
        "scaling_actions": len(scalings),
        "trace": traffic.trace.name,
        "time_scale": time_scale,
        "trace_seconds": round(traffic.trace.duration_seconds, 1),
        "wall_seconds": round(wall_seconds, 1),
        "objectives_ms": {
            "ttft": _ms(objectives.time_to_first_token_seconds),
            "itl": _ms(objectives.inter_token_latency_seconds),
        },
        "prompt_tokens": total.prompt_tokens,
        "output_tokens": total.output_tokens,
        "clipped_requests": traffic.clipped,
        "client_lag_p99_ms": _ms(total.lag_p99_seconds),
        "failures": dict(reasons.most_common(LISTED_FAILURES)),
        "scaling": [
            {"time": scaling.time, "from": scaling.from_, "to": scaling.to, "reason": scaling.reason}
            for scaling in scalings
        ],
    }


def spoken(summary: dict[str, Any]) -> list[str]:
    """Return *summary* as lines for a person, every scaling sentence with its time of day (UTC) among them."""
    scale = summary["time_scale"]
    lines = [
        f"{summary['succeeded']} of {summary['requests']} requests succeeded, {summary['failed']} failed",
        f"traffic: {summary['trace']}, {summary['clipped_requests']} requests shortened to the model's length",
        (
            f"TTFT p50 {_milliseconds(summary['ttft_ms']['p50'])}, p99 {_milliseconds(summary['ttft_ms']['p99'])}; "
            f"ITL p50 {_milliseconds(summary['itl_ms']['p50'])}, p99 {_milliseconds(summary['itl_ms']['p99'])} "
            f"(the deployment's time: {scale} s of it pass in one)"
        ),
        (
            f"goodput {_percent(summary['goodput_percent'])} within {summary['objectives_ms']['ttft']:g} ms to the "
            f"first token and {summary['objectives_ms']['itl']:g} ms between tokens"
        ),
        (
            f"prefill {_spoken_range(summary['prefill_replicas'])} replicas, "
            f"decode {_spoken_range(summary['decode_replicas'])}, {summary['scaling_actions']} scaling actions"
        ),
        (
            f"{summary['prompt_tokens']:,} prompt tokens and "
            f"{summary['output_tokens']:,} output tokens in {summary['wall_seconds']:g} s"
        ),
    ]
    lines += [f"  {each['time'][11:19]}  {each['reason']}" for each in summary["scaling"]]
    lines += [f"failed {count} times: {reason}" for reason, count in summary["failures"].items()]
    return lines


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _range(values: Sequence[int]) -> dict[str, int]:
    return {"min": min(values, default=0), "max": max(values, default=0)}


def _spoken_range(bounds: dict[str, int]) -> str:
    return f"{bounds['min']} to {bounds['max']}"


def _milliseconds(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:,.0f} ms"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"
