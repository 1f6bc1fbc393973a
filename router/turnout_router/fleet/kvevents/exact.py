"""Exact mode as a whole: whose events are followed, and a prompt's tokens where there is something to compare them with."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import zmq

from turnout.routing.exact import ExactCaches
from turnout.routing.load_tracker import Prompt
from turnout_router.fleet.kvevents.counts import Counts, Worker, state_of
from turnout_router.fleet.kvevents.replay import Turns
from turnout_router.fleet.kvevents.subscription import Subscription
from turnout_router.fleet.kvevents.tokens import Tokenizer
from turnout_router.tasks import TOKENIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import CollectorRegistry

    from turnout.routing import Backend, DeploymentRoute, Fleet
    from turnout.routing.load_tracker import LoadTracker
    from turnout_router.api.openai import Completion
    from turnout_router.upstream.pools import ConnectionPools

MAX_SOCKETS: Final = 60_000
"""Three for a worker; ZeroMQ's own default is 1023."""


class ExactMode:
    """Follows the workers that publish KV events, and enters their events into their deployments' trackers."""

    def __init__(
        self,
        pools: ConnectionPools,
        clock: Callable[[], float],
        registry: CollectorRegistry,
        room_of: Callable[[Backend], int],
    ) -> None:
        """*room_of* returns the tokens that a worker's KV cache holds."""
        self._room_of = room_of
        self._note = pools.note
        self._counts = Counts()
        registry.register(self._counts)
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        self._turns = Turns(asyncio.get_running_loop())
        self._tokenizer = Tokenizer(pools, clock, self._counts.tokenized)
        self._caches: dict[str, ExactCaches] = {}
        self._sweeping: asyncio.Handle | None = None
        self._engines: dict[str, dict[str, list[Backend]]] = {}  # by deployment and revision
        self._followed: dict[str, tuple[Backend, Subscription]] = {}

    def update(self, fleet: Fleet, trackers: Mapping[str, LoadTracker]) -> None:
        """Follow exactly the workers of *fleet* that publish events and are chosen by *trackers*."""
        publishing = {
            key: [b for b in fleet.backends.get(key, ()) if b.kv_events is not None] for key in trackers
        }
        wanted = {b.id: b for group in publishing.values() for b in group}
        for id_, (known, subscription) in tuple(self._followed.items()):
            now = wanted.get(id_)
            if now is None or _where(now) != _where(known) or now.deployment != known.deployment:
                subscription.stop()
                self._counts.left(id_)
                del self._followed[id_]
        self._caches = {
            key: self._caches.get(key) or ExactCaches(self._sweep_soon)
            for key, group in publishing.items()
            if group
        }
        self._engines = {}
        for key, tracker in trackers.items():
            tracker.exact = caches = self._caches.get(key)
            if caches is None:
                continue
            caches.set_engines((b.id, b.revision, self._room_of(b)) for b in publishing[key])
            revisions: dict[str, list[Backend]] = {}
            if len(fleet.backends.get(key, ())) > 1:
                self._engines[key] = revisions
            for backend in publishing[key]:
                revisions.setdefault(backend.revision, []).append(backend)
                if backend.id not in self._followed:
                    self._followed[backend.id] = backend, self._follow(backend, caches)
        self._counts.retain(frozenset(fleet.deployments))

    def _sweep_soon(self) -> None:
        if self._sweeping is None:
            self._sweeping = self._turns.loop.call_soon(self._sweep)

    def _sweep(self) -> None:
        """Go on with what engines have cleared: a large cache takes longer than others should wait."""
        self._sweeping = None
        if any(caches.sweep() for caches in self._caches.values()):
            self._sweep_soon()

    def stop(self) -> None:
        """Stop following all workers."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for _, subscription in self._followed.values():
            subscription.stop()
        self._followed = {}
        self._tokenizer.stop()
        self._context.destroy(linger=0)

    def compares(self, deployment: str) -> bool:
        """Return whether prompts for *deployment* are worth reading: it has a choice, and workers that publish events."""
        return deployment in self._engines

    async def read(self, route: DeploymentRoute, request: Completion, prompt: Prompt) -> Prompt:
        """Return *prompt* with its tokens, if workers of *route* hold anything that they could be compared with.

        If they cannot be found out, the estimate decides: no request fails.
        """
        try:
            return await self._read(route, request, prompt)
        except Exception as error:  # noqa: BLE001 - as said above
            self._note(TOKENIZE, error)
            return prompt

    async def _read(self, route: DeploymentRoute, request: Completion, prompt: Prompt) -> Prompt:
        engines = self._engines.get(route.key)
        if engines is None:
            return prompt
        sizes = self._caches[route.key].block_sizes()
        if not sizes:
            return prompt
        revision = max(sizes, key=lambda each: (len(engines.get(each, ())), each))
        asked = engines.get(revision)
        if not asked:
            return prompt
        tokenized = await self._tokenizer.read(request, prompt, asked, sizes[revision])
        if tokenized is None:
            return prompt
        return Prompt(
            tokenized.tokens, prompt.blocks, prompt.expected_output_tokens, prompt.adapter, tokenized
        )

    def describe(self, backend: Backend) -> dict[str, Any] | None:
        """Return what is known of a worker's cache, for people; None where it publishes nothing."""
        worker = self._counts.workers.get(backend.id)
        if worker is None:
            return None
        stream = worker.stream
        return {
            "state": state_of(stream),
            "blocks": len(stream.cache),
            "blockTokens": stream.cache.block_size,
            "nextBatch": stream.next,
            "counts": worker.totals(),
        }

    def _follow(self, backend: Backend, caches: ExactCaches) -> Subscription:
        worker = self._counts.workers[backend.id] = Worker(backend.deployment, caches.stream(backend.id))

        def seen(at: float) -> None:
            worker.batches += 1
            worker.lag = max(0.0, time.time() - at) if at else 0.0

        subscription = Subscription(
            self._context, self._turns, _where(backend), worker.stream, seen, note=self._note
        )
        subscription.start()
        return subscription


def _where(backend: Backend) -> tuple[str, int, int]:
    ports = backend.kv_events
    return (backend.host, 0, 0) if ports is None else (backend.host, ports.events, ports.replay)
