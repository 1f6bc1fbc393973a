"""A prompt's tokens, from an engine: asked for by POST /tokenize, kept for prompts that begin alike.

Only an engine knows its chat template and its tokenizer. An engine that does not answer in time is not used for a while, and
the prompt is routed by estimate: no request waits long for a better choice.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import msgspec
import orjson
from xxhash import xxh3_64_intdigest

from turnout.routing.tokens import Tokenized, links
from turnout_router.api.endpoints import CHAT, TEXT
from turnout_router.api.prefixes import BLOCK_BYTES
from turnout_router.collector import collector_off
from turnout_router.errors import UpstreamError
from turnout_router.http1.http import post
from turnout_router.tasks import TOKENIZE
from turnout_router.upstream.answers import Collected

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from turnout.routing import Backend
    from turnout.routing.load_tracker import Prompt
    from turnout_router.api.openai import Completion
    from turnout_router.upstream.pools import ConnectionPools

TokenizeOutcome = Literal["known", "asked", "failed", "unfit"]
"""The tokens were kept; an engine was used; none answered; the request cannot be compared, or the engine refuses it."""

BASE_SECONDS: Final = 0.2
SECONDS_PER_BYTE: Final = 2e-6
"""How long an engine may take: tokenizers read some MB a second and core, and may be busy with other prompts."""
REST_SECONDS: Final = 5.0
"""How long an engine that failed to answer is not used."""
MAX_KEPT_BLOCKS: Final = 400_000
"""Blocks of all prompts that are kept: some 20 MB, or 6.4 million tokens in blocks of 16."""
ENTRY_BLOCKS: Final = 16
"""What a kept prompt takes beside its blocks, in blocks."""
WHOLE_BYTES: Final = 8 * BLOCK_BYTES
"""Texts up to this length are asked for whenever they are new, so that their hits are known to the block. Of longer ones
that have the same full blocks of text, the end of the last one asked for decides: at most an eighth is not seen."""
MAX_TEXT_BYTES: Final = 1024 * 1024
"""Longer texts, or lists of token ids, are routed by estimate."""
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""What the tokens of such a text have as JSON: half a million of them. Read in 12 ms."""
ANSWER_BYTES: Final = 64 * 1024
ANSWER_BYTES_PER_BYTE: Final = 8
"""How large the answer to a question may be: a token has at least a byte of text, and seven digits at most. Chat templates
write something of their own."""
MAX_CHAIN_BLOCKS: Final = 65_536
"""Blocks of a prompt that are compared: a million tokens in blocks of 16. Engines may have blocks of one token."""
LINKS_AT_ONCE: Final = 2_048
"""Blocks that are numbered before others have their turn: 1 ms."""

_OK: Final = 200
_REFUSED: Final = frozenset({400, 413, 422})
"""The prompt is at fault, not the engine: a message that the chat template does not take, say."""
_TEMPLATE_FIELDS: Final = {
    CHAT.path: (
        "add_generation_prompt",
        "add_special_tokens",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "mm_processor_kwargs",
        "tools",
    ),
    TEXT.path: ("add_special_tokens",),
}
"""What changes a prompt's tokens, in requests of either form and in those of /tokenize alike."""
_UNTOLD_FIELDS: Final = (
    "documents",
    "prompt_embeds",
    "reasoning_effort",
    "truncate_prompt_tokens",
    "truncation_side",
)
"""What changes a prompt's tokens and /tokenize does not take: such prompts cannot be compared."""
_PROMPT_FIELD: Final = {CHAT.path: "messages", TEXT.path: "prompt"}
_NOT_TEXT: Final = (b'"image', b'"audio', b'"video', b'"input_audio', b'"file"')
"""What a content part of another kind is called. Its tokens stand for what only the engine sees."""


_Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class _Answer(msgspec.Struct, gc=False):
    """What an engine answers, as far as it matters here."""

    tokens: list[_Token]


_ANSWERS: Final = msgspec.json.Decoder(_Answer)
_TOKENS: Final = msgspec.json.Decoder(list[_Token])
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Key(NamedTuple):
    """What prompts have in common that are read alike: all of a short text, of a long one its full blocks.

    `end` is the hash of the text, or of its last full block, `blocks` the number of these, 0 for a short one. `manner` is
    the hash of how it is read.
    """

    end: int
    blocks: int
    revision: str
    manner: int


