"""A client's own deadline: an answer that has not begun by then is of no use to it, so work on it ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout_router.http1.response import Response
    from turnout_router.request.served import ServedRequest


async def within(seconds: float, request: ServedRequest, response: Response) -> None:
    """Run *request*, and have it end with 504 where the client has been sent nothing after *seconds*.

    Cancelling it takes the request out of its queues, or closes the connections to its workers, which stop computing;
    no worker is blamed.
    """

    def expire() -> None:
        if not response.started:
            request.expired = True
            response.cancel()

    alarm = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        await request.run()
    finally:
        alarm.cancel()
