"""A client's own deadline: an answer that has not begun by then is of no use to it, so nobody works on it any longer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnout_router.connection import ClientConnection
    from turnout_router.exchange import Exchange


async def within(seconds: float, exchange: Exchange, client: ClientConnection) -> None:
    """Run *exchange*, and have it end with 504 where *client* has been sent nothing after *seconds*.

    Cancelling it takes the request out of the queue, or closes the connections to its workers, who stop computing;
    no worker is blamed.
    """

    def expire() -> None:
        if not client.started:
            exchange.expired = True
            client.cancel()

    alarm = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        await exchange.run()
    finally:
        alarm.cancel()
