"""How a prefill and a decode worker share one request: a strategy per engine, chosen by the deployment's engine.

vLLM's decode worker pulls the cache with parameters that the prefill worker hands out (`pull`); SGLang is sent the request at
both workers at once (`dispatch_both`). A strategy chooses the workers of each attempt, makes the attempt, and says after a
failure whether another one is worth making.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from turnout.routing import WorkerPair
    from turnout_router.fleet.inflight import InFlightClaim
    from turnout_router.request.served import ServedRequest


class HandOff(ABC):
    """The strategy for one request. A base class: mypyc calls its methods faster than a protocol's."""

    __slots__ = ("_request",)

    def __init__(self, request: ServedRequest) -> None:
        self._request: Final = request

    @abstractmethod
    def next_pair(self) -> WorkerPair:
        """Return the workers of the next attempt. Raise ApiError where there are none."""

    @abstractmethod
    async def attempt(self, pair: WorkerPair, claim: InFlightClaim) -> int | None:
        """Have *pair* serve the request; *claim* is the one on its decode worker.

        Return the status of the answer, None where it failed and another attempt may follow. Raise ApiError where none may.
        """