class _Kept(NamedTuple):
    """A prompt's tokens, and of which text: its hash and its bytes."""

    text: int
    text_bytes: int
    tokenized: Tokenized


class Tokenizer:
    """Knows prompts' tokens. *noted* gets the outcome of each lookup."""

    def __init__(
        self,
        pools: ConnectionPools,
        clock: Callable[[], float],
        noted: Callable[[str, TokenizeOutcome], None],
    ) -> None:
        self._pools = pools
        self._clock = clock
        self._noted = noted
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._kept_blocks = 0
        self._resting: dict[str, float] = {}
        self._turns = count()
        self._asking: dict[tuple[_Key, int], asyncio.Task[Tokenized | None]] = {}

    async def read(
        self, request: Completion, prompt: Prompt, engines: Sequence[Backend], sizes: Sequence[int]
    ) -> Tokenized | None:
        """Return the tokens of *prompt* in blocks of *sizes*, as *engines* (of one revision) read them.

        None if no engine answers, or if they could not be compared.
        """
        deployment, path = engines[0].deployment, request.endpoint.path
        if not _comparable(request):
            self._noted(deployment, "unfit")
            return None
        text = request.prompt[0]
        if path == TEXT.path and text.startswith(b"["):
            found = await _own_tokens(text, request, prompt, engines[0].revision, sizes)
            self._noted(deployment, "known" if found is not None else "unfit")
            return found
        fields = {
            name: value for name in _TEMPLATE_FIELDS[path] if (value := request.body.get(name)) is not None
        }
        manner = orjson.dumps([path.decode(), fields, request.body.get("cache_salt"), prompt.adapter])
        is_short = len(text) <= WHOLE_BYTES or not prompt.blocks
        key = _Key(
            xxh3_64_intdigest(text) if is_short else prompt.blocks[-1],
            0 if is_short else len(prompt.blocks),
            engines[0].revision,
            xxh3_64_intdigest(manner),
        )
        known = self._known(key, text, sizes)
        if known is not None:
            self._noted(deployment, "known")
            return known
        question = key, xxh3_64_intdigest(text)
        task = self._asking.get(question)
        if task is None:
            asking = self._ask(key, request, prompt, engines=engines, sizes=sizes, fields=fields)
            task = asyncio.create_task(self._survive(asking, deployment), name=TOKENIZE)
            self._asking[question] = task
            task.add_done_callback(lambda _: self._asking.pop(question, None))
        return await asyncio.shield(task)

    def stop(self) -> None:
        """Start no more requests to engines."""
        for task in tuple(self._asking.values()):
            task.cancel()

    async def _survive(
        self, asking: Coroutine[Any, Any, Tokenized | None], deployment: str
    ) -> Tokenized | None:
        """Return what *asking* finds, None if it raises: then the estimate decides, and no request fails."""
        try:
            return await asking
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            self._pools.note(TOKENIZE, error)
            self._noted(deployment, "failed")
            return None

    def _known(self, key: _Key, text: bytes, sizes: Sequence[int]) -> Tokenized | None:
        """Return what is kept of a prompt that begins alike, cut to what both have in common.

        A short text is known whole or not at all. What a long one has in common ends with the last full block of text, and
        how many tokens that are follows from its length: off by less than one block of text.
        """
        kept = self._kept.get(key)
        if kept is None or not all(size in kept.tokenized.chains for size in sizes):
            return None
        self._kept.move_to_end(key)
        whole = kept.tokenized
        if len(text) == kept.text_bytes and xxh3_64_intdigest(text) == kept.text:
            return whole
        tokens_per_byte = whole.tokens / max(1, kept.text_bytes)
        common = int(key.blocks * BLOCK_BYTES * tokens_per_byte)
        chains = {size: numbers[: common // size] for size, numbers in whole.chains.items()}
        tokens = max(1, int(len(text) * tokens_per_byte))
        return Tokenized(whole.revision, tokens, chains, whole.block_tokens)

    async def _ask(
        self,
        key: _Key,
        request: Completion,
        prompt: Prompt,
        *,
        engines: Sequence[Backend],
        sizes: Sequence[int],
        fields: Mapping[str, Any],
    ) -> Tokenized | None:
        now, text = self._clock(), request.prompt[0]
        rested = [engine for engine in engines if self._resting.get(engine.id, 0.0) <= now]
        if not rested:
            self._noted(engines[0].deployment, "failed")
            return None
        engine = rested[next(self._turns) % len(rested)]
        name = request.model if request.model in engine.names or not engine.names else engine.names[0]
        field = _PROMPT_FIELD[request.endpoint.path]
        body = orjson.dumps({"model": name, field: orjson.Fragment(text), **fields})
        answer = Collected(min(MAX_ANSWER_BYTES, ANSWER_BYTES + ANSWER_BYTES_PER_BYTE * len(body)))
        seconds = BASE_SECONDS + len(text) * SECONDS_PER_BYTE
        try:
            async with asyncio.timeout(seconds):
                await self._pools.of((engine.host, engine.port)).exchange(
                    post(b"/tokenize", f"{engine.host}:{engine.port}".encode(), body, ()),
                    answer,
                    seconds=seconds,
                    idle_seconds=None,
                    what="the answer to /tokenize",
                )
            tokens = _tokens_in(answer) if answer.status == _OK else None
        except (UpstreamError, TimeoutError):
            tokens = None
        if answer.status in _REFUSED:
            self._noted(engine.deployment, "unfit")
            return None
        if tokens is None:
            self._resting[engine.id] = self._clock() + REST_SECONDS
            self._resting = {id_: until for id_, until in self._resting.items() if until > now}
            self._noted(engine.deployment, "failed")
            return None
        self._noted(engine.deployment, "asked")
        found = await _tokenized(tokens, request, prompt, engine.revision, sizes)
        self._keep(key, _Kept(xxh3_64_intdigest(text), len(text), found))
        return found

    def _keep(self, key: _Key, kept: _Kept) -> None:
        before = self._kept.pop(key, None)
        if before is not None:
            self._kept_blocks -= _blocks(before)
        self._kept[key] = kept
        self._kept_blocks += _blocks(kept)
        while self._kept_blocks > MAX_KEPT_BLOCKS:
            _, oldest = self._kept.popitem(last=False)
            self._kept_blocks -= _blocks(oldest)


def _comparable(request: Completion) -> bool:
    """Return whether an engine can tokenize *request* into the tokens that it would compute."""
    path = request.endpoint.path
    if path not in _PROMPT_FIELD or len(request.prompt) != 1 or len(request.prompt[0]) > MAX_TEXT_BYTES:
        return False
    if any(request.body.get(name) is not None for name in _UNTOLD_FIELDS):
        return False
    return path != CHAT.path or not any(name in request.prompt[0] for name in _NOT_TEXT)


def _blocks(kept: _Kept) -> int:
    return ENTRY_BLOCKS + sum(map(len, kept.tokenized.chains.values()))


async def _own_tokens(
    text: bytes, request: Completion, prompt: Prompt, revision: str, sizes: Sequence[int]
) -> Tokenized | None:
    """Return the tokens of a prompt that is given as token ids: no engine is needed."""
    try:
        with collector_off(len(text)):
            tokens = _TOKENS.decode(text)
    except _UNREADABLE:
        return None
    return await _tokenized(tokens, request, prompt, revision, sizes)


def _tokens_in(answer: Collected) -> list[int] | None:
    body = answer.body
    try:
        with collector_off(len(body)):
            return _ANSWERS.decode(body).tokens
    except _UNREADABLE:
        return None


async def _tokenized(
    tokens: Sequence[int], request: Completion, prompt: Prompt, revision: str, sizes: Sequence[int]
) -> Tokenized:
    """Return *tokens* as `Tokenized`. Others have their turn while it numbers many blocks."""
    salt = request.body.get("cache_salt")
    chains: dict[int, tuple[int, ...]] = {}
    for size in sizes:
        numbers: list[int] = []
        for number in links(tokens, size, salt if isinstance(salt, str) else None, prompt.adapter):
            numbers.append(number)
            if not len(numbers) % LINKS_AT_ONCE:
                await asyncio.sleep(0)
                if len(numbers) >= MAX_CHAIN_BLOCKS:
                    break
        chains[size] = tuple(numbers)
    block_tokens = len(tokens) * BLOCK_BYTES // max(1, len(request.prompt[0]))
    return Tokenized(revision, max(1, len(tokens)), chains, max(1, block_tokens))
