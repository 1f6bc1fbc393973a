"""The workers that may serve a request: by role, revision, earlier attempts, and the request itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing.fleet import Backend

LocalReason = Literal[
    "aggregated",
    "short_prompt",
    "no_prefill",
    "prefill_failed",
    "request_form",
    "no_generation",
    "cheaper_locally",
    "handed_over",
]
"""Why no prefill worker takes part: the pool does both phases; moving the cache costs more than computing it;
no prefill worker of the decode worker's revision can be used; those tried have failed; the request needs
something that only the worker that decodes can give (several choices or prompts, log probabilities of the prompt); nothing is generated (embeddings, say);
computing what is not cached there costs less than a prefill worker and the transfer; an earlier attempt has had the prompt
computed, and the cache has not been used yet."""


@mypyc_attr(acyclic=True, free_list_len=1)
class Constraints:
    """What rules workers out for one request.

    *excluded* workers are never chosen, *avoided* ones only where no other worker can decode. *local* given: no prefill
    worker takes part, for that reason. Values are never changed; the methods return new ones.
    """

    __slots__ = ("avoided", "excluded", "local")

    def __init__(
        self,
        excluded: frozenset[str] = frozenset(),
        avoided: frozenset[str] = frozenset(),
        local: LocalReason | None = None,
    ) -> None:
        self.excluded: Final = excluded
        self.avoided: Final = avoided
        self.local: Final = local

    def excluding(self, backend_id: str) -> Constraints:
        """Return these constraints without the worker *backend_id*."""
        return Constraints(self.excluded | {backend_id}, self.avoided, self.local)

    def avoiding(self, backend_id: str) -> Constraints:
        """Return these constraints with *backend_id* as a last resort."""
        return Constraints(self.excluded, self.avoided | {backend_id}, self.local)

    def locally(self, reason: LocalReason) -> Constraints:
        """Return these constraints without a prefill worker."""
        return Constraints(self.excluded, self.avoided, reason)


UNCONSTRAINED: Final = Constraints()


@mypyc_attr(acyclic=True, free_list_len=1)
class Candidates:
    """The workers that may decode a request (at least one), and those that may compute its prompt."""

    __slots__ = ("decoders", "prefillers")

    def __init__(self, decoders: Sequence[Backend], prefillers: Sequence[Backend]) -> None:
        self.decoders: Final = decoders
        self.prefillers: Final = prefillers


def eligible(backends: Sequence[Backend], constraints: Constraints) -> Candidates | None:
    """Return which of *backends* may serve a request, None where none can decode.

    Where a prefill worker may take part, revisions that have one (or need none) are preferred: a KV cache means nothing to
    another revision, so that in a rollout no request computes its prompt on a decode worker without need.
    """
    excluded, avoided = constraints.excluded, constraints.avoided
    decoders = [b for b in backends if b.role != "prefill" and b.id not in excluded]
    if avoided:
        decoders = [b for b in decoders if b.id not in avoided] or decoders
    if not decoders:
        return None
    prefillers: list[Backend] = []
    if constraints.local is None:
        prefillers = [b for b in backends if b.role == "prefill" and b.id not in excluded]
        complete = {b.revision for b in prefillers}
        decoders = [b for b in decoders if b.role == "aggregated" or b.revision in complete] or decoders
    return Candidates(decoders, prefillers)
