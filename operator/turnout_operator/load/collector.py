"""The scraper: reads workers and routers every few seconds, a bounded number at a time, each with a deadline.

A pod that does not answer is a fact (its load is unknown), never an error. A pod that is slow or sends garbage affects its
own deployment alone: each deployment is read by itself, and of a page only the few lines that matter are kept.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeVar

import aiohttp

from turnout.terms import ROUTER_ADMIN_PORT, WORKER_PORT
from turnout_operator.load.pages import ROUTER, WORKER, RouterPage, RouterPages, worker_page
from turnout_operator.load.traffic import Traffic
from turnout_operator.load.window import CounterWindow
from turnout_operator.observe.store import Key
from turnout_operator.plan.pods import WorkerLoad
from turnout_prom.exposition import Excerpt
from turnout_runtime.supervision import is_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from turnout.api import Role
    from turnout_operator.load.pages import WorkerPage
    from turnout_runtime.supervision import Supervisor

TASK: Final = "scrapes"
"""Name under which failures are counted."""
MAX_WORKER_BYTES: Final = 1 << 20
"""Longest page of a worker that is read. vLLM's has some 100 KiB."""
MAX_WORKER_SAMPLES: Final = 128 << 10
"""Bytes of a worker's page that matter: half a dozen lines per engine in it."""
MAX_ROUTER_BYTES: Final = 64 << 20
"""The same of a router, whose page has a hundred lines per deployment."""
MAX_ROUTER_SAMPLES: Final = MAX_ROUTER_BYTES
WINDOW_SECONDS: Final = 60.0
"""Length of the window over which traffic is counted, in the deployment's seconds."""
MIN_WINDOW_SECONDS: Final = 10.0
"""The same in real seconds, for deployments whose time runs fast."""
_PHASES: Final = ("prefill", "decode")
NO_TRAFFIC: Final = Traffic({}, 0.0, answered=False)
NOTHING_COUNTED: Final = RouterPage()
P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Target:
    """A pod to read."""

    uid: str
    address: str
    role: Role | None = None
    """Role of a worker; None for a router."""


class _Held(NamedTuple):
    """Requests that a router held for prefill."""

    read_at: float
    """Monotonic time at which the page was read."""
    seconds: float
    """Counter of the time for which it held them, summed."""
    mean: float
    """Mean number of them between the previous page and this one."""


@dataclass(slots=True)
class _Deployment:
    """What has been read about one deployment."""

    window: CounterWindow
    loads: dict[str, WorkerLoad] = field(default_factory=dict)
    """By the pod's uid."""
    spent: dict[str, float] = field(default_factory=dict)
    """By the pod's uid: prefill seconds so far."""
    held_for: dict[str, _Held] = field(default_factory=dict)
    """By the router's uid."""
    read_at: float | None = None
    """Monotonic time of the last scrape."""
    occupancy: dict[Role, float | None] = field(default_factory=dict)
    traffic: Traffic = NO_TRAFFIC
    reads: int = 0
    """How often it has been read."""


@dataclass(slots=True)
class _Router:
    """The last page of one router."""

    history: RouterPages = field(default_factory=RouterPages)
    pages: Mapping[str, RouterPage] | None = None
    """By deployment; None where it did not answer."""
    read_at: float = 0.0
    """Monotonic time of the pages."""
    reading: asyncio.Task[None] | None = None


