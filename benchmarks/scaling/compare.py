"""Print replica-hours and goodput of Turnout's scaling, HPA on queue length and a fixed fleet on an hour of traffic.

Run as ``python benchmarks/scaling/compare.py``.
"""

from __future__ import annotations

from fractions import Fraction

from turnout.scaling.policy import PoolPolicy, ScalingPolicy
from turnout_simulator.scaling.run import TRAFFIC, run
from turnout_simulator.scaling.scalers import fixed, hpa_on_queue, turnout

START_UP_SECONDS = (0.0, 60.0)
POLICY = ScalingPolicy(
    pools=(PoolPolicy("prefill", 1, 8, 1, "H100-SXM"), PoolPolicy("decode", 1, 8, 1, "H100-SXM")),
    max_accelerators=14,
    kv_target=0.8,
    ratio_min=Fraction(1, 4),
    ratio_max=Fraction(4),
    stabilization_seconds=300.0,
    mode="Automatic",
    goodput_target_percent=99.0,
    ttft_seconds=0.5,
    itl_seconds=0.04,
    interval_seconds=5.0,
)


def main() -> None:
    """Print one row per traffic, start-up time and scaler."""
    print("| traffic | start-up | scaler | goodput | replica-hours | most replicas | changes |")
    print("|---|---|---|---|---|---|---|")
    for name, rate in TRAFFIC.items():
        for startup in START_UP_SECONDS:
            scalers = {
                "Turnout": turnout(POLICY),
                "HPA on queue": hpa_on_queue(POLICY),
                "fixed 4 + 4": fixed({"prefill": 4, "decode": 4}),
            }
            for scaler, scale in scalers.items():
                start = (
                    {"prefill": 4, "decode": 4} if scaler.startswith("fixed") else {"prefill": 1, "decode": 1}
                )
                result = run(scale, rate, start=start, startup_seconds=startup)
                most = max(sum(n.values()) for _, n in result.replicas)
                print(
                    f"| {name} | {startup:.0f} s | {scaler} | {result.goodput_percent:.1f} % "
                    f"| {result.replica_hours:.2f} | {most} | {result.changes()} |"
                )


if __name__ == "__main__":
    main()
