"""The scraper: reads workers and routers every few seconds, a bounded number at a time, each with a deadline.

A pod that does not answer is a fact (its load is unknown), never an error.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import aiohttp

from turnout.api.names import ROUTER_ADMIN_PORT, WORKER_PORT
from turnout_operator.load.facts import Traffic
from turnout_operator.load.pages import RouterPage, router_page, worker_page
from turnout_operator.load.window import Window
from turnout_operator.plan.observed import WorkerLoad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from turnout.api import Role
    from turnout_operator.load.pages import WorkerPage
    from turnout_operator.observe.store import Key

MAX_PAGE_BYTES: Final = 4 << 20
"""A page longer than this is nobody's metrics."""
WINDOW_SECONDS: Final = 60.0
"""Length of the window over which traffic is counted, in the deployment's seconds."""
MIN_WINDOW_SECONDS: Final = 10.0
"""The same in real seconds, for deployments whose time runs fast."""
_HALVES: Final = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Target:
    """A pod to read."""

    uid: str
    address: str
    role: Role | None = None
    """Role of a worker; None for a router."""


@dataclass(slots=True)
class _Deployment:
    """What has been read about one deployment."""

    window: Window
    loads: dict[str, WorkerLoad] = field(default_factory=dict)
    """By the pod's uid."""
    spent: dict[str, float] = field(default_factory=dict)
    """By the pod's uid: prefill seconds so far."""
    held_for: dict[str, float] = field(default_factory=dict)
    """By the router's uid: seconds so far for which it held requests for prefill."""
    read_at: float | None = None
    """Monotonic time of the last scrape."""
    occupancy: dict[Role, float | None] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    """Requests that routers held at the last scrape, by the half that could not begin with them."""


class Collector:
    """Reads pages and keeps what they say, by deployment."""

    def __init__(
        self,
        *,
        failed: Callable[[str], None] = lambda _: None,
        concurrency: int = 32,
        timeout_seconds: float = 2.0,
    ) -> None:
        self._failed = failed
        """Called with ``worker`` or ``router`` for every page that could not be read."""
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._deployments: dict[Key, _Deployment] = {}
        self._routers_answered = False

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=False, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def read(
        self, workers: Mapping[Key, Iterable[Target]], scales: Mapping[Key, int], routers: Iterable[Target]
    ) -> None:
        """Read all *workers* of some deployments and all *routers*, and bring those deployments up to date."""
        flat = [(key, target) for key, targets in workers.items() for target in targets]
        sources = list(routers)
        pages = await asyncio.gather(
            *(self._page(target.address, WORKER_PORT, "worker") for _, target in flat),
            *(self._page(target.address, ROUTER_ADMIN_PORT, "router") for target in sources),
        )
        read: dict[Key, list[tuple[Target, WorkerPage]]] = {key: [] for key in workers}
        for (key, target), text in zip(flat, pages, strict=False):
            page = None if text is None else worker_page(text)
            if page is not None:
                read[key].append((target, page))
        counted = {
            target.uid: router_page(text)
            for target, text in zip(sources, pages[len(flat) :], strict=True)
            if text is not None
        }
        self._routers_answered = bool(counted)
        present = frozenset(target.uid for target in sources)
        for key, found in read.items():
            state = self._state(key, scales.get(key, 1))
            told = {uid: page.get(str(key), RouterPage()) for uid, page in counted.items()}
            self._take(state, found, told, scales.get(key, 1))
            state.window.add(time.monotonic(), {uid: page.counters for uid, page in told.items()})
            state.window.forget(present)

    def load(self, key: Key, uid: str) -> WorkerLoad | None:
        """Return what a worker said at the last scrape; None where it did not answer."""
        state = self._deployments.get(key)
        return None if state is None else state.loads.get(uid)

    def traffic(self, key: Key) -> Traffic:
        """Return what the routers counted for a deployment."""
        state = self._deployments.get(key)
        if state is None:
            return Traffic({}, 0.0, answered=False)
        span = state.window.span(time.monotonic())
        return Traffic(state.window.sums(), span, self._routers_answered, state.held)

    def occupancy(self, key: Key) -> Mapping[Role, float | None]:
        """Return the mean number of requests in prefill, or held for it, since the scrape before, by role."""
        state = self._deployments.get(key)
        return {} if state is None else state.occupancy

    def forget(self, present: frozenset[Key]) -> None:
        """Drop all deployments that are not *present* any more."""
        for key in [key for key in self._deployments if key not in present]:
            del self._deployments[key]

    def _state(self, key: Key, scale: int) -> _Deployment:
        length = max(MIN_WINDOW_SECONDS, WINDOW_SECONDS / scale)
        state = self._deployments.get(key)
        if state is None or state.window.seconds != length:
            state = self._deployments[key] = _Deployment(Window(length))
        return state

    @staticmethod
    def _take(
        state: _Deployment,
        workers: list[tuple[Target, WorkerPage]],
        routers: Mapping[str, RouterPage],
        scale: int,
    ) -> None:
        now, monotonic = time.time(), time.monotonic()
        elapsed = 0.0 if state.read_at is None else (monotonic - state.read_at) * scale
        spent = {
            target.uid: page.prefill_seconds for target, page in workers if page.prefill_seconds is not None
        }
        held_for = {uid: page.held_seconds.get("prefill", 0.0) for uid, page in routers.items()}
        occupancy: dict[Role, float | None] = {}
        if elapsed > 0:
            for target, _ in workers:
                gained = _gained(state.spent, spent, target.uid)
                if target.role is not None and gained is not None:
                    occupancy[target.role] = (occupancy.get(target.role) or 0.0) + gained / elapsed
            if (prefilling := occupancy.get("prefill")) is not None:
                held = sum(_gained(state.held_for, held_for, uid) or 0.0 for uid in held_for)
                occupancy["prefill"] = prefilling + held / elapsed
        state.loads = {
            target.uid: WorkerLoad(now, page.running, page.waiting, page.kv_utilization, page.deferred)
            for target, page in workers
        }
        state.held = {half: sum(page.held.get(half, 0) for page in routers.values()) for half in _HALVES}
        state.spent, state.held_for, state.read_at, state.occupancy = spent, held_for, monotonic, occupancy

    async def _page(self, address: str, port: int, what: str) -> str | None:
        if self._session is None:
            raise RuntimeError("the collector is used outside of its context")
        host = f"[{address}]" if ":" in address else address
        async with self._slots:
            try:
                async with self._session.get(f"http://{host}:{port}/metrics") as response:
                    if response.status != 200:  # noqa: PLR2004 - OK
                        self._failed(what)
                        return None
                    body = await response.content.read(MAX_PAGE_BYTES)
                    while not response.content.at_eof() and len(body) < MAX_PAGE_BYTES:
                        body += await response.content.read(MAX_PAGE_BYTES - len(body))
                    return body.decode(errors="replace")
            except (aiohttp.ClientError, TimeoutError, OSError):
                self._failed(what)
                return None


def _gained(before: Mapping[str, float], now: Mapping[str, float], uid: str) -> float | None:
    """Return by how much the counter of *uid* grew; None where it was not read both times, or has started again."""
    old, new = before.get(uid), now.get(uid)
    return None if old is None or new is None or new < old else new - old
