"""From samples to figures, ratios and the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES = ("2kB", "32kB")
DIRECT = "direct"
OWN = "turnout"


@dataclass(frozen=True, slots=True)
class Sample:
    """One contestant under one workload in one round. `units` are requests, or events of streams."""

    contestant: str
    kind: str
    concurrency: int
    cpu_seconds: float
    units: int
    seconds: float
    p50_ms: float
    p99_ms: float


@dataclass(slots=True)
class Samples:
    """Everything measured, round by round."""

    rounds: list[list[Sample]] = field(default_factory=list)

    def cpu_per_unit(self, contestant: str, kind: str, concurrency: int | None = None) -> list[float]:
        """Return CPU seconds per unit in each round, over all concurrencies where none is given."""
        return [
            sum(s.cpu_seconds for s in chosen) / sum(s.units for s in chosen)
            for chosen in self._chosen(contestant, kind, concurrency)
        ]

    def median_of(self, contestant: str, kind: str, concurrency: int, what: str) -> float:
        """Return the median over rounds of a field of `Sample`."""
        return median(getattr(s, what) for r in self._chosen(contestant, kind, concurrency) for s in r)

    def concurrencies(self, kind: str) -> list[int]:
        """Return the concurrencies that *kind* was measured at."""
        return sorted({s.concurrency for r in self.rounds for s in r if s.kind == kind})

    def _chosen(self, contestant: str, kind: str, concurrency: int | None) -> list[list[Sample]]:
        return [
            [
                s
                for s in samples
                if s.contestant == contestant and s.kind == kind and concurrency in {None, s.concurrency}
            ]
            for samples in self.rounds
        ]


def figures(samples: Samples, contestant: str, rss_mb: float) -> dict[str, Any]:
    """Return the figures of one contestant; latencies are those added to the direct way."""
    answer: dict[str, Any] = {"rss_mb": round(rss_mb, 1)}
    for size in SIZES:
        answer[size] = {"cpu_s_per_1000": round(1000 * median(samples.cpu_per_unit(contestant, size)), 4)}
        for concurrency in samples.concurrencies(size):
            answer[size][f"c{concurrency}"] = _at(samples, contestant, size, concurrency)
    answer["stream"] = {
        "cpu_s_per_100k_chunks": round(1e5 * median(samples.cpu_per_unit(contestant, "stream")), 3)
    } | {
        f"{n}_streams": round(1e5 * median(samples.cpu_per_unit(contestant, "stream", n)), 3)
        for n in samples.concurrencies("stream")
    }
    return answer


def ratios(samples: Samples, peers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return Turnout's CPU over each peer's: the median over rounds of the quotient within a round."""
    return {
        kind: {
            peer: round(
                median(
                    own / other
                    for own, other in zip(
                        samples.cpu_per_unit(OWN, kind), samples.cpu_per_unit(peer, kind), strict=True
                    )
                ),
                3,
            )
            for peer in peers
        }
        for kind in (*SIZES, "stream")
    }


def table(peers: dict[str, dict[str, Any]], titles: dict[str, str]) -> str:
    """Return the figures as Markdown."""
    head = (
        "| router | CPU s / 1,000 requests, 2 kB | 32 kB | requests/s, 2 kB, 64 at a time | 32 kB "
        "| added ms p50 / p99, 2 kB, 1 at a time | 8 | 64 | CPU s / 100k chunks, 16 streams | 64 | RSS MB |"
    )
    lines = [head, "|---|" + "---:|" * 10]
    for name, f in peers.items():
        small, large, stream = f["2kB"], f["32kB"], f["stream"]
        added = [
            f"{small[c]['added_p50_ms']:.2f} / {small[c]['added_p99_ms']:.2f}" for c in ("c1", "c8", "c64")
        ]
        lines.append(
            f"| {titles[name]} | {small['cpu_s_per_1000']:.3f} | {large['cpu_s_per_1000']:.3f} "
            f"| {small['c64']['requests_per_s']:,.0f} | {large['c64']['requests_per_s']:,.0f} "
            f"| {' | '.join(added)} | {stream['16_streams']:.2f} | {stream['64_streams']:.2f} | {f['rss_mb']:.0f} |"
        )
    return "\n".join(lines)


def ratio_table(found: dict[str, dict[str, float]], titles: dict[str, str]) -> str:
    """Return Turnout's CPU over the peers' as Markdown."""
    peers = list(next(iter(found.values())))
    lines = ["| Turnout's CPU over that of | 2 kB | 32 kB | stream |", "|---|---:|---:|---:|"]
    lines += [
        f"| {titles[peer]} | " + " | ".join(f"{found[kind][peer]:.2f}" for kind in found) + " |"
        for peer in peers
    ]
    return "\n".join(lines)


def _at(samples: Samples, contestant: str, size: str, concurrency: int) -> dict[str, float]:
    def of(who: str, what: str) -> float:
        return samples.median_of(who, size, concurrency, what)

    return {
        "cpu_s_per_1000": round(1000 * median(samples.cpu_per_unit(contestant, size, concurrency)), 4),
        "requests_per_s": round(of(contestant, "units") / of(contestant, "seconds")),
        "added_p50_ms": round(of(contestant, "p50_ms") - of(DIRECT, "p50_ms"), 3),
        "added_p99_ms": round(of(contestant, "p99_ms") - of(DIRECT, "p99_ms"), 3),
    }
