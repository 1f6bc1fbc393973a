"""An inference engine in virtual time: continuous batching with chunked prefill over a paged, prefix-cached KV cache.

It follows vLLM's V1 scheduler. At the start of an iteration every running sequence is given its next tokens, decodes
before prefill chunks, within a token budget; where the KV cache cannot take a decode's next token, the sequence
admitted last loses its blocks and waits first in line (preemption by recompute). Then the queue is served first come,
first served, as long as budget, sequences and blocks last. One simplification: a prompt gets all its blocks when it
is admitted, not chunk by chunk.

Nothing here looks at a clock. The driver says what time it is, with times that never go back; what the engine did up
to then comes back as events. Iterations over an unchanging batch are advanced together (`turnout.simulation.steps`), so
the cost of a run of decode steps does not depend on their number.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final, Literal

from turnout.simulation.errors import DuplicateRequestError, QueueFullError, RequestTooLargeError
from turnout.simulation.kv import Holding, KvCache
from turnout.simulation.request import (
    Decoded,
    EngineRequest,
    EngineSettings,
    Event,
    Fetch,
    FinishReason,
    FirstToken,
    LeaseExpired,
    Preempted,
)
from turnout.simulation.sequence import Sequence, State
from turnout.simulation.stats import Counters, EngineStats
from turnout.simulation.steps import Steps

if TYPE_CHECKING:
    from turnout.sizing.latency import LatencyModel

_IDLE: Final = Steps(0.0, 1.0, 0.0, 0)


class Engine:
    """One engine. Drive it by `submit`, `abort`, `deliver`, `release` and `advance`, in the order of time.

    *cache* is an empty one of `settings.kv_blocks` blocks, for who wants to read along (`turnout.simulation.journal`).
    """

    def __init__(self, settings: EngineSettings, latency: LatencyModel, cache: KvCache | None = None) -> None:
        self.settings = settings
        self.counters = Counters()
        self._latency = latency
        self._kv = KvCache(settings.kv_blocks) if cache is None else cache
        self._now = 0.0
        self._events: list[Event] = []
        self._sequences: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._ready: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in the order of admission
        self._pinned: dict[str, Holding] = {}
        self._timers: list[tuple[float, int, Literal["lease", "arrival"], str, Holding]] = []
        self._timer_numbers = count()
        # The batch in flight. Its steps are credited to its sequences only when a caller needs to know.
        self._steps = _IDLE
        self._busy = False
        self._done = 0  # steps that are over
        self._settled = 0  # of these, credited
        self._decodes: list[Sequence] = []
        self._chunks: list[tuple[Sequence, int]] = []
        self._boundary = 0.0  # when the next batch can start
        self._changed = False  # something happened that the next batch must take into account

    # What a driver calls ------------------------------------------------------------------------------------------

    def submit(self, request: EngineRequest, now: float) -> None:
        """Put *request* into the queue. Raise an EngineError where it cannot be taken."""
        self._advance(now)
        if request.id in self._sequences or request.id in self._pinned:
            raise DuplicateRequestError(f"request {request.id} is already in the engine")
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise RequestTooLargeError("a request has at least one prompt token and one output token")
        tokens = request.prompt_tokens + request.output_tokens - 1
        if self._blocks(tokens) > self.settings.kv_blocks:
            capacity = self.settings.kv_blocks * self.settings.block_size
            raise RequestTooLargeError(f"{tokens} tokens do not fit into a KV cache of {capacity} tokens")
        bound = self.settings.max_num_queued
        if bound is not None and len(self._waiting) >= bound and not self._could_admit():
            self.counters.rejections += 1
            raise QueueFullError(f"{len(self._waiting)} requests wait and no more than {bound} may")
        sequence = Sequence(request, now)
        self._sequences[request.id] = sequence
        self._waiting.append(sequence)
        self._wake(now)

    def abort(self, request_id: str, now: float, reason: FinishReason = "abort") -> bool:
        """End the request at once and free its blocks. Returns False where it is not in the engine."""
        self._advance(now)
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        if sequence.state is State.RUNNING:
            self._settle()
            self._running.remove(sequence)
            self._decodes = [s for s in self._decodes if s is not sequence]
            self._chunks = [c for c in self._chunks if c[0] is not sequence]
        elif sequence.state is State.WAITING:
            self._waiting.remove(sequence)
        elif sequence.state is State.READY:
            self._ready.remove(sequence)
        self._end(sequence, now, reason)
        self._wake(now)
        return True

    def deliver(self, request_id: str, now: float) -> bool:
        """Say that the prefill worker sends the KV that a `Fetch` asked for; the transfer begins now."""
        self._advance(now)
        sequence = self._sequences.get(request_id)
        if sequence is None or sequence.state is not State.FETCHING:
            return False
        arrival = now + sequence.external * self.settings.transfer_seconds_per_token
        self._timer(arrival, "arrival", request_id, sequence.holding)
        return True

    def release(self, request_id: str, now: float) -> bool:
        """Free a pinned prompt, for its decode worker has it. Returns False where it is not pinned (any more)."""
        self._advance(now)
        holding = self._pinned.pop(request_id, None)
        if holding is None:
            return False
        self._kv.release(holding)
        self._wake(now)
        return True

    def reset_prefix_cache(self, now: float) -> bool:
        """Forget all cached blocks. Returns False, and does nothing, while requests hold blocks."""
        self._advance(now)
        return self._kv.clear()

    def advance(self, now: float) -> list[Event]:
        """Let time pass until *now* and return what happened, in order. Raise ValueError where time goes back."""
        self._advance(now)
        events, self._events = self._events, []
        return events

    def next_time(self) -> float | None:
        """When something happens next that changes the batch or ends a request. None: never, without a new request."""
        steps = self._done + 1 if self._changed else self._steps.count
        return self._next(steps)

    def next_step_time(self) -> float | None:
        """When the next token comes or something else happens. None: never, without a new request."""
        return self._next(self._done + 1)

    def generated(self, request_id: str) -> int:
        """Output tokens of a request in the engine so far. Raise KeyError for another."""
        sequence = self._sequences[request_id]
        # While steps are not yet credited the batch is decodes alone: whatever runs takes part in each of them.
        return sequence.generated + (self._uncredited if sequence.state is State.RUNNING else 0)

    def stats(self) -> EngineStats:
        """Return the engine as it is. Reading books nothing: when it is done must not change what is evicted."""
        steps = self._uncredited
        counters = self.counters.copy()
        counters.generation_tokens += steps * len(self._decodes)
        used = self._kv.used + (self._growth(self._decodes, steps) if steps else 0)
        deferred = sum(1 for s in self._sequences.values() if s.state in {State.FETCHING, State.READY})
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting) + deferred,
            waiting_deferred=deferred,
            pinned=len(self._pinned),
            kv_usage=used / self._kv.capacity,
            counters=counters,
        )

    def set_latency(self, latency: LatencyModel) -> None:
        """Use other latencies, from the next iteration on."""
        self._latency = latency
        self._changed = True

    def check(self) -> None:
        """Raise AssertionError where an invariant of the engine does not hold. For tests."""
        self._settle()
        self._kv.check()
        holdings = [s.holding for s in self._sequences.values()] + list(self._pinned.values())
        if sum(h.private for h in holdings) != self._kv.private:
            raise AssertionError("private blocks are lost or held twice")
        if {b for h in holdings for b in h.shared} != self._kv.referenced():
            raise AssertionError("a block is neither free nor referenced, or both")

    # Time ---------------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        if now < self._now:
            raise ValueError(f"time goes back from {self._now} to {now}")
        self._now = now
        while True:
            timer = self._timers[0][0] if self._timers else None
            if not self._busy and self._changed:
                self._plan(self._boundary)
            elif self._busy and self._steps.end(self._done + 1) <= (
                now if timer is None else min(now, timer)
            ):
                self._run(now if timer is None else min(now, timer))
            elif timer is not None and timer <= now:
                self._fire()
            else:
                return

    def _next(self, steps: int) -> float | None:
        times = [self._timers[0][0]] if self._timers else []
        if self._busy:
            times.append(self._steps.end(steps))
        elif self._changed:
            times.append(self._boundary)
        return max(self._now, min(times)) if times else None

    def _wake(self, now: float) -> None:
        self._changed = True
        if not self._busy:
            self._boundary = now

    def _timer(self, at: float, kind: Literal["lease", "arrival"], request_id: str, holding: Holding) -> None:
        heappush(self._timers, (at, next(self._timer_numbers), kind, request_id, holding))

    def _fire(self) -> None:
        at, _, kind, request_id, holding = heappop(self._timers)
        if kind == "lease":
            if self._pinned.get(request_id) is not holding:
                return  # fetched in time
            del self._pinned[request_id]
            self._kv.release(holding)
            self.counters.leases_expired += 1
            self._events.append(LeaseExpired(at, request_id))
        else:
            sequence = self._sequences.get(request_id)
            if sequence is None or sequence.holding is not holding or sequence.state is not State.FETCHING:
                return  # aborted meanwhile
            sequence.computed += sequence.external
            self._publish(sequence, sequence.computed)
            sequence.state = State.READY
            self._ready.append(sequence)
        self._wake(at)

    # Iterations ---------------------------------------------------------------------------------------------------

    def _run(self, until: float) -> None:
        """Complete the steps that are over by *until*: only the one in flight where the batch has to change."""
        before = self._done
        self._done = before + 1 if self._changed else self._steps.over_by(until, before + 1)
        steps, at = self._done - before, self._steps.end(self._done)
        self.counters.iterations += steps
        if self._decodes:
            seconds = (at - self._steps.end(before)) / steps
            self._events.append(Decoded(at, steps, len(self._decodes), seconds))
        if self._changed or self._done == self._steps.count:
            self._settle()
            for sequence in self._decodes:
                if sequence.generated >= sequence.request.output_tokens:
                    self._running.remove(sequence)
                    self._end(sequence, at, sequence.request.finish_reason)
            self._complete_chunks(at)
            self._busy = False
            self._decodes, self._chunks = [], []
            self._boundary = at
            self._changed = True

    def _complete_chunks(self, at: float) -> None:
        for sequence, tokens in self._chunks:
            sequence.computed += tokens
            self._publish(sequence, sequence.computed)
            if not sequence.decoding:
                continue
            sequence.generated += 1
            self.counters.generation_tokens += 1
            if sequence.first_token_at is None:
                sequence.first_token_at = at
                self._count_prompt(sequence)
                cached = sequence.cached + sequence.external
                self._events.append(FirstToken(at, sequence.request.id, cached, sequence.arrived_at))
            if sequence.generated >= sequence.request.output_tokens:
                self._running.remove(sequence)
                self._end(sequence, at, sequence.request.finish_reason)

    @property
    def _uncredited(self) -> int:
        """Steps of the batch that are over and not yet credited to its sequences."""
        return self._done - self._settled

    def _settle(self) -> None:
        """Credit the steps that are over to the sequences of the batch."""
        steps = self._uncredited
        if not steps:
            return
        self._settled = self._done
        self.counters.generation_tokens += steps * len(self._decodes)
        size, kv = self.settings.block_size, self._kv
        for sequence in self._decodes:
            sequence.generated += steps
            # The last token's KV is computed with the next one.
            tokens = sequence.request.prompt_tokens + sequence.generated - 1
            holding = sequence.holding
            missing = -(-tokens // size) - holding.blocks
            if missing > 0:
                kv.grow(holding, missing)
            if tokens // size > (tokens - steps) // size:  # a block has become full
                self._publish(sequence, tokens)

    def _plan(self, at: float) -> None:
        """Choose the next batch, to start at *at*."""
        self._changed = False
        decodes, needed, preempted = self._make_room(at)
        budget = self.settings.max_num_batched_tokens - len(decodes)
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self._running:
            if not sequence.decoding and budget > 0:
                tokens = min(sequence.target - sequence.computed, budget)
                chunks.append((sequence, tokens))
                budget -= tokens
        if not preempted:
            self._admit(at, budget, needed, chunks)
        self._decodes, self._chunks = decodes, chunks
        self._done = self._settled = 0
        self._busy = bool(decodes or chunks)
        if not self._busy:
            return
        context = sum(s.request.prompt_tokens + s.generated for s in decodes)
        first = self._latency.iteration_seconds(
            [(tokens, s.computed) for s, tokens in chunks], len(decodes), context
        )
        growth = self._latency.decode_per_context_token * len(decodes)
        self._steps = Steps(at, first, growth, 1 if chunks else self._unchanged_steps(decodes))

    def _make_room(self, at: float) -> tuple[list[Sequence], int, bool]:
        """Preempt until every decode can take its next token.

        Returns the decodes, how many blocks their next tokens need, and whether a sequence was preempted.
        """
        size, preempted = self.settings.block_size, False
        while True:
            decodes = [s for s in self._running if s.decoding]
            needed = sum(1 for s in decodes if not (s.request.prompt_tokens + s.generated - 1) % size)
            if needed <= self._kv.available:
                return decodes, needed, preempted
            preempted = True
            victim = self._running.pop()
            self._kv.release(victim.holding)
            victim.state = State.WAITING
            victim.computed = 0
            victim.target = victim.request.prompt_tokens + victim.generated
            self._waiting.appendleft(victim)
            self.counters.preemptions += 1
            self._events.append(Preempted(at, victim.request.id))

    def _admit(self, at: float, budget: int, reserve: int, chunks: list[tuple[Sequence, int]]) -> None:
        """Take requests into the batch: first those whose KV has arrived, then the queue in its order."""
        while budget > 0 and len(self._running) < self.settings.max_num_seqs:
            if self._ready:
                sequence = self._ready.popleft()
            elif self._waiting and self._take_blocks(self._waiting[0], reserve):
                sequence = self._waiting.popleft()
                fetch = sequence.wants_fetch
                if sequence.scheduled_at is None:
                    sequence.scheduled_at = at
                if fetch:
                    sequence.state = State.FETCHING
                    self._events.append(Fetch(at, sequence.request.id, sequence.external))
                    continue
            else:
                return
            sequence.state = State.RUNNING
            self._running.append(sequence)
            tokens = min(sequence.target - sequence.computed, budget)
            chunks.append((sequence, tokens))
            budget -= tokens

    def _take_blocks(self, sequence: Sequence, reserve: int) -> bool:
        """Give a waiting *sequence* the blocks of its prompt, cached ones first. Returns False where they lack."""
        request, size, kv = sequence.request, self.settings.block_size, self._kv
        hits = kv.lookup(request.block_hashes, (sequence.target - 1) // size)
        shared = request.block_hashes[:hits]
        if not kv.take(sequence.holding, shared, self._blocks(sequence.target) - hits, reserve):
            return False
        sequence.computed = hits * size
        if sequence.scheduled_at is None:
            sequence.cached = min(sequence.computed, request.prompt_tokens)
            self.counters.prefix_queries += request.prompt_tokens
            self.counters.prefix_hits += sequence.cached
            if request.remote_tokens:
                sequence.external = max(
                    0, min(request.remote_tokens, sequence.target - 1) - sequence.computed
                )
                self.counters.external_queries += request.prompt_tokens - sequence.cached
                self.counters.external_hits += sequence.external
        return True

    def _unchanged_steps(self, decodes: list[Sequence]) -> int:
        """How many steps the batch can take before a sequence ends or the KV cache is full; at least 1."""
        steps = min(s.request.output_tokens - s.generated for s in decodes)
        available = self._kv.available
        if len(decodes) * (steps // self.settings.block_size + 1) <= available:
            return steps
        low, high = 1, steps
        while low < high:
            middle = (low + high + 1) // 2
            if self._growth(decodes, middle) <= available:
                low = middle
            else:
                high = middle - 1
        return low

    def _growth(self, decodes: list[Sequence], steps: int) -> int:
        """Blocks that *steps* steps take."""
        size = self.settings.block_size
        return sum(
            -(-(s.request.prompt_tokens + s.generated - 1 + steps) // size) - s.holding.blocks
            for s in decodes
        )

    # The life of a sequence ---------------------------------------------------------------------------------------

    def _could_admit(self) -> bool:
        """Whether the queue is about to be served: a batch starts before anything else can happen."""
        return not self._busy and self._changed

    def _publish(self, sequence: Sequence, tokens: int) -> None:
        if sequence.request.block_hashes:
            self._kv.publish(
                sequence.holding, sequence.request.block_hashes, tokens // self.settings.block_size
            )

    def _end(self, sequence: Sequence, at: float, reason: FinishReason) -> None:
        del self._sequences[sequence.request.id]
        self.counters.finished[reason] += 1
        pinned_until = None
        if sequence.request.pin and reason in {"length", "stop"}:
            pinned_until = at + self.settings.kv_lease_seconds
            self._pinned[sequence.request.id] = sequence.holding
            self._timer(pinned_until, "lease", sequence.request.id, sequence.holding)
        else:
            self._kv.release(sequence.holding)
        self._events.append(sequence.finished(at, reason, pinned_until))

    def _count_prompt(self, sequence: Sequence) -> None:
        counters, tokens = self.counters, sequence.request.prompt_tokens
        counters.prompt_tokens += tokens
        counters.prompt_local_cache_hit += sequence.cached
        counters.prompt_external_transfer += sequence.external
        counters.prompt_local_compute += tokens - sequence.cached - sequence.external

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.settings.block_size)
