"""The cost of sending a prompt to a backend, in seconds, term by term.

::

    cost = queue + (1 + congestion) * prefill + decode + kv_wait + adapter - affinity_bonus

    congestion = 1 + 7 * mean over backends of min(waiting, 2 * fewest waiting + 1), in prompts without a first token
    queue    = work of those prompts at this backend, less the assumed progress of the first
    prefill  = work of the prompt's tokens that are not cached there
    decode   = 2 * decode step * (1 + (queue + prefill) / full iteration)
    kv_wait  = mean residence * max(0, (KV held + KV needed) / KV capacity - 1)
    adapter  = time to load the LoRA adapter that the prompt requests and the backend lacks, times 1 + congestion where
               another makes way for it; and the mean residence where running requests use all the room there is
    affinity_bonus = what is expected to be cached at the session's affinity target, see `turnout.routing.session_affinity`

queue + prefill + decode + kv_wait is about the time to first token, and choosing by that alone is selfish: an
uncached prompt also takes a backend's time from all requests that come later in the same busy period. The congestion
term stands for that, and grows with the number of waiting requests: it is small while backends are idle, so that
a cached prefix never makes a request wait behind others for long; it is large under overload, where total work decides
how fast the queues grow and where balancing recomputed prompts perfectly is worse than every other rule. The constants
are those that won on a conversation trace at 70, 90 and 110 % load (docs/routing-measured.md, with what lost).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing.load_tracker import BackendState

CONGESTION_BASE: Final = 1.0
CONGESTION_PER_WAITING: Final = 7.0
PROGRESS: Final = 0.85
"""Share of the elapsed time that counts as progress of the prompt under way, where nothing decodes: an iteration has
its own overhead, and the prompt began when the iteration before it was over. What decodes take of a full iteration
comes on top."""
DECODE_WEIGHT: Final = 2.0
"""Once for the iterations that the prompt shares with the decodes, once for the streams that it stalls."""
OVERBOOKED: Final = 0.1
"""Share of a KV cache that may be promised beyond its capacity before requests are held back for it: each request is
counted with its whole answer, and takes room only as that grows."""
ADAPTER_LOAD_SECONDS: Final = 0.5
"""Reading a LoRA adapter of some 100 MB from disk into an accelerator."""


@mypyc_attr(acyclic=True)
class Cost:
    """One backend's cost in seconds, term by term (`congestion` being congestion * prefill).

    `total` is their sum less `affinity_bonus`, unless the chooser says otherwise. `waiting` are this router's prompts without a
    first token there.
    """

    __slots__ = (
        "adapter",
        "affinity_bonus",
        "backend",
        "cached_tokens",
        "congestion",
        "decode",
        "kv_wait",
        "prefill",
        "queue",
        "total",
        "waiting",
    )

    def __init__(  # noqa: PLR0917 - made for every backend of every request
        self,
        backend: str,
        cached_tokens: int,
        waiting: int,
        queue: float,
        prefill: float,
        congestion: float,
        decode: float,
        kv_wait: float,
        adapter: float,
    ) -> None:
        self.backend = backend
        self.cached_tokens = cached_tokens
        self.waiting = waiting
        self.queue = queue
        self.prefill = prefill
        self.congestion = congestion
        self.decode = decode
        self.kv_wait = kv_wait
        self.adapter = adapter
        self.affinity_bonus = 0.0
        self.total = queue + prefill + congestion + decode + kv_wait + adapter

    @property
    def wait(self) -> float:
        """Seconds in which the first token would be there."""
        return self.queue + self.prefill + self.decode + self.kv_wait

    def figures(self) -> tuple[tuple[str, float], ...]:
        """Return all of it with names for people."""
        return (
            ("cost", round(self.total, 6)),
            ("queueSeconds", round(self.queue, 6)),
            ("prefillSeconds", round(self.prefill, 6)),
            ("congestionSeconds", round(self.congestion, 6)),
            ("decodeSeconds", round(self.decode, 6)),
            ("kvWaitSeconds", round(self.kv_wait, 6)),
            ("adapterSeconds", round(self.adapter, 6)),
            ("affinityBonusSeconds", round(self.affinity_bonus, 6)),
            ("cachedTokens", self.cached_tokens),
            ("waiting", self.waiting),
        )


def congestion_weight(waiting: Sequence[float], most: float) -> float:
    """Return the weight of work beyond the request's own waiting; *waiting* are prompts without a first token, by backend.

    None counts with more than *most*. Where a backend computes prompts that is twice the shortest queue and one: if one
    has nothing to do, a long queue elsewhere is an imbalance to be cured, not an overload to be shared. For local
    prefill there is no such bound: it takes time from all whose prompts are moved to that decode worker, too.
    """
    total = 0.0
    for each in waiting:
        total += min(each, most)
    return CONGESTION_BASE + CONGESTION_PER_WAITING * total / len(waiting)


def queue_seconds(state: BackendState, step: float, full_iteration: float, now: float) -> float:
    """Return `queue`: the work of this router's waiting prompts at *state*, less the progress of the first.

    *step* is what the running answers add to an iteration, which slows the progress down.
    """
    seconds = state.queued_seconds
    if not seconds:
        return seconds
    first = next(iter(state.waiting))
    done = PROGRESS * (now - state.began) / (1 + step / full_iteration)
    return seconds - min(done, first.seconds)


def decode_seconds(step: float, prefill_seconds: float, full_iteration: float) -> float:
    """Return `decode`: *step*, once for each iteration during *prefill_seconds* of queue and prefill, and once more."""
    return DECODE_WEIGHT * step * (1 + prefill_seconds / full_iteration)


def kv_wait_seconds(blocks: int, capacity: int, residence_seconds: float) -> float:
    """Return `kv_wait`: how long until *blocks*, held and needed together, fit into *capacity*."""
    over = blocks / capacity - 1
    return residence_seconds * over if over > 0 else 0.0


def adapter_seconds(
    state: BackendState, adapter: str | None, weight: float, residence_seconds: float
) -> float:
    """Return `adapter`: 0 without one, and where a request of this router uses it at *state* now."""
    if adapter is None or adapter in state.adapter_uses:
        return 0.0
    room = state.adapter_room
    in_use = len(state.adapter_uses)
    wait = residence_seconds if 0 < room <= in_use else 0.0
    if adapter in state.adapters:
        return wait
    displaces = 0 < room <= len(state.adapters)
    return wait + ADAPTER_LOAD_SECONDS * (1 + weight if displaces else 1.0)
