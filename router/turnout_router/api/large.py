"""Reading large requests: their values are counted before they are parsed, and one is parsed after the other.

So small requests have their turn in between, the objects of no more than one large request exist at a time, and a client
that sends many of them waits for itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from turnout_router.api.openai import parse_in_steps
from turnout_router.api.turns import Queue, in_turns
from turnout_router.api.untrusted import TooManyValues, parsed_bytes, weigh
from turnout_router.errors import deadline_passed, malformed, unavailable

if TYPE_CHECKING:
    from turnout_router.api.endpoints import Endpoint
    from turnout_router.api.openai import Completion
    from turnout_router.http1.http import Request
    from turnout_router.http1.response import Response

_TOO_MANY: Final = (
    "The body of your request holds too many values: about a million whole numbers are accepted, fewer texts, fractions and "
    "objects."
)


class LargeRequests:
    """Reads them. To be used on the event loop only."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: Queue | None = None

    async def read(
        self, endpoint: Endpoint, request: Request, response: Response, seconds: float | None
    ) -> Completion:
        """Return *request* parsed for *endpoint*. Raise ApiError: 400, 503 without room, 504 where *seconds* are over."""
        loop = asyncio.get_running_loop()
        if self._queue is None:
            self._queue = Queue(loop)
        late = False

        def expire() -> None:
            nonlocal late
            late = True
            response.cancel()

        alarm = None if seconds is None else loop.call_later(seconds, expire)
        try:
            await self._queue.enter(response.peer if request.payer is None else request.payer.name)
            try:
                return await self._read(endpoint, request, response, loop)
            finally:
                self._queue.leave()
        except asyncio.CancelledError:
            if late and not response.gone:
                raise deadline_passed() from None
            raise
        finally:
            if alarm is not None:
                alarm.cancel()

    async def _read(
        self,
        endpoint: Endpoint,
        request: Request,
        response: Response,
        loop: asyncio.AbstractEventLoop,
    ) -> Completion:
        body = request.body
        try:
            weight = await in_turns(weigh(body), loop)
        except TooManyValues:
            raise malformed(_TOO_MANY) from None
        held = parsed_bytes(body, weight)
        if not response.charge(request, held):
            raise unavailable("Too many large requests are under way.")
        completion = await in_turns(parse_in_steps(endpoint, body), loop)
        response.charge(request, len(body) - held)  # it is JSON again, beside what came
        return completion
