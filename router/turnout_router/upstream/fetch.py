"""Reading a page of a worker: GET, with the answer collected in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout_router.http1.http import get
from turnout_router.upstream.answers import Collected

if TYPE_CHECKING:
    from turnout_router.upstream.pools import ConnectionPool


async def fetch(
    pool: ConnectionPool, path: bytes, what: str, *, limit_bytes: int, seconds: float
) -> Collected:
    """Return the answer to GET *path*, whatever its status. *what* names it in messages.

    Raise UpstreamError if it does not arrive within *seconds* or has more than *limit_bytes*.
    """
    answer = Collected(limit_bytes)
    await pool.exchange(get(path, pool.host), answer, seconds=seconds, idle_seconds=None, what=what)
    return answer
