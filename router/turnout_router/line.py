"""Requests of one deployment that wait in the router until a worker could begin with them: `queueing: Router`.

Who waits, and who goes first, is decided in `turnout.routing.held`. Here they are woken: whenever a first token has come,
a request has ended or the fleet has changed, and now and then for what only time or another router brings.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from turnout.routing.held import Held, short_half
from turnout_router.drive import Signal
from turnout_router.errors import overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from turnout.routing import Choice
    from turnout.routing.held import Place
    from turnout.routing.ledger import Prompt
    from turnout.routing.policy import Picks, PrefixAware
    from turnout.routing.reason import Half
    from turnout_router.metrics import Standing

_TICK_SECONDS: Final = 0.05
"""How often the line is looked at while somebody waits and nothing happens: answers in one piece show no first token, and
what ends elsewhere is told by nobody who knows of the line."""


class _Waiter:
    """One request that waits: how it would be served now, and what wakes it."""

    __slots__ = ("choice", "choose", "half", "place", "signal")

    def __init__(self, choose: Callable[[], Choice | None], half: Half, place: Place, signal: Signal) -> None:
        self.choose: Final = choose
        self.half: Final = half
        self.place: Final = place
        self.signal: Final = signal
        self.choice: Choice | None = None


class Line:
    """The line of one deployment. Its length is bounded by admission, each one's time by `wait`'s *seconds*.

    *counts* are those who wait for want of a prefill and of a decode worker. *now* is the deployment's own time, in which the
    policy reckons.
    """

    def __init__(self, policy: PrefixAware, counts: Mapping[str, Standing], now: Callable[[], float]) -> None:
        self._held = Held(policy)
        self._counts = counts
        self._now = now
        self._waiters: dict[Prompt, _Waiter] = {}
        self._tick: asyncio.TimerHandle | None = None
        self._advancing = False
        self._entering: Prompt | None = None
        self._nobody = False
        self._broken: list[tuple[Prompt, Exception]] = []

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiters)

    def must_hold(self, choice: Choice) -> bool:
        """Say whether a request with this choice had better wait: nobody could begin with it, or others wait already."""
        return choice.picks is not None and (bool(self._waiters) or short_half(choice.picks) is not None)

    async def wait(
        self, prompt: Prompt, choice: Choice, choose: Callable[[], Choice | None], seconds: float
    ) -> Choice | None:
        """Return who serves *prompt*, once somebody could begin with it; None where nobody is there any more.

        *choose* says who would serve it now. Raise ApiError (503) after *seconds*.
        """
        loop = asyncio.get_running_loop()
        half: Half = "decode"
        if choice.picks is not None:
            half = short_half(choice.picks) or ("decode" if choice.prefill is None else "prefill")
        place = self._held.push(prompt, self._now())
        waiter = _Waiter(choose, half, place, Signal(loop))
        self._waiters[prompt] = waiter
        self._counts[half].add(1)
        refusal = overloaded(f"no worker could begin with this request within {seconds:g} s", "queue_timeout")
        alarm = loop.call_later(seconds, waiter.signal.set, refusal)
        try:
            self._entering = prompt
            self.advance()
            self._entering = None
            if self._waiters and self._tick is None:
                self._tick = loop.call_later(_TICK_SECONDS, self._look, loop)
            await waiter.signal
        finally:
            alarm.cancel()
            if self._waiters.get(prompt) is waiter:
                self._held.withdraw(place)
                self._leave(prompt, waiter)
        return waiter.choice

    def advance(self) -> None:
        """Send on those that need not wait any longer."""
        if self._advancing or not self._waiters:
            return  # the loop below goes on until nobody is left who could go
        self._advancing = True
        try:
            while (found := self._held.next(self._choose)) is not None:
                prompt = found[0].prompt
                waiter = self._waiters[prompt]
                self._leave(prompt, waiter)
                waiter.signal.set()  # it has been sent, and noted as sent, when this returns
                if prompt is self._entering:
                    return  # all but this one, which is only about to wait for its signal
        finally:
            self._advancing = False
            self._send_off()
        if self._nobody:
            self._nobody = False
            self.dissolve()

    def dissolve(self) -> None:
        """Send everybody on: there is no line any more, or nobody to wait for."""
        for prompt, waiter in tuple(self._waiters.items()):
            self._held.withdraw(waiter.place)
            self._leave(prompt, waiter)
            error: Exception | None = None
            try:
                waiter.choice = waiter.choose()
            except Exception as failure:  # noqa: BLE001 - it fails this request, and none of the others
                error = failure
            waiter.signal.set(error)

    def _send_off(self) -> None:
        """Fail those for whom nobody could be chosen because that raised: the others must not wait behind them."""
        broken, self._broken = self._broken, []
        for prompt, error in broken:
            waiter = self._waiters.get(prompt)
            if waiter is not None:
                self._held.withdraw(waiter.place)
                self._leave(prompt, waiter)
                waiter.signal.set(error)

    def _choose(self, prompt: Prompt) -> Picks | None:
        waiter = self._waiters[prompt]
        try:
            waiter.choice = waiter.choose()
        except Exception as error:  # noqa: BLE001 - see `_send_off`
            self._broken.append((prompt, error))
            return None
        if waiter.choice is None:
            self._nobody = True
            return None
        return waiter.choice.picks

    def _leave(self, prompt: Prompt, waiter: _Waiter) -> None:
        del self._waiters[prompt]
        self._counts[waiter.half].add(-1)
        if not self._waiters and self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._tick = None
        try:
            self.advance()
        finally:  # whatever happens, it goes on: those who wait have nothing else that would wake them
            if self._waiters and self._tick is None:
                self._tick = loop.call_later(_TICK_SECONDS, self._look, loop)
