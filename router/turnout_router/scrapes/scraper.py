"""Reading every worker's metrics, one after the other, spread over the interval."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from turnout.routing.ledger import Scrape
from turnout_router.errors import UpstreamError
from turnout_router.http import get
from turnout_router.relay import Collected
from turnout_router.scrapes.page import PageError, read_page
from turnout_router.scrapes.pending import PendingTokens
from turnout_router.tasks import SCRAPE

if TYPE_CHECKING:
    from turnout.routing import Backend
    from turnout_router.backends import Backends
    from turnout_router.metrics import Metrics
    from turnout_runtime.supervision import Supervisor

ANSWER_SECONDS: Final = 2.0
"""For a page. A worker that takes longer has told nothing that would still be so."""
MAX_PAGE_BYTES: Final = 1024 * 1024
MOST_A_SECOND: Final = 100
"""Pages over all workers: one costs half a millisecond of CPU. Beyond that each worker is asked more seldom."""
IDLE_SECONDS: Final = 1.0
"""How long to wait before looking again whether there is anybody to ask."""
_OK: Final = 200


class Scraper:
    """Asks the workers among which a prefix-aware policy chooses, each once every *seconds*, never twice at a time.

    More seldom where that would be more than `MOST_A_SECOND` pages a second in all.
    """

    def __init__(self, backends: Backends, metrics: Metrics, seconds: float, supervisor: Supervisor) -> None:
        self._backends = backends
        self._metrics = metrics
        self._supervisor = supervisor
        self._seconds = seconds
        self._asked: set[str] = set()
        self._pending: dict[str, PendingTokens] = {}

    async def run(self) -> None:
        """Ask until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            workers = self._backends.compared()
            known = {worker.id for worker in workers}
            seconds = max(self._seconds, len(workers) / MOST_A_SECOND)
            self._pending = {id_: one for id_, one in self._pending.items() if id_ in known}
            for number, worker in enumerate(workers):
                await asyncio.sleep(began + seconds * number / len(workers) - loop.time())
                if worker.id not in self._asked and self._backends.may_ask(worker):
                    self._begin(worker)
            rest = seconds if workers else IDLE_SECONDS
            await asyncio.sleep(began + rest - loop.time())

    def _begin(self, worker: Backend) -> None:
        self._asked.add(worker.id)
        task = self._supervisor.once(SCRAPE, self._scrape(worker), detail=worker.id)
        task.add_done_callback(lambda _: self._asked.discard(worker.id))

    async def _scrape(self, worker: Backend) -> None:
        answer = Collected(MAX_PAGE_BYTES)
        pool = self._backends.pools.of((worker.host, worker.port))
        outcome = "failed"
        try:
            await pool.exchange(
                get(b"/metrics", pool.host),
                answer,
                seconds=ANSWER_SECONDS,
                idle_seconds=None,
                what="the metrics page",
            )
            outcome = self._take(worker, answer)
        except UpstreamError as error:
            outcome = error.fault
        except PageError:
            outcome = "unreadable"
        finally:
            self._metrics.of(worker.deployment).scraped(outcome)

    def _take(self, worker: Backend, answer: Collected) -> str:
        """Hand on what *answer* says, and return how it went. Raise PageError."""
        if answer.status != _OK:
            return "status"
        page = read_page(answer.body)
        now = asyncio.get_running_loop().time()
        pending = self._pending.setdefault(worker.id, PendingTokens()).of(page, now)
        scrape = Scrape(page.running, page.waiting, page.kv_usage, pending)
        self._backends.scraped(worker, scrape)
        self._backends.adapters_seen(worker, page.adapters, page.most_adapters)
        return "read"
