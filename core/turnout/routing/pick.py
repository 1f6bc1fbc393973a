"""Which worker decodes a request, and which one computes its prompt first.

Formula: the backend with the least (in-flight tokens, in-flight requests, last pick) wins. In-flight tokens come
from the router's own accounting, so that they are never stale; the last pick makes equals take turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

from turnout.routing.reason import Half, LeastLoaded, Ranking, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from turnout.routing.fleet import Backend
    from turnout.routing.policy import Picks

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
"""Why no prefill worker takes part: the pool does both halves; moving the cache costs more than computing it;
no prefill worker of the decode worker's revision can be used; those tried have failed; the request asks for
something that only the worker that decodes can give (several choices or prompts, log probabilities of the prompt); nothing is generated (embeddings, say);
computing what is not cached there costs less than a prefill worker and the transfer; an earlier try has had the prompt
computed, and the cache has not been used yet."""


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


class Choice:
    """Who serves a request. Either `prefill` is there, or `local_reason` says why not.

    `reason` is for people; `picks` is what a prefix-aware policy is to be told of, once the request is on its way.
    """

    __slots__ = ("decode", "local_reason", "picks", "prefill", "reason")

    def __init__(
        self,
        decode: Backend,
        prefill: Backend | None,
        local_reason: LocalReason | None,
        reason: Reason | None = None,
        picks: Picks | None = None,
    ) -> None:
        self.decode: Final = decode
        self.prefill: Final = prefill
        self.local_reason: Final = local_reason
        self.reason: Final = reason
        self.picks: Final = picks


def pick_pair(
    backends: Sequence[Backend],
    loads: Mapping[str, Load],
    prompt_tokens: int,
    local_prefill_below_tokens: int,
    *,
    excluded: frozenset[str] = frozenset(),
    avoided: frozenset[str] = frozenset(),
    local: LocalReason | None = None,
) -> Choice | None:
    """Return who serves a prompt of (about) *prompt_tokens* tokens, None where nobody can decode.

    - Prefill and decode are of one model revision: a KV cache means nothing to another one.
    - A revision that can do both halves is preferred for prompts that are worth moving, so that in a rollout no
      request computes its prompt on a decode worker without need. Among such revisions the least loaded decode
      worker wins, which spreads load by ready decode capacity.
    - *excluded* backends are never chosen, *avoided* ones only where nobody else can decode.
    - *local* given: no prefill worker takes part, for that reason.
    - A backend without an entry in *loads* has nothing in flight.
    """
    decoders = [b for b in backends if b.role != "prefill" and b.id not in excluded]
    if avoided:
        decoders = [b for b in decoders if b.id not in avoided] or decoders
    if not decoders:
        return None
    if local is None and prompt_tokens < local_prefill_below_tokens:
        local = "short_prompt"
    prefillers: list[Backend] = []
    if local is None:
        prefillers = [b for b in backends if b.role == "prefill" and b.id not in excluded]
        complete = {b.revision for b in prefillers}
        decoders = [b for b in decoders if b.role == "aggregated" or b.revision in complete] or decoders
    decoding = _least_loaded("decode", decoders, loads)
    decode = decoding.chosen
    prefilling = None
    if decode.role == "aggregated":
        local = "aggregated"
    elif prefillers := [b for b in prefillers if b.revision == decode.revision]:
        prefilling = _least_loaded("prefill", prefillers, loads)
    else:
        local = local or "no_prefill"
    reason = LeastLoaded(decoding, prefilling, local, prompt_tokens, excluded, avoided)
    return Choice(decode, None if prefilling is None else prefilling.chosen, local, reason)


def _least_loaded(half: Half, backends: Sequence[Backend], loads: Mapping[str, Load]) -> Ranking:
    costs = []
    for backend in backends:
        load = loads.get(backend.id)
        costs.append(_IDLE if load is None else (load.tokens, load.requests, load.last_pick))
    return Ranking(half, backends[costs.index(min(costs))], backends, costs)
