"""Least-loaded choice of the workers that decode a request and compute its prompt.

Formula: the backend with the least (in-flight tokens, in-flight requests, last pick) wins. In-flight tokens come
from the router's own accounting, so that they are never stale; the last pick makes equals take turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from turnout.routing.candidates import eligible
from turnout.routing.pair import Chooser, WorkerPair
from turnout.routing.reason import LeastLoaded, Phase, Ranking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from turnout.routing.candidates import Constraints
    from turnout.routing.fleet import Backend
    from turnout.routing.load_tracker import Prompt

_IDLE = (0, 0, -1)


class Load(Protocol):
    """What a backend has in flight, as this router counts it.

    `tokens` are prompt and expected output tokens, `requests` their number, `last_pick` grows with each pick.
    """

    @property
    def tokens(self) -> int: ...  # noqa: D102 - said above
    @property
    def requests(self) -> int: ...  # noqa: D102 - said above
    @property
    def last_pick(self) -> int: ...  # noqa: D102 - said above


class LoadChooser(Chooser):
    """Chooses the least loaded workers, by *loads*; a worker without an entry there has nothing in flight.

    A prompt of fewer than *local_below_tokens* tokens is computed where it is decoded. Among revisions that can serve it the
    least loaded decode worker wins, which spreads load by ready decode capacity.
    """

    __slots__ = ("_loads", "_local_below_tokens")

    def __init__(self, loads: Mapping[str, Load], local_below_tokens: int) -> None:
        self._loads = loads
        self._local_below_tokens = local_below_tokens

    def choose(
        self,
        backends: Sequence[Backend],
        prompt: Prompt,
        constraints: Constraints,
        now: float,  # noqa: ARG002 - the interface's
    ) -> WorkerPair | None:
        """Return the least loaded pair, see `Chooser.choose`."""
        if constraints.local is None and prompt.tokens < self._local_below_tokens:
            constraints = constraints.locally("short_prompt")
        found = eligible(backends, constraints)
        if found is None:
            return None
        local = constraints.local
        decoding = _least_loaded("decode", found.decoders, self._loads)
        decode = decoding.chosen
        prefilling = None
        if decode.role == "aggregated":
            local = "aggregated"
        elif prefillers := [b for b in found.prefillers if b.revision == decode.revision]:
            prefilling = _least_loaded("prefill", prefillers, self._loads)
        else:
            local = local or "no_prefill"
        reason = LeastLoaded(
            decoding, prefilling, local, prompt.tokens, constraints.excluded, constraints.avoided
        )
        return WorkerPair(decode, None if prefilling is None else prefilling.chosen, local, reason)


def _least_loaded(phase: Phase, backends: Sequence[Backend], loads: Mapping[str, Load]) -> Ranking:
    costs = []
    for backend in backends:
        load = loads.get(backend.id)
        costs.append(_IDLE if load is None else (load.tokens, load.requests, load.last_pick))
    return Ranking(phase, backends[costs.index(min(costs))], backends, costs)
