"""The load of each backend as a router tracks it: its own requests in flight there, a shadow cache, scraped metrics.

The router's own accounting comes first, because it is never stale. A scrape adds what other routers have sent: all that the
engine holds beyond this router's requests at that moment. From then on that is assumed to be completed as time passes, so that
an old scrape loses its effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from turnout.routing.prefix import PrefixIndex
from turnout.routing.session_affinity import seed_of
from turnout.routing.shadow import ShadowCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from turnout.routing.exact import ExactCaches
    from turnout.routing.tokens import Tokenized

DRAIN: Final = 0.5
"""Assumed prefill progress: seconds of queued prefill completed per second. Decodes share the engine's iterations."""
LEARNING_RATE: Final = 0.01
"""Weight of one request in the running means, which so reach over the last hundred or so."""
FIRST_RESIDENCE_SECONDS: Final = 10.0
FIRST_WORK_SECONDS: Final = 0.2
FIRST_UNCACHED_TOKENS: Final = 8192.0


@mypyc_attr(acyclic=True, free_list_len=1)
class Prompt:
    """The part of a request on which the choice of a worker depends.

    `blocks` are chain hashes of its full blocks: equal ones stand for equal text from the beginning on. `adapter` is
    the LoRA adapter that it requests. `tokenized` are its tokens as an engine reads them, if engines publish what they
    have cached.
    """

    __slots__ = ("adapter", "blocks", "expected_output_tokens", "tokenized", "tokens")

    def __init__(
        self,
        tokens: int,
        blocks: tuple[int, ...] = (),
        expected_output_tokens: int = 256,
        adapter: str | None = None,
        tokenized: Tokenized | None = None,
    ) -> None:
        self.tokens: Final = tokens
        self.blocks: Final = blocks
        self.expected_output_tokens: Final = expected_output_tokens
        self.adapter: Final = adapter
        self.tokenized: Final = tokenized


@dataclass(frozen=True, slots=True)
class Scrape:
    """What an engine's metrics say."""

    running: int
    waiting: int
    kv_usage: float
    """Share of its KV blocks that are held, 0 to 1."""
    pending_tokens: int = 0
    """Uncached prompt tokens of running requests whose first token is still to come. No engine exposes that in one
    figure; three of vLLM's counters together give it: prefix_cache_queries - prefix_cache_hits (when a prompt is
    admitted) - prompt_tokens by local compute (when its first token is there)."""


class BackendState:
    """One backend. `slot` is its number in the prefix index; all the rest is what this router counts."""

    __slots__ = (
        "adapter_room",
        "adapter_uses",
        "adapters",
        "began",
        "cache",
        "context_tokens",
        "id",
        "last_pick",
        "others_kv",
        "others_queue",
        "others_running",
        "queued_seconds",
        "queued_tokens",
        "running",
        "scraped_at",
        "seed",
        "slot",
        "waiting",
    )

    def __init__(self, slot: int, backend_id: str, cache: ShadowCache) -> None:
        self.slot = slot
        self.id = backend_id
        self.seed = seed_of(backend_id)
        self.cache = cache
        self.adapters: frozenset[str] = frozenset()
        """LoRA adapters that it has loaded."""
        self.adapter_room = 0
        """How many adapters it has room for at a time. 0: unknown."""
        self.adapter_uses: dict[str, int] = {}
        """This router's requests by adapter. An adapter in use is not unloaded."""
        self.waiting: dict[InFlightRequest, None] = {}  # without a first token, in the order sent
        self.queued_seconds = 0.0
        self.queued_tokens = 0
        """Uncached prompt tokens of `waiting`, and the seconds to compute them."""
        self.began = 0.0
        """When the first of `waiting` came to be the first."""
        self.running = 0
        self.context_tokens = 0
        self.last_pick = 0
        self.others_queue = 0.0
        """Seconds of prefill that others had waiting there at the last scrape."""
        self.others_running = 0
        """Their requests then."""
        self.others_kv = 0.0
        """KV blocks that they held or were about to."""
        self.scraped_at: float | None = None

    @property
    def in_flight(self) -> int:
        """This router's requests."""
        return len(self.waiting) + self.running

    def queue_of_others(self, now: float) -> float:
        """Seconds of prefill that others still have waiting there."""
        if not self.others_queue or self.scraped_at is None:
            return 0.0
        return max(0.0, self.others_queue - DRAIN * (now - self.scraped_at))

    def share_of_others(self, now: float, residence_seconds: float) -> float:
        """Share of others' requests that still run: a request runs *residence_seconds* on average."""
        if self.scraped_at is None:
            return 0.0
        return max(0.0, 1 - (now - self.scraped_at) / residence_seconds)


