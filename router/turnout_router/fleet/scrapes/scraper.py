"""Reading every worker's metrics, one after the other, each at its own interval."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from turnout.routing.load_tracker import Scrape
from turnout_prom.search import PageError
from turnout_router.errors import UpstreamError
from turnout_router.fleet.scrapes.pace import Looks, period
from turnout_router.fleet.scrapes.page import read_page
from turnout_router.fleet.scrapes.pending import PendingTokens
from turnout_router.fleet.worker_tasks import WorkerTasks
from turnout_router.tasks import SCRAPE
from turnout_router.upstream.fetch import fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing import Backend
    from turnout_router.fleet.backends import Backends
    from turnout_router.fleet.deployment import DeploymentRuntime
    from turnout_router.upstream.answers import Collected
    from turnout_runtime.supervision import Supervisor

ANSWER_SECONDS: Final = 2.0
"""For a page. The figures of a worker that takes longer would be outdated."""
MAX_PAGE_BYTES: Final = 1024 * 1024
IDLE_SECONDS: Final = 1.0
"""Pause before looking for workers to scrape again."""
LEAST_SECONDS: Final = 0.01
AT_ONCE: Final = 4
"""Workers that are scraped in one turn."""
_OK: Final = 200


class Scraper:
    """Scrapes the workers among which a prefix-aware policy chooses, each once every *seconds*, never twice at a time.

    Less often where that would be too many pages for the router or too much of a worker's time, see `scrapes.pace`.
    *others* returns how many other routers scrape the same workers, as far as this one knows.
    """

    def __init__(
        self,
        backends: Backends,
        seconds: float,
        supervisor: Supervisor,
        others: Callable[[], int] = lambda: 0,
    ) -> None:
        self._backends = backends
        self._tasks = WorkerTasks(supervisor, SCRAPE)
        self._seconds = seconds
        self._others = others
        self._due: dict[str, float] = {}
        self._looks: dict[str, Looks] = {}
        self._pending: dict[str, PendingTokens] = {}

    async def run(self) -> None:
        """Scrape until cancelled."""
        loop = asyncio.get_running_loop()
        known: list[Backend] = []
        while True:
            now = loop.time()
            workers = self._backends.compared()
            routers = 1 + self._others()
            if workers != known:
                known = workers
                self._forget_others({worker.id for worker in workers})
            begun = 0
            following = now + IDLE_SECONDS
            for number, worker in enumerate(workers):
                id_ = worker.id
                due = self._due.get(id_)
                if due is None:  # new ones are spread over the interval
                    due = self._due[id_] = now + self._seconds * number / len(workers)
                if due <= now and begun < AT_ONCE:
                    looks = self._looks.setdefault(id_, Looks())
                    seconds = period(
                        self._seconds,
                        workers=len(workers),
                        routers=routers,
                        page_bytes=looks.page_bytes,
                        fastest=looks.fastest,
                    )
                    # What was missed is not made up for.
                    due = self._due[id_] = (due if due + seconds > now else now) + seconds
                    deployment = self._backends.of(worker.deployment)
                    if (
                        deployment is not None
                        and id_ not in self._tasks.running
                        and deployment.may_scrape(worker)
                    ):
                        begun += 1
                        self._tasks.start(worker, self._scrape(deployment, worker))
                following = min(following, due)
            await asyncio.sleep(max(LEAST_SECONDS, following - loop.time()))

    def _forget_others(self, known: set[str]) -> None:
        self._pending = {id_: one for id_, one in self._pending.items() if id_ in known}
        self._looks = {id_: one for id_, one in self._looks.items() if id_ in known}
        self._due = {id_: due for id_, due in self._due.items() if id_ in known}

    async def _scrape(self, deployment: DeploymentRuntime, worker: Backend) -> None:
        pool = self._backends.pools.of((worker.host, worker.port))
        outcome = "failed"
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answer = await fetch(
                pool, b"/metrics", "the metrics page", limit_bytes=MAX_PAGE_BYTES, seconds=ANSWER_SECONDS
            )
            looks = self._looks.get(worker.id)
            if looks is not None:
                looks.answered(len(answer.body), loop.time() - began, loop.time())
            outcome = self._take(deployment, worker, answer)
        except UpstreamError as error:
            outcome = error.fault
        except PageError:
            outcome = "unreadable"
        finally:
            deployment.metrics.scraped(outcome)

    def _take(self, deployment: DeploymentRuntime, worker: Backend, answer: Collected) -> str:
        """Pass on the figures of *answer*, and return the outcome. Raise PageError."""
        if answer.status != _OK:
            return "status"
        page = read_page(answer.body)
        now = asyncio.get_running_loop().time()
        pending = self._pending.setdefault(worker.id, PendingTokens()).of(page, now)
        scrape = Scrape(page.running, page.waiting, page.kv_usage, pending)
        deployment.scraped(worker, scrape)
        deployment.adapters_seen(worker, page.adapters, page.most_adapters)
        return "read"
