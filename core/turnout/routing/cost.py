"""What it would cost to send a prompt to a backend, in seconds, term by term.

::

    cost = queue + (1 + affinity) * prefill + decode + kv_wait + adapter - home

    affinity = 1 + 5 * mean over backends of min(waiting, 2 * fewest waiting + 1), in prompts without a first token
    queue    = work of those prompts at this backend, less half the time that the first has been computed for
    prefill  = work of the prompt's tokens that are not cached there
    decode   = 2 * decode step * (1 + (queue + prefill) / full iteration)
    kv_wait  = mean residence * max(0, (KV held + KV needed) / KV capacity - 1)
    adapter  = time to load the LoRA adapter that the prompt asks for and the backend lacks
    home     = what is hoped to be cached at the session's home, see `turnout.routing.affinity`

queue + prefill + decode + kv_wait is about the time to first token, and choosing by that alone is selfish: an
uncached prompt also takes a backend's time from everybody who comes later in the same busy period. That is what the
affinity stands for, and why it grows with the number of those who wait: hardly any of it where backends idle, so that
a cached prefix never makes a request wait behind others for long; much of it under overload, where total work decides
how fast the queues grow and where balancing perfectly recomputed prompts loses to everything else. The figures are
what won on a conversation trace at 70, 90 and 110 % load (docs/routing.md, with what lost).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

AFFINITY_BASE: Final = 1.0
AFFINITY_PER_WAITING: Final = 5.0
PROGRESS: Final = 0.5
"""Share of the elapsed time that counts as progress of the prompt under way: decodes share its iterations, and it
began when the iteration before it was over."""
DECODE_WEIGHT: Final = 2.0
"""Once for the iterations that the prompt shares with the decodes, once for the streams that it stalls."""
ADAPTER_LOAD_SECONDS: Final = 0.5
"""Reading a LoRA adapter of some 100 MB from disk into an accelerator."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One backend's cost in seconds, the sum of the terms above (`affinity` being affinity * prefill), less `home`."""

    backend: str
    total: float
    queue: float
    prefill: float
    affinity: float
    decode: float
    kv_wait: float
    adapter: float
    home: float
    cached_tokens: int
    waiting: int
    """This router's prompts without a first token there."""


Compared = tuple[str, float, tuple[float, float, float, float, float, float], float, int, int]
"""A backend's cost as it is kept while nobody asks: id, total, the six terms, home, cached tokens, waiting."""


def cost_of(compared: Compared) -> Cost:
    """Return *compared* with names."""
    backend, total, (queue, prefill, charged, decode, kv_wait, adapter), home, cached, waiting = compared
    return Cost(backend, total, queue, prefill, charged, decode, kv_wait, adapter, home, cached, waiting)


def affinity(waiting: Sequence[float], most: float) -> float:
    """Return the weight of work beyond the request's own waiting; *waiting* are prompts without a first token, by backend.

    None counts with more than *most*. Where a backend computes prompts that is twice the shortest queue and one: if one
    has nothing to do, a long queue elsewhere is an imbalance to be cured, not an overload to be shared. For local
    prefill there is no such bound: it takes time from all whose prompts are moved to that decode worker, too.
    """
    return AFFINITY_BASE + AFFINITY_PER_WAITING * sum([min(each, most) for each in waiting]) / len(waiting)