class Collector:
    """Reads pages and keeps what they say, by deployment."""

    def __init__(
        self,
        tasks: Supervisor,
        *,
        failed: Callable[[str], None] = lambda _: None,
        concurrency: int = 16,
        timeout_seconds: float = 2.0,
    ) -> None:
        self._tasks = tasks
        self._failed = failed
        """Called with ``worker`` or ``router`` for every page that could not be read."""
        self._concurrency = concurrency
        """Workers of one deployment that are read at the same time."""
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._deployments: dict[Key, _Deployment] = {}
        self._routers: dict[str, _Router] = {}
        """By the pod's uid."""
        self._news: set[Key] = set()
        self._quiet_until: dict[Key, float] = {}
        """Deployments for which a router has reported new figures since they were last read: the monotonic time of the last
        router page without a change. No traffic came before that time."""

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=False, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            # A page that unpacks to a thousand times its size is not unpacked.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def read_routers(self, routers: Iterable[Target]) -> None:
        """Read all *routers*, except those whose previous reading has not ended yet.

        Decisions do not wait for it: a router that hangs delays none.
        """
        sources = {target.uid: target for target in routers}
        self._routers = {uid: self._routers.get(uid) or _Router() for uid in sources}
        asked = []
        for uid, router in self._routers.items():
            if router.reading is None or router.reading.done():
                work = self._read_router(router, sources[uid].address)
                router.reading = self._tasks.once(TASK, work, detail=f"router {sources[uid].address}")
                asked.append(router.reading)
        if asked:
            await asyncio.wait(asked)

    def take_news(self) -> frozenset[Key]:
        """Return the deployments for which routers have reported something new since the last call."""
        news, self._news = frozenset(self._news), set()
        return news

    async def read(self, key: Key, workers: Iterable[Target], scale: int) -> None:
        """Read all *workers* of a deployment, and update its figures with the pages of workers and routers."""
        slots = asyncio.Semaphore(self._concurrency)

        async def one(target: Target) -> tuple[Target, WorkerPage] | None:
            async with slots:
                page = await self._worker(target)
            return None if page is None else (target, page)

        answers = await asyncio.gather(*(one(target) for target in workers))
        state = self._state(key, scale)
        name = str(key)
        reports = {
            uid: (router.read_at, router.pages.get(name, NOTHING_COUNTED))
            for uid, router in self._routers.items()
            if router.pages is not None
        }
        quiet_until = self._quiet_until.pop(key, None)
        if quiet_until is not None and state.read_at is not None and quiet_until > state.read_at:
            # It was not read while it was idle: the window begins where the traffic may have begun.
            state.window.add(quiet_until, {})
            state.read_at = quiet_until
        self._take(state, [answer for answer in answers if answer is not None], reports, scale)
        now = time.monotonic()
        state.window.add(now, {uid: page.counters for uid, (_, page) in reports.items()})
        state.window.forget(frozenset(self._routers))
        held = {phase: sum(page.held.get(phase, 0) for _, page in reports.values()) for phase in _PHASES}
        state.traffic = Traffic(state.window.sums(), state.window.span(now), bool(reports), held)
        state.reads += 1

    def load(self, key: Key, uid: str) -> WorkerLoad | None:
        """Return a worker's load at the last scrape; None where it did not answer."""
        state = self._deployments.get(key)
        return None if state is None else state.loads.get(uid)

    def traffic(self, key: Key) -> Traffic:
        """Return what the routers had counted for a deployment when it was read last."""
        state = self._deployments.get(key)
        return NO_TRAFFIC if state is None else state.traffic

    def reads(self, key: Key) -> int:
        """Return how often a deployment has been read. While that number is the same, all its other figures are, too."""
        state = self._deployments.get(key)
        return 0 if state is None else state.reads

    def occupancy(self, key: Key) -> Mapping[Role, float | None]:
        """Return the mean number of requests in prefill, or held for it, since the scrape before, by role."""
        state = self._deployments.get(key)
        return {} if state is None else state.occupancy

    def forget(self, present: frozenset[Key]) -> None:
        """Drop all deployments that are not *present* any more."""
        for key in [key for key in self._deployments if key not in present]:
            del self._deployments[key]
        for key in [key for key in self._quiet_until if key not in present]:
            del self._quiet_until[key]

    def _state(self, key: Key, scale: int) -> _Deployment:
        length = max(MIN_WINDOW_SECONDS, WINDOW_SECONDS / scale)
        state = self._deployments.get(key)
        if state is None or state.window.seconds != length:
            state = self._deployments[key] = _Deployment(CounterWindow(length))
        return state

    @staticmethod
    def _take(
        state: _Deployment,
        workers: list[tuple[Target, WorkerPage]],
        routers: Mapping[str, tuple[float, RouterPage]],
        scale: int,
    ) -> None:
        now, monotonic = time.time(), time.monotonic()
        elapsed = 0.0 if state.read_at is None else (monotonic - state.read_at) * scale
        spent = {
            target.uid: page.prefill_seconds for target, page in workers if page.prefill_seconds is not None
        }
        held_for = {
            uid: _held(state.held_for.get(uid), read_at, page.held_seconds.get("prefill", 0.0), scale)
            for uid, (read_at, page) in routers.items()
        }
        occupancy: dict[Role, float | None] = {}
        if elapsed > 0:
            for target, _ in workers:
                gained = _gained(state.spent, spent, target.uid)
                if target.role is not None and gained is not None:
                    occupancy[target.role] = (occupancy.get(target.role) or 0.0) + gained / elapsed
            if (prefilling := occupancy.get("prefill")) is not None:
                occupancy["prefill"] = prefilling + sum(held.mean for held in held_for.values())
        state.loads = {
            target.uid: WorkerLoad(
                now, page.running, page.waiting, page.kv_utilization, page.deferred, page.kv_tokens
            )
            for target, page in workers
        }
        state.spent, state.held_for, state.read_at, state.occupancy = spent, held_for, monotonic, occupancy

    async def _worker(self, target: Target) -> WorkerPage | None:
        excerpt = Excerpt(WORKER, max_bytes=MAX_WORKER_BYTES, max_kept=MAX_WORKER_SAMPLES)
        page = await self._page(target.address, WORKER_PORT, excerpt, worker_page)
        if page is None:
            self._failed("worker")
        return page

    async def _read_router(self, router: _Router, address: str) -> None:
        pages: Mapping[str, RouterPage] | None = None
        excerpt = Excerpt(ROUTER, max_bytes=MAX_ROUTER_BYTES, max_kept=MAX_ROUTER_SAMPLES)
        try:
            pages = await self._page(address, ROUTER_ADMIN_PORT, excerpt, router.history.read)
        finally:
            before, before_at = router.pages, router.read_at
            router.pages, router.read_at = pages, time.monotonic()
        if pages is None:
            self._failed("router")
            return
        for name, page in pages.items():
            if before is None or before.get(name) is not page:
                key = Key(*name.split("/", 1)) if "/" in name else Key("", name)
                self._news.add(key)
                until = 0.0 if before is None else before_at
                self._quiet_until[key] = min(until, self._quiet_until.get(key, until))

    async def _page(
        self, address: str, port: int, excerpt: Excerpt, understand: Callable[[str], P | None]
    ) -> P | None:
        """Return what *understand* makes of a page; None where it cannot be read, whatever the reason."""
        try:
            text = await self._lines(address, port, excerpt)
            return None if text is None else understand(text)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            self._tasks.note(TASK, error, detail=address)
            return None
        except Exception as error:  # noqa: BLE001 - an error in parsing one page must not affect others
            self._tasks.note(TASK, error, detail=address)
            return None

    async def _lines(self, address: str, port: int, excerpt: Excerpt) -> str | None:
        """Return the lines of a page that matter; None where there is none. Raise what aiohttp and *excerpt* raise."""
        if self._session is None:
            raise RuntimeError("the collector is used outside of its context")
        host = f"[{address}]" if ":" in address else address
        # Redirects are not followed: the operator can reach addresses that the pod cannot.
        async with self._session.get(f"http://{host}:{port}/metrics", allow_redirects=False) as response:
            try:
                if response.status != 200 or "Content-Encoding" in response.headers:  # noqa: PLR2004 - OK
                    return None
                async for piece, _ in response.content.iter_chunks():
                    excerpt.add(piece)
                    await asyncio.sleep(0)  # what is there at once is still read piece by piece
                return excerpt.text()
            except BaseException:
                response.close()  # the rest is not read
                raise


def _gained(before: Mapping[str, float], now: Mapping[str, float], uid: str) -> float | None:
    """Return by how much the counter of *uid* grew; None where it was not read both times, or has started again."""
    old, new = before.get(uid), now.get(uid)
    return None if old is None or new is None or new < old else new - old


def _held(before: _Held | None, read_at: float, seconds: float, scale: int) -> _Held:
    """Return what a router held since the page *before*; a mean of 0 where that is not known."""
    if before is None or seconds < before.seconds:
        return _Held(read_at, seconds, 0.0)
    if read_at <= before.read_at:
        return before  # the same page
    return _Held(read_at, seconds, (seconds - before.seconds) / ((read_at - before.read_at) * scale))
