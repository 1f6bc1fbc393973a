"""Requests of one deployment that are under way, and those that wait for room. Decided in `turnout.routing.admission`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from turnout.routing.admission import (
    HIGH,
    LOW,
    NORMAL,
    TIERS,
    AdmissionLimits,
    Tier,
    Verdict,
    has_room,
    judge,
)
from turnout_router.errors import overloaded
from turnout_router.fleet.claims import Claim

if TYPE_CHECKING:
    from turnout_router.fleet.claims import Claimant
    from turnout_router.outcome import Outcome

_TIER_OF: Final[dict[bytes, Tier]] = {b"high": HIGH, b"normal": NORMAL, b"low": LOW}


def tier_of(granted: Tier, wanted: bytes | None) -> Tier:
    """Return the tier of a request whose key grants *granted* and whose client requests *wanted*: it can only go lower."""
    return granted if wanted is None else max(granted, _TIER_OF.get(wanted.lower(), granted))


class AdmissionQueue(Claim):
    """One deployment's requests: those under way with their tokens, and those that wait, by tier."""

    __slots__ = ("_limits", "_requests", "_tokens", "_waiting", "_workers")

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._workers = 0
        self._requests = 0
        self._tokens = 0
        self._waiting = tuple(_Queue() for _ in TIERS)

    def try_acquire(self, request: Claimant) -> bool:
        """Admit *request* where none waits and there is room. Else return False: see `acquire`."""
        tokens = request.tokens
        if self.waiting or not has_room(self._requests, self._tokens, tokens, self._workers, self._limits):
            return False
        self._take(tokens)
        return True

    async def acquire(self, request: Claimant) -> None:
        """Return once there is room for *request*. Raise ApiError (503) where it cannot wait, or no longer."""
        tokens, tier = request.tokens, request.tier
        while (verdict := self._judge(tokens, tier)).displaced is not None:
            self._waiting[verdict.displaced].youngest().turn.set_result(False)
        if verdict.does == "enter":
            self._take(tokens)
            return
        if verdict.does == "leave":
            raise overloaded("too many requests wait for this model already", "queue_full")
        await self._wait(_Waiter(tokens), self._waiting[tier], self._limits.wait_seconds)

    def _judge(self, tokens: int, tier: Tier) -> Verdict:
        counts = [len(queue) for queue in self._waiting]
        queued = [queue.tokens for queue in self._waiting]
        room = has_room(self._requests, self._tokens, tokens, self._workers, self._limits)
        return judge(counts, queued, tokens, tier, self._limits, room=room)

    async def _wait(self, waiter: _Waiter, queue: _Queue, seconds: float) -> None:
        queue.append(waiter)
        turn = waiter.turn
        try:
            await asyncio.wait({turn}, timeout=seconds)
        except asyncio.CancelledError:
            if turn.done() and turn.result():
                self._leave(waiter.tokens)
            raise
        finally:
            if not turn.done():
                queue.remove(waiter)
                self._admit()  # the next one may be smaller
        if not turn.done():
            raise overloaded(f"no room for this request within {seconds:g} s", "queue_timeout")
        if not turn.result():
            raise overloaded("requests of a higher priority came first", "displaced")

    def release(self, request: Claimant, outcome: Outcome) -> None:  # noqa: ARG002 - room is room
        """Make room: *request* has ended."""
        self._leave(request.tokens)

    def _leave(self, tokens: int) -> None:
        self._requests -= 1
        self._tokens -= tokens
        if self.waiting:
            self._admit()

    def resize(self, workers: int, limits: AdmissionLimits) -> None:
        """Take note of how many workers decode now, and of the bounds. Requests that wait go on waiting."""
        self._workers = workers
        self._limits = limits
        self._admit()

    @property
    def wait_seconds(self) -> float:
        """How long a request waits at most, here or in the dispatch queue."""
        return self._limits.wait_seconds

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        high, normal, low = self._waiting
        return len(high) + len(normal) + len(low)

    def _take(self, tokens: int) -> None:
        self._requests += 1
        self._tokens += tokens

    def _admit(self) -> None:
        for queue in self._waiting:
            while len(queue):
                tokens = queue.first_tokens
                if not has_room(self._requests, self._tokens, tokens, self._workers, self._limits):
                    return
                self._take(tokens)
                queue.oldest().turn.set_result(True)


class _Waiter:
    """One request that waits. `turn` is True once it may go on, False where it has to leave."""

    __slots__ = ("tokens", "turn")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class _Queue:
    """Requests of one tier that wait, in the order in which they came, and their tokens."""

    __slots__ = ("_waiters", "tokens")

    def __init__(self) -> None:
        self._waiters: deque[_Waiter] = deque()
        self.tokens = 0

    def __len__(self) -> int:
        """Count those that wait."""
        return len(self._waiters)

    @property
    def first_tokens(self) -> int:
        """Tokens of the one whose turn is next."""
        return self._waiters[0].tokens

    def append(self, waiter: _Waiter) -> None:
        """Let *waiter* wait behind all others."""
        self._waiters.append(waiter)
        self.tokens += waiter.tokens

    def remove(self, waiter: _Waiter) -> None:
        """Let *waiter* go, whatever its place."""
        self._waiters.remove(waiter)
        self.tokens -= waiter.tokens

    def oldest(self) -> _Waiter:
        """Take out the request that came first."""
        return self._out(self._waiters.popleft())

    def youngest(self) -> _Waiter:
        """Take out the request that came last."""
        return self._out(self._waiters.pop())

    def _out(self, waiter: _Waiter) -> _Waiter:
        self.tokens -= waiter.tokens
        return waiter