class InFlightRequest:
    """One request on one backend, from being sent to its end. Made by `LoadTracker.sent`."""

    __slots__ = (
        "adapter",
        "at_affinity_target",
        "block_tokens",
        "blocks",
        "expected_at",
        "matched",
        "private",
        "prompt_tokens",
        "running_since",
        "seconds",
        "state",
        "uncached_tokens",
    )

    def __init__(
        self,
        state: BackendState,
        prompt: Prompt,
        *,
        private: int,
        matched: int,
        uncached: int,
        seconds: float,
        block_tokens: int,
    ) -> None:
        self.state: BackendState | None = state
        self.adapter: Final = prompt.adapter
        self.block_tokens = block_tokens
        """Tokens that one of `blocks` stands for."""
        self.blocks = prompt.blocks
        self.prompt_tokens = prompt.tokens
        self.private = private
        self.matched = matched
        self.uncached_tokens = uncached
        self.seconds = seconds
        self.running_since: float | None = None
        self.expected_at = inf
        """When its first token is assumed to have come, if it cannot be observed."""
        self.at_affinity_target = False
        """Whether it was sent to its session's affinity target, where other routers may have sent requests that this router does not know of."""

    def text_tokens(self, block_tokens: int) -> int:
        """Return the prompt's length as if each of its blocks had *block_tokens* tokens: for routers that do not know its tokens."""
        if self.block_tokens == block_tokens:
            return self.prompt_tokens
        return max(1, self.prompt_tokens * block_tokens // self.block_tokens)


class LoadTracker:
    """All backends. Bounded by them: a shadow holds no more than its backend's capacity and the requests in flight."""

    def __init__(self, block_tokens: int) -> None:
        if block_tokens < 1:
            raise ValueError(f"a block has at least one token, not {block_tokens}")
        self.block_tokens = block_tokens
        self.index = PrefixIndex()
        self.exact: ExactCaches | None = None
        """What engines themselves say that they hold, where they do."""
        self.states: dict[str, BackendState] = {}
        self._free: list[int] = []
        self.slots = 0
        """Slots in use or free: one more than the highest number in the index."""
        self._picks = 0
        self.residence_seconds = FIRST_RESIDENCE_SECONDS
        """Mean time that an answer runs, from its first token to its end."""
        self.work_seconds = FIRST_WORK_SECONDS
        """Mean uncached prefill of a request."""
        self.uncached_tokens = FIRST_UNCACHED_TOKENS
        """Mean uncached prompt tokens of a request."""
        self.request_blocks = 0.0
        """Mean KV blocks of a request."""

    def set_backends(self, capacities: Iterable[tuple[str, int]]) -> None:
        """Track exactly these backends, given as (id, KV capacity in tokens). All others are forgotten."""
        wanted = dict(capacities)
        for id_ in [each for each in self.states if each not in wanted]:
            state = self.states.pop(id_)
            state.cache.drop()
            self._free.append(state.slot)
        for id_, tokens in wanted.items():
            blocks = max(1, tokens // self.block_tokens)
            known = self.states.get(id_)
            if known is not None:
                known.cache.resize(blocks)
                continue
            slot = self._free.pop() if self._free else self._next_slot()
            self.states[id_] = BackendState(slot, id_, ShadowCache(self.index, slot, blocks))

    def sent(  # noqa: PLR0917 - called for every request
        self,
        state: BackendState,
        prompt: Prompt,
        matched: int,
        seconds: float,
        now: float,
        cached: int = -1,
    ) -> InFlightRequest:
        """Note that *prompt* has been sent: *matched* of its blocks are thought to be there, the rest takes *seconds*.

        *cached*: how many of its tokens are there, where more is known than whole blocks; -1 where not.
        """
        private = self.blocks_of(prompt) - len(prompt.blocks)
        size = self.block_tokens if prompt.tokenized is None else prompt.tokenized.block_tokens
        uncached = max(1, prompt.tokens - (matched * size if cached < 0 else cached))
        request = InFlightRequest(
            state,
            prompt,
            private=private,
            matched=matched,
            uncached=uncached,
            seconds=seconds,
            block_tokens=size,
        )
        if not state.waiting:
            state.began = now
        state.waiting[request] = None
        state.queued_seconds += seconds
        state.queued_tokens += request.uncached_tokens
        self.uncached_tokens += LEARNING_RATE * (request.uncached_tokens - self.uncached_tokens)
        self._picks += 1
        state.last_pick = self._picks
        state.cache.admit(prompt.blocks, private)
        if prompt.adapter is not None:
            state.adapter_uses[prompt.adapter] = state.adapter_uses.get(prompt.adapter, 0) + 1
        blocks = len(prompt.blocks) + private
        self.request_blocks += LEARNING_RATE * (blocks - self.request_blocks)
        self.work_seconds += LEARNING_RATE * (seconds - self.work_seconds)
        return request

    def advance(self, states: Sequence[BackendState], now: float) -> None:
        """Note the first tokens that were expected by *now*. Prompts are computed in the order in which they were sent."""
        for state in states:
            while state.waiting:
                first = next(iter(state.waiting))
                if first.expected_at > now:
                    break
                self.first_token(first, now)

    def first_token(self, request: InFlightRequest, now: float) -> None:
        """Note that the prompt of *request* has been computed."""
        state = request.state
        if state is None or request not in state.waiting:
            return
        self._computed(state, request, now)
        request.running_since = now
        state.running += 1
        state.context_tokens += request.prompt_tokens

    def finished(
        self, request: InFlightRequest, now: float, cached_tokens: int | None = None, prompt_tokens: int = 0
    ) -> None:
        """Note an end, whatever its kind. *cached_tokens* as the usage says, None if it has none.

        *prompt_tokens*, if the usage has it, corrects the estimate of the prompt's length: blocks are parts
        of the prompt, whatever a token is.
        """
        state = request.state
        if state is None:
            return
        request.state = None
        if request in state.waiting:
            self._computed(state, request, now)
        elif request.running_since is not None:
            state.running -= 1
            state.context_tokens -= request.prompt_tokens
            self.residence_seconds += LEARNING_RATE * (now - request.running_since - self.residence_seconds)
        if cached_tokens is not None:
            cached = (
                cached_tokens * request.prompt_tokens // prompt_tokens if prompt_tokens else cached_tokens
            )
            found = min(cached // request.block_tokens, len(request.blocks))
            if found < request.matched or not request.at_affinity_target:
                state.cache.correct(request.matched, found)
        state.cache.release(request.blocks, request.private)
        if request.adapter is not None:
            uses = state.adapter_uses.pop(request.adapter) - 1
            if uses:
                state.adapter_uses[request.adapter] = uses

    def scraped(self, state: BackendState, scrape: Scrape, now: float) -> float:
        """Take note of a scrape of *state*. Return the uncached prompt tokens that others have waiting there."""
        waiting = scrape.waiting
        kv = scrape.kv_usage * state.cache.capacity + waiting * self.request_blocks - state.cache.held
        state.others_running = max(0, scrape.running + waiting - state.in_flight)
        state.others_kv = max(0.0, kv)
        state.scraped_at = now
        if not state.others_running:
            return 0.0
        return max(0.0, scrape.pending_tokens + waiting * self.uncached_tokens - state.queued_tokens)

    def matches(self, prompt: Prompt) -> list[int]:
        """Return, by slot, how many leading blocks of *prompt* each backend holds: as its engine reports, else as its shadow cache estimates."""
        return self.holdings(prompt)[0]

    def holdings(self, prompt: Prompt) -> tuple[list[int], list[int] | None]:
        """Return `matches`, and by slot how many leading tokens of *prompt* each backend holds.

        None instead of the latter if no engine's report can be compared with *prompt*: then only whole blocks are known.
        """
        matches = self.index.match(prompt.blocks, self.slots)
        tokenized = prompt.tokenized
        if tokenized is None or self.exact is None:
            return matches, None
        return matches, self.exact.cached_tokens(matches, prompt, tokenized, self.states)

    def blocks_of(self, prompt: Prompt) -> int:
        """Return the KV blocks that *prompt* and its expected answer take."""
        return max(
            len(prompt.blocks), -(-(prompt.tokens + prompt.expected_output_tokens) // self.block_tokens)
        )

    def _computed(self, state: BackendState, request: InFlightRequest, now: float) -> None:
        del state.waiting[request]
        state.began = now
        state.queued_tokens -= request.uncached_tokens
        state.queued_seconds = state.queued_seconds - request.seconds if state.waiting else 0.0

    def _next_slot(self) -> int:
        self.slots += 1
        return self.slots - 1
