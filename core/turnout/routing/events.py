"""The prefix cache of an engine by its KV events: its blocks, and whether any event was missed.

An engine numbers its batches of events from 0. `EventStream` checks the numbers: a gap is filled by a replay, a number
that went back means that the engine has started anew. Whatever was lost or repeated on the way, after a replay
`ExactCache` holds what the engine holds. If a replay cannot supply all missed events, the remaining blocks are correct
but not `complete`: blocks that were cached before are unknown until the engine names them again, clears its
cache, or starts anew.

Pure: the caller owns sockets, deadlines and retries.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turnout.routing.tokens import ROOT, link

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing.prefix import PrefixIndex

BlockHash = int | bytes
"""A block as the engine calls it."""

MAX_PENDING: Final = 1_000
"""Batches kept that arrive during a replay, some ten seconds' worth; the rest is replayed once more."""
MAX_PENDING_WORK: Final = 1 << 20
"""The most work in them, see `work_of`: a million tokens, which take some 40 MB."""
WORK_AT_ONCE: Final = 1 << 15
"""Work done in one call, beyond which the rest waits for `EventStream.work`: some 5 ms."""
CLEARED_AT_ONCE: Final = 4_096
"""Blocks that are taken out of the index at once: 1 ms."""
_WORK_OF_BLOCK: Final = 16
_WORK_OF_EVENT: Final = 16
_WORK_OF_CLEARING: Final = CLEARED_AT_ONCE
MAX_MEDIA: Final = 8
"""Kinds of memory that are distinguished; vLLM has three (GPU, CPU, STORAGE). What lies in further ones is left out."""
MAX_FRUITLESS: Final = 2
"""Replays in a row that brought nothing new, after which what is missing counts as lost."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks are cached: consecutive ones of a prompt, behind the block *parent*.

    *extra* is what else parts caches, one for each block (see `turnout.routing.tokens`), or () for none. *group*
    is the kind of layers that it is about, in models that have several.
    """

    blocks: tuple[BlockHash, ...]
    parent: BlockHash | None
    tokens: tuple[int, ...]
    block_size: int
    medium: str = "GPU"
    extra: tuple[str, ...] = ()
    group: int = 0


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks are not cached in this medium any more."""

    blocks: tuple[BlockHash, ...]
    medium: str = "GPU"
    group: int = 0


@dataclass(frozen=True, slots=True)
class Cleared:
    """No block is cached any more."""


KvEvent = Stored | Removed | Cleared


def work_of(event: KvEvent) -> int:
    """Return about how much work it is to take note of *event*, in tokens; a block counts as sixteen."""
    if isinstance(event, Cleared):
        return _WORK_OF_CLEARING
    work = _WORK_OF_EVENT + _WORK_OF_BLOCK * len(event.blocks)
    return work + len(event.tokens) if isinstance(event, Stored) else work


class ExactCache:
    """The blocks that one engine says it has cached. *number* is the engine's in *index*, *bound* the most blocks kept.

    A block counts as cached wherever it lies, on the accelerator or in a slower tier. Of a model with several groups of
    layers the group that was named first decides. An engine that speaks of more blocks than *bound* has the oldest ones
    forgotten here: it must not fill the router's memory.
    """

    __slots__ = (
        "_blocks",
        "_bound",
        "_group",
        "_index",
        "_media",
        "_retire",
        "block_size",
        "dropped",
        "number",
        "unplaced",
    )

    def __init__(
        self,
        index: PrefixIndex,
        number: int,
        bound: int,
        retire: Callable[[int, OrderedDict[BlockHash, tuple[int, int]]], int] | None = None,
    ) -> None:
        """*retire* takes a number with many blocks, which it takes out of *index* in its own time, and returns a new one."""
        if bound < 1:
            raise ValueError(f"an engine has at least one block, not {bound}")
        self._index = index
        self.number = number
        self._retire = retire
        self._bound = bound
        # The engine's hash -> (number of its chain, media that hold it as a bit set), the first one stored first.
        self._blocks: OrderedDict[BlockHash, tuple[int, int]] = OrderedDict()
        self._media: dict[str, int] = {}
        self._group: int | None = None
        self.block_size = 0
        """Tokens of its blocks; 0 as long as it has named none."""
        self.dropped = 0
        """Blocks forgotten because there were too many."""
        self.unplaced = 0
        """Blocks left out because the blocks before them are unknown."""

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._blocks)

    def apply(self, event: KvEvent) -> None:
        """Take note of *event*."""
        if isinstance(event, Stored):
            self._store(event)
        elif isinstance(event, Removed):
            self._remove(event)
        else:
            self.clear()

    def clear(self) -> None:
        """Forget all blocks."""
        if self._retire is not None and len(self._blocks) > CLEARED_AT_ONCE:
            self.number = self._retire(self.number, self._blocks)
            self._blocks = OrderedDict()
        else:
            for number, _ in self._blocks.values():
                self._index.remove(number, self.number)
            self._blocks.clear()
        self._media.clear()
        self._group = None
        self.block_size = 0

    def _store(self, event: Stored) -> None:
        if self._group is None:
            self._group = event.group
        medium = self._medium(event.medium)
        if event.group != self._group or not medium:
            return
        parent = self._place(event)
        if parent is None:
            self._mark(event.blocks, medium)
            return
        size = event.block_size
        for index, block in enumerate(event.blocks):
            tokens = event.tokens[index * size : (index + 1) * size]
            parent = link(parent, tokens, event.extra[index] if event.extra else "")
            number, media = self._blocks.get(block, (parent, 0))
            if number != parent:
                self._index.remove(number, self.number)
            self._blocks[block] = parent, media | medium
            self._index.add(parent, self.number)
        while len(self._blocks) > self._bound:
            _, (oldest, _) = self._blocks.popitem(last=False)
            self._index.remove(oldest, self.number)
            self.dropped += 1

    def _medium(self, name: str) -> int:
        """Return the bit of a kind of memory, 0 for one too many."""
        bit = self._media.get(name, 0)
        if not bit and len(self._media) < MAX_MEDIA:
            bit = self._media[name] = 1 << len(self._media)
        return bit

    def _place(self, event: Stored) -> int | None:
        """Return the number of what stands before the blocks of *event*, None where it does not say where they stand."""
        size, count = event.block_size, len(event.blocks)
        if size < 1 or len(event.tokens) != count * size or (event.extra and len(event.extra) != count):
            return None
        if not self.block_size:
            self.block_size = size
        if size != self.block_size:
            return None
        if event.parent is None:
            return ROOT
        known = self._blocks.get(event.parent)
        return None if known is None else known[0]

    def _mark(self, blocks: Sequence[BlockHash], medium: int) -> None:
        """Note that *blocks*, whose place in a prompt is not given, are in *medium* too, if they are known."""
        for block in blocks:
            known = self._blocks.get(block)
            if known is None:
                self.unplaced += 1
            else:
                self._blocks[block] = known[0], known[1] | medium

    def _remove(self, event: Removed) -> None:
        medium = self._media.get(event.medium, 0)
        if event.group != self._group or not medium:
            return
        for block in event.blocks:
            known = self._blocks.get(block)
            if known is None:
                continue
            number, media = known
            if media & ~medium:
                self._blocks[block] = number, media & ~medium
            else:
                del self._blocks[block]
                self._index.remove(number, self.number)


Batch = Sequence[KvEvent] | None
"""The content of one message; None if it cannot be read."""


class EventStream:
    """One engine's batches, checked for their numbers.

    What one call cannot do at once is left for `work`, which is called until it returns False before the next batch is taken.
    `connected`, `confirm`, `live` and `replay_ended` return the number from which to request a replay, None for no replay.
    Every requested replay is followed by calls of `replayed` and then one of `replay_ended` or `replay_failed`.
    """

    __slots__ = (
        "_applied",
        "_backlog",
        "_budget",
        "_fruitless",
        "_hole",
        "_pending",
        "_pending_work",
        "_syncing",
        "cache",
        "complete",
        "following",
        "gaps",
        "lost",
        "next",
        "restarts",
        "unreadable",
    )

    def __init__(self, cache: ExactCache) -> None:
        self.cache = cache
        self.following = False
        """Whether the engine's events arrive. Without them nothing that was known counts."""
        self.complete = False
        """Whether the cache holds all that the engine holds."""
        self.next: int | None = None
        """Number of the batch that is due; None: whichever comes."""
        self.gaps = 0
        self.restarts = 0
        self.lost = 0
        """Times that something missed could not be had again."""
        self.unreadable = 0
        self._pending: deque[tuple[int, Batch, int]] = deque()
        self._pending_work = 0
        self._backlog: deque[KvEvent] = deque()
        self._budget = WORK_AT_ONCE
        self._syncing = False
        self._applied = 0
        self._fruitless = 0
        self._hole = False

    def connected(self) -> int:
        """Begin to follow: everything from the engine's start on is requested."""
        self._forget()
        self.following = True
        return self._sync(0)

    def disconnected(self) -> None:
        """Stop following: the engine is gone, or its state is unknown."""
        self._forget()
        self.following = False
        self.next = None
        self._syncing = False

    def confirm(self) -> int | None:
        """Request a replay of anything that was missed and that no further batch has shown yet."""
        if self._syncing or not self.following or self.next is None:
            return None
        return self._sync(self.next)

    def work(self) -> bool:
        """Go on with what is left of the batches that were taken. Return whether there is more."""
        self._budget = WORK_AT_ONCE
        self._do_work()
        return bool(self._backlog)

    def live(self, number: int, batch: Batch) -> int | None:
        """Take a batch as the engine publishes it."""
        self._budget = WORK_AT_ONCE
        if self._syncing:
            self._keep(number, batch)
            return None
        if self.next is None:
            self.complete = False
        elif number < self.next:
            self.restarts += 1
            self._forget()
            self._keep(number, batch)
            return self._sync(0)
        elif number > self.next:
            self.gaps += 1
            self._keep(number, batch)
            return self._sync(self.next)
        self._apply(number, batch)
        return None

    def replayed(self, number: int, batch: Batch) -> None:
        """Take a batch out of a replay."""
        self._budget = WORK_AT_ONCE
        due = self.next
        if not self._syncing or self._hole or due is None or number < due:
            return
        if number > due:
            if self._applied:
                self._hole = True  # the replay itself lost something: it is requested again from there
                return
            self._lose()
        self._apply(number, batch)
        self._applied += 1

    def replay_ended(self, *, whole: bool = True) -> int | None:
        """Take the end of a replay, and what arrived meanwhile. Of one that broke off (not *whole*) the rest is requested."""
        self._budget = WORK_AT_ONCE
        due = self.next
        if not self._syncing or due is None:
            return None
        self._fruitless = 0 if self._applied else self._fruitless + 1
        if self._hole or (self._applied and not whole):
            return self._sync(due)
        while self._pending:
            number, batch, _ = self._pending[0]
            if number > due:
                if self._fruitless < MAX_FRUITLESS:
                    return self._sync(due)
                self._lose()
            self._next_pending()
            if number >= due:
                self._apply(number, batch)
                due = number + 1
        if not due:
            self.complete = True  # it has published nothing yet, so nothing is cached
        self._settle()
        return None

    def replay_failed(self) -> None:
        """Go on without what was missed: there is no replay, or it did not come in time."""
        self._budget = WORK_AT_ONCE
        if not self._syncing:
            return
        due = self.next
        if not due:
            self.next = due = None
        while self._pending:
            number, batch = self._next_pending()
            if due is not None and number < due:
                continue
            if due is not None and number > due:
                self._lose()
            self._apply(number, batch)
            due = number + 1
        self._settle()

    def _sync(self, first: int) -> int:
        self.next = first
        self._syncing = True
        self._applied = 0
        self._hole = False
        return first

    def _settle(self) -> None:
        self._syncing = False
        self._fruitless = 0

    def _keep(self, number: int, batch: Batch) -> None:
        """Keep a batch until the replay is over; of too many the oldest are dropped, and will be replayed."""
        work = _WORK_OF_EVENT + sum(map(work_of, batch or ()))
        self._pending.append((number, batch, work))
        self._pending_work += work
        while len(self._pending) > MAX_PENDING or self._pending_work > MAX_PENDING_WORK:
            self._next_pending()

    def _next_pending(self) -> tuple[int, Batch]:
        number, batch, work = self._pending.popleft()
        self._pending_work -= work
        return number, batch

    def _forget(self) -> None:
        self.cache.clear()
        self.complete = False
        self._pending.clear()
        self._pending_work = 0
        self._backlog.clear()
        self._fruitless = 0

    def _lose(self) -> None:
        """Give up what was missed: blocks may have gone that are known, and have come that are not."""
        self.lost += 1
        self._backlog.clear()
        self.cache.clear()
        self.complete = False

    def _apply(self, number: int, batch: Batch) -> None:
        self.next = number + 1
        if not number:
            self.complete = True  # from its start on
        if batch is None:
            self.unreadable += 1
            self._backlog.clear()
            self.cache.clear()
            self.complete = False
            return
        self._backlog.extend(batch)
        self._do_work()

    def _do_work(self) -> None:
        backlog = self._backlog
        while backlog and self._budget > 0:
            event = backlog.popleft()
            self._budget -= work_of(event)
            self.cache.apply(event)
            if isinstance(event, Cleared):
                self.complete = True
