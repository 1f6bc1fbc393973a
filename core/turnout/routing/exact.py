"""The cached tokens of a prompt as engines report them, in place of the shadow caches' estimates.

For an engine whose events are all known, they decide; in addition only this router's requests under way there count,
because an engine publishes a block after it has been computed. For an engine with missed events, and
for one without events, the shadow cache's estimate (`turnout.routing.shadow`) counts wherever it is larger. An engine's report
is in tokens, up to full blocks of its own size; the estimate is in blocks of text.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from turnout.routing.events import CLEARED_AT_ONCE, EventStream, ExactCache
from turnout.routing.prefix import PrefixIndex

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable, Iterable, Mapping

    from turnout.routing.events import BlockHash
    from turnout.routing.load_tracker import BackendState, Prompt
    from turnout.routing.tokens import Tokenized

MIN_BLOCK_TOKENS: Final = 16
"""vLLM's smallest usual block. An engine whose KV cache holds N tokens has at most N / 16 blocks."""
SLOWER_TIERS: Final = 2
"""Blocks kept of an engine, relative to its KV cache: as many again may lie in a slower tier."""
MAX_BLOCK_SIZES: Final = 4
"""Sizes of blocks that a prompt is compared in; those of one deployment's engines hardly differ."""


class _Followed:
    """One engine: the revision of its model, its events."""

    __slots__ = ("revision", "stream")

    def __init__(self, revision: str, stream: EventStream) -> None:
        self.revision = revision
        self.stream = stream


class ExactCaches:
    """The engines of one deployment whose events are followed. Bounded by their KV caches."""

    __slots__ = ("_engines", "_free", "_numbers", "_retired", "_retired_some", "index")

    def __init__(self, retired_some: Callable[[], None] | None = None) -> None:
        """*retired_some* is called where `sweep` is to be called, until it returns False. None: all is done at once."""
        self._retired: deque[tuple[int, OrderedDict[BlockHash, tuple[int, int]]]] = deque()
        self._retired_some = retired_some
        self.index = PrefixIndex()
        self._engines: dict[str, _Followed] = {}
        self._free: list[int] = []
        self._numbers = 0

    def set_engines(self, engines: Iterable[tuple[str, str, int]]) -> None:
        """Follow exactly these, given as (id, revision, KV capacity in tokens). Those that stay keep their blocks."""
        wanted = {id_: (revision, tokens) for id_, revision, tokens in engines}
        for id_ in [each for each in self._engines if each not in wanted]:
            gone = self._engines.pop(id_)
            gone.stream.disconnected()
            self._free.append(gone.stream.cache.number)
        for id_, (revision, tokens) in wanted.items():
            known = self._engines.get(id_)
            if known is not None:
                known.revision = revision
                continue
            bound = max(1, SLOWER_TIERS * tokens // MIN_BLOCK_TOKENS)
            retire = None if self._retired_some is None else self._retire
            stream = EventStream(ExactCache(self.index, self._next_number(), bound, retire))
            self._engines[id_] = _Followed(revision, stream)

    def sweep(self) -> bool:
        """Take some of the blocks that engines have cleared out of the index. Return whether there are more."""
        left = CLEARED_AT_ONCE
        while self._retired and left:
            number, blocks = self._retired[0]
            while blocks and left:
                left -= 1
                self.index.remove(blocks.popitem()[1][0], number)
            if not blocks:
                self._retired.popleft()
                self._free.append(number)
        return bool(self._retired)

    def _retire(self, number: int, blocks: OrderedDict[BlockHash, tuple[int, int]]) -> int:
        self._retired.append((number, blocks))
        if self._retired_some is not None:
            self._retired_some()
        return self._next_number()

    def _next_number(self) -> int:
        if self._free:
            return self._free.pop()
        self._numbers += 1
        return self._numbers - 1

    def stream(self, id_: str) -> EventStream:
        """Return the events of one engine. Raise KeyError for one that is not known."""
        return self._engines[id_].stream

    def block_sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the sizes of blocks, by revision, in which there is something to compare a prompt with."""
        sizes: dict[str, tuple[int, ...]] = {}
        for engine in self._engines.values():
            size = engine.stream.cache.block_size
            known = sizes.get(engine.revision, ())
            if size and len(engine.stream.cache) and size not in known and len(known) < MAX_BLOCK_SIZES:
                sizes[engine.revision] = (*known, size)
        return sizes

    def cached_tokens(
        self, matches: list[int], prompt: Prompt, tokenized: Tokenized, states: Mapping[str, BackendState]
    ) -> list[int]:
        """Return, by slot, how many leading tokens of *prompt* each backend holds: as its engine reports, else as estimated.

        *matches* holds by slot how many of the prompt's blocks of text are estimated to be cached. The engines'
        reports correct it, rounded to whole blocks, the unit of the shadow caches.
        """
        size, most, tokens = tokenized.block_tokens, len(prompt.blocks), prompt.tokens
        cached = [min(depth * size, tokens) for depth in matches]
        depths = {
            each: self.index.match(numbers, self._numbers) for each, numbers in tokenized.chains.items()
        }
        for id_, engine in self._engines.items():
            state, stream = states.get(id_), engine.stream
            if state is None or not stream.following or engine.revision != tokenized.revision:
                continue
            slot, own_size = state.slot, stream.cache.block_size
            found = min(depths[own_size][stream.cache.number] * own_size, tokens) if own_size in depths else 0
            estimated = matches[slot]
            if stream.complete and found < cached[slot]:
                # Requests under way there count in addition: an engine publishes a block after it has been computed.
                estimated = state.cache.leading_held(prompt.blocks, estimated)
                cached[slot] = min(estimated * size, tokens)
            cached[slot] = max(found, cached[slot])
            matches[slot] = min(most, max(estimated, (found + size // 2) // size))
        return cached
