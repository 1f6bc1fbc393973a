"""Shares of the target and of older revisions in the middle of a rollout."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from turnout.scaling.rollout_facts import RevisionFacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from turnout.terms import Role


def serves(revision: RevisionFacts) -> bool:
    """Return whether *revision* answers requests: an aggregated pod is ready, or a prefill and a decode pod are."""
    return revision.pool("aggregated").ready > 0 or (
        revision.pool("prefill").ready > 0 and revision.pool("decode").ready > 0
    )


def ceiling(share: Fraction, replicas: int) -> int:
    """Return the least whole number of replicas that is *share* of *replicas*."""
    return -(-share.numerator * replicas // share.denominator)


@dataclass(frozen=True, slots=True)
class RolloutState:
    """What is desired, what the target has, and what older revisions have."""

    desired: Mapping[Role, int]
    """Replicas of each role that serve when the rollout is over, at least 1."""
    new: RevisionFacts
    older: tuple[RevisionFacts, ...]
    """All others, newest first."""

    @classmethod
    def of(cls, desired: Mapping[Role, int], revisions: Sequence[RevisionFacts], target: str) -> RolloutState:
        """Separate the *target* from the others."""
        ordered = sorted(revisions, key=lambda one: (one.created_seconds, one.revision), reverse=True)
        new = next((one for one in ordered if one.revision == target), RevisionFacts(target, 0.0, ()))
        return cls(
            {role: max(1, n) for role, n in desired.items()},
            new,
            tuple(one for one in ordered if one.revision != target),
        )

    @property
    def share(self) -> Fraction:
        """Share of the desired capacity that is ready on the target, 0 to 1."""
        return self.share_of(self.new)

    @property
    def steps(self) -> tuple[Fraction, ...]:
        """Shares at which some role of the target needs one replica more, ascending; the last is 1.

        From one step to the next both generations together need at most one replica of a role above what is desired.
        """
        return tuple(sorted({Fraction(k, n) for n in self.desired.values() for k in range(1, n + 1)}))

    def share_of(self, revision: RevisionFacts) -> Fraction:
        """Share of the desired capacity that is ready on *revision*, 0 to 1."""
        return min(Fraction(min(revision.pool(role).ready, n), n) for role, n in self.desired.items())

    def at_step(self, share: Fraction) -> dict[Role, int]:
        """Replicas of each role that make up *share* of what is desired."""
        return {role: ceiling(share, n) for role, n in self.desired.items()}

    def next_step(self) -> dict[Role, int]:
        """Replicas of the target after the first step for which not all are ready yet."""
        return self.at_step(next((share for share in self.steps if share > self.share), Fraction(1)))

    def needed_of_older(self, at_most: Mapping[Role, int]) -> dict[Role, int]:
        """Replicas of each role that older revisions keep together, limited to *at_most* where it names the role."""
        return {
            role: min(ceiling(1 - self.share, n), at_most.get(role, n)) for role, n in self.desired.items()
        }

    def asked_of_older(self) -> dict[Role, int]:
        """Replicas of each role that older revisions are asked for together."""
        return {role: sum(one.pool(role).replicas for one in self.older) for role in self.desired}

    def holds_older(self) -> bool:
        """Return whether any older revision has, or is asked for, a pod."""
        return any(pool.replicas or pool.ready or pool.draining for one in self.older for pool in one.pools)

    def older_to_fill(self) -> tuple[RevisionFacts, ...]:
        """Older revisions in the order in which they keep more than their ready pairs.

        Those that serve, newest first; then the rest, oldest first: it has served, where the newer ones never may.
        """
        serving = tuple(one for one in self.older if serves(one))
        return serving + tuple(one for one in reversed(self.older) if not serves(one))

    def carrier(self) -> RevisionFacts | None:
        """Return the older revision that follows scaling while the target does not serve; None when it does."""
        if self.share > 0:
            return None
        return next((one for one in self.older if serves(one)), None)

    def held_by_older(self, keep: Mapping[str, Mapping[Role, int]]) -> dict[Role, int]:
        """Pods that older revisions hold until those that leave have left."""
        held: dict[Role, int] = {}
        for revision in self.older:
            for pool in revision.pools:
                kept = keep[revision.revision].get(pool.role, 0)
                held[pool.role] = held.get(pool.role, 0) + max(pool.replicas, kept) + pool.draining
        return held

    def held_by_new(self, role: Role) -> int:
        """Pods of *role* that the target holds, those on their way out included."""
        pool = self.new.pool(role)
        return pool.replicas + pool.draining
