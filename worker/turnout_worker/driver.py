"""Drives the engine of virtual time by a real clock: the only place where the two meet.

It wakes when the engine has something next, but not more often than every 5 ms: tokens that came in between go out
together, as vLLM's do when its loop lags behind.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from turnout.engine import Decoded, Engine, Fetch, Finished, FirstToken, LeaseExpired, Preempted

if TYPE_CHECKING:
    from turnout.engine import EngineRequest, EngineStats, Event
    from turnout.sizing.latency import LatencyModel
    from turnout_worker.clock import ScaledClock
    from turnout_worker.kvevents import CacheEvents
    from turnout_worker.metrics import Metrics

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


class Driver:
    """One engine and those who follow its requests."""

    def __init__(
        self,
        engine: Engine,
        latency: LatencyModel,
        clock: ScaledClock,
        metrics: Metrics,
        *,
        events: CacheEvents | None = None,
    ) -> None:
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
        if self._timer is not None:
            self._timer.cancel()

    def _now(self) -> float:
        return self._clock.now() if self._hung_at is None else self._hung_at

    def _look_soon(self) -> None:
        """Look once the current callbacks are through: what arrives together is scheduled together."""
        if not self._soon:
            self._soon = True
            self.stop()
            self._timer = self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._soon = False
        if self._hung_at is not None:
            return
        happened = self._engine.advance(self._clock.now())
        if self._events is not None:
            self._events.publish()  # while it is known what the requests that end now have cached
        for event in happened:
            self._tell(event)
        for request_id, follower in list(self._streams.items()):
            try:
                tokens = self._engine.generated(request_id)
            except KeyError:
                continue  # ended by what another follower did just now: its end is told in the next look
            follower.progress(tokens)
        if self._crash_at is not None and self._engine.stats().counters.generation_tokens >= self._crash_at:
            self._crash_at = None
            self.on_crash.set_result(None)
        self._looked = self._loop.time()
        if not self._soon:  # a follower may have aborted its request meanwhile
            self._set_timer()

    def _set_timer(self) -> None:
        self.stop()
        every_step = self._streams or self._crash_at is not None
        at = self._engine.next_step_time() if every_step else self._engine.next_time()
        if at is not None:
            wall = max(self._clock.wall_at(at), self._looked + WAKE_SECONDS)
            self._timer = self._loop.call_at(wall, self._look)

    def _tell(self, event: Event) -> None:
        match event:
            case Decoded():
                self._metrics.inter_token_latency.observe(
                    event.seconds_per_step, event.steps * event.sequences
                )
            case FirstToken():
                self._metrics.first_token(event)
                follower = self._followers[event.id]
                if follower.wants_tokens:
                    self._streams[event.id] = follower
            case Finished():
                self._metrics.finished(event)
                self._streams.pop(event.id, None)
                if self._events is not None:
                    self._events.forget(event.id)
                self._followers.pop(event.id).finished(event)
            case Fetch():
                self._followers[event.id].fetch(event.tokens)
            case Preempted() | LeaseExpired():
                pass  # counted by the engine
