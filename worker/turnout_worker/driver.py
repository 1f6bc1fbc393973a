"""Drives the engine of virtual time by a real clock: the only place where the two meet.

It wakes when the engine has something next, but not more often than every 5 ms: tokens that came in between go out
together, as vLLM's do when its loop lags behind.

What one request's follower raises ends that request. What the engine raises leaves its state unknown: it is not driven
any further, and `run` raises EngineLoopError.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from turnout.simulation import Decoded, Engine, Fetch, Finished, FirstToken, LeaseExpired, Preempted
from turnout_worker.errors import EngineLoopError

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.simulation import EngineRequest, EngineStats, Event
    from turnout.sizing.latency import LatencyModel
    from turnout_worker.clock import ScaledClock
    from turnout_worker.kvevents import CacheEvents
    from turnout_worker.metrics import Metrics

T = TypeVar("T")
WAKE_SECONDS: Final = 0.005
"""Shortest time between two looks at the engine, real."""


class Follower(Protocol):
    """Who wants to hear of a request."""

    wants_tokens: bool
    """Whether `progress` shall be called before the end."""

    def fetch(self, tokens: int) -> None:
        """Fetch the KV from the prefill worker now: there is room for it."""

    def progress(self, output_tokens: int) -> None:
        """So many tokens are there. Called again only when something may have changed."""

    def finished(self, event: Finished) -> None:
        """End: the request is over, by itself or by abort."""

    def break_off(self) -> None:
        """End: nothing more is known of the request."""


class Driver:
    """One engine and the followers of its requests."""

    def __init__(
        self,
        engine: Engine,
        latency: LatencyModel,
        clock: ScaledClock,
        metrics: Metrics,
        *,
        note: Callable[[str, BaseException], None],
        events: CacheEvents | None = None,
    ) -> None:
        """*note* is given what is survived, under the name of a task (`metrics.TASKS`)."""
        self._note = note
        self._engine = engine
        self._latency = latency
        self._clock = clock
        self._metrics = metrics
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._followers: dict[str, Follower] = {}
        self._streams: dict[str, Follower] = {}  # those that have a first token and want the rest as it comes
        self._timer: asyncio.Handle | None = None
        self._soon = False
        self._looked = 0.0
        self._hung_at: float | None = None
        self._crash_at: int | None = None
        self.on_crash: asyncio.Future[None] = self._loop.create_future()
        """Done when an ordered crash is due."""
        self._failed: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Wait until the engine cannot go on, and raise EngineLoopError."""
        await asyncio.shield(self._failed)

    @property
    def failed(self) -> bool:
        """Whether the engine cannot go on."""
        return self._failed.done()

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return not self._followers

    def submit(self, request: EngineRequest, follower: Follower) -> None:
        """Hand *request* to the engine. Raises its EngineError where it cannot be taken."""
        self._engine.submit(request, self._now())
        self._followers[request.id] = follower
        self._look_soon()

    def abort(self, request_id: str, *, failed: bool = False) -> None:
        """End a request at once; its follower hears `finished`."""
        self._engine.abort(request_id, self._now(), "error" if failed else "abort")
        self._look_soon()

    def deliver(self, request_id: str) -> None:
        """Say that the KV that `fetch` asked for is on its way."""
        self._engine.deliver(request_id, self._now())
        self._look_soon()

    def release(self, request_id: str) -> bool:
        """Free a pinned prompt. Returns False where it is not pinned."""
        held = self._engine.release(request_id, self._now())
        self._look_soon()
        return held

    def reset_prefix_cache(self) -> bool:
        """Forget all cached blocks. Returns False, and does nothing, while requests hold blocks."""
        reset = self._engine.reset_prefix_cache(self._now())
        self._look_soon()
        return reset

    def stats(self) -> EngineStats:
        """Return the engine as it is now."""
        if self._hung_at is None:
            self._look()
        return self._engine.stats()

    def slow(self, factor: float) -> None:
        """Make every iteration take *factor* times as long."""
        self._engine.set_latency(self._latency.slower(factor))

    def hang(self, *, on: bool) -> None:
        """Stand still, or go on."""
        if on and self._hung_at is None:
            self._look()
            self._hung_at = self._clock.now()
        elif not on:
            self._hung_at = None
            self._look_soon()

    def crash_after(self, tokens: int | None) -> None:
        """Order a crash once *tokens* more tokens are generated; None: none."""
        self._crash_at = None if tokens is None else self._engine.stats().counters.generation_tokens + tokens
        self._look_soon()

    def stop(self) -> None:
        """Stop looking."""
        self._cancel_timer()
        if not self._failed.done():
            self._failed.cancel()
        elif not self._failed.cancelled():
            self._failed.exception()  # seen, also where `run` was not waited for

    def _now(self) -> float:
        return self._clock.now() if self._hung_at is None else self._hung_at

    def _look_soon(self) -> None:
        """Look once the current callbacks are through: what arrives together is scheduled together."""
        if not self._soon:
            self._soon = True
            self._cancel_timer()
            self._timer = self._loop.call_soon(self._look)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._soon = False
        if self._hung_at is not None or self._failed.done():
            return
        try:
            happened = self._engine.advance(self._clock.now())
            self._publish()  # while it is known what the requests that end now have cached
            for event in happened:
                self._dispatch(event)
            for request_id, follower in list(self._streams.items()):
                self._report_progress(request_id, follower)
            if (
                self._crash_at is not None
                and self._engine.stats().counters.generation_tokens >= self._crash_at
            ):
                self._crash_at = None
                self.on_crash.set_result(None)
            self._looked = self._loop.time()
            if not self._soon:  # a follower may have aborted its request meanwhile
                self._set_timer()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a callback is never cancelled itself
            failure = EngineLoopError(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            self._failed.set_exception(failure)

    def _publish(self) -> None:
        if self._events is not None:
            try:
                self._events.publish()
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as above
                self._note("kv_events", error)

    def _set_timer(self) -> None:
        self._cancel_timer()
        every_step = self._streams or self._crash_at is not None
        at = self._engine.next_step_time() if every_step else self._engine.next_time()
        if at is not None:
            wall = max(self._clock.wall_at(at), self._looked + WAKE_SECONDS)
            self._timer = self._loop.call_at(wall, self._look)

    def _report_progress(self, request_id: str, follower: Follower) -> None:
        try:
            tokens = self._engine.generated(request_id)
        except KeyError:
            return  # ended by what another follower did just now: the next look reports its end
        try:
            follower.progress(tokens)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as above
            self._drop(request_id, error)

    def _drop(self, request_id: str, error: BaseException) -> None:
        """End a request whose follower has raised *error*."""
        self._note("request", error)
        self._streams.pop(request_id, None)
        follower = self._followers.pop(request_id, None)
        self._engine.abort(request_id, self._now(), "error")
        self._look_soon()
        if follower is not None:
            try:
                follower.break_off()
            except (Exception, asyncio.CancelledError) as worse:  # noqa: BLE001 - as above
                self._note("request", worse)

    def _dispatch(self, event: Event) -> None:
        match event:
            case Decoded():
                self._metrics.inter_token_latency.observe(
                    event.seconds_per_step, event.steps * event.sequences
                )
            case FirstToken():
                self._metrics.first_token(event)
                follower = self._followers.get(event.id)
                if follower is not None and follower.wants_tokens:
                    self._streams[event.id] = follower
            case Finished():
                self._metrics.finished(event)
                self._streams.pop(event.id, None)
                if self._events is not None:
                    self._events.forget(event.id)
                follower = self._followers.pop(event.id, None)
                if follower is not None:  # None: it was dropped
                    self._notify(event.id, follower, follower.finished, event)
            case Fetch():
                follower = self._followers.get(event.id)
                if follower is not None:
                    self._notify(event.id, follower, follower.fetch, event.tokens)
            case Preempted() | LeaseExpired():
                pass  # counted by the engine

    def _notify(self, request_id: str, follower: Follower, notify: Callable[[T], None], what: T) -> None:
        try:
            notify(what)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as above
            self._followers[request_id] = follower
            self._drop(request_id, error)
