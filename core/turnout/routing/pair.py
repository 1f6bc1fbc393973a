"""The workers that serve a request, and the interface of the rules that choose them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing.candidates import Constraints, LocalReason
    from turnout.routing.fleet import Backend
    from turnout.routing.load_tracker import Prompt
    from turnout.routing.policy import PairEstimate
    from turnout.routing.reason import Reason


@mypyc_attr(acyclic=True, free_list_len=1)
class WorkerPair:
    """The workers that serve a request. Either there is a `prefill` worker, or `local_reason` says why not.

    `reason` is for people. `estimate` is what a prefix-aware policy expects of them, None under another rule.
    """

    __slots__ = ("decode", "estimate", "local_reason", "prefill", "reason")

    def __init__(
        self,
        decode: Backend,
        prefill: Backend | None,
        local_reason: LocalReason | None,
        reason: Reason | None = None,
        estimate: PairEstimate | None = None,
    ) -> None:
        self.decode: Final = decode
        self.prefill: Final = prefill
        self.local_reason: Final = local_reason
        self.reason: Final = reason
        self.estimate: Final = estimate


class Chooser(ABC):
    """A rule that chooses the workers of a request. A base class: mypyc calls its methods faster than a protocol's."""

    @abstractmethod
    def choose(
        self, backends: Sequence[Backend], prompt: Prompt, constraints: Constraints, now: float
    ) -> WorkerPair | None:
        """Return the ones of *backends* that serve *prompt* at *now*, the deployment's own time; None where none can decode."""
