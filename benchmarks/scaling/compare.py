"""Print replica-hours and goodput of Turnout's scaling, HPA on queue length and a fixed fleet on an hour of traffic.

Run as ``PYTHONPATH=tests python benchmarks/scaling/compare.py`` from the repository's root.
"""

from __future__ import annotations

from support.scaling_loop import TRAFFIC, fixed, hpa_on_queue, run, turnout
from support.scaling_values import policy_of

START_UP_SECONDS = (0.0, 60.0)


def main() -> None:
    """Print one row per traffic, start-up time and scaler."""
    policy = policy_of(prefill=(1, 8), decode=(1, 8), ratio=("1:4", "4:1"), budget=14)
    print("| traffic | start-up | scaler | goodput | replica-hours | most replicas | changes |")
    print("|---|---|---|---|---|---|---|")
    for name, rate in TRAFFIC.items():
        for startup in START_UP_SECONDS:
            scalers = {
                "Turnout": turnout(policy),
                "HPA on queue": hpa_on_queue(policy),
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
