"""A prompt's tokens, from an engine: asked for by POST /tokenize, kept for prompts that begin alike.

Only an engine knows its chat template and its tokenizer. Whoever does not answer in time is left alone for a while, and
the prompt is routed by what is believed: nobody waits long for a better choice.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import orjson
from xxhash import xxh3_64_intdigest

from turnout.routing.tokens import Tokenized, chain
from turnout_router.endpoints import CHAT, TEXT
from turnout_router.errors import UpstreamError
from turnout_router.http import post
from turnout_router.prefixes import BLOCK_BYTES
from turnout_router.relay import Collected
from turnout_router.tasks import TOKENIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from turnout.routing import Backend
    from turnout.routing.ledger import Prompt
    from turnout_router.openai import Completion
    from turnout_router.pools import Pools

Outcome = Literal["known", "asked", "failed", "unfit"]
"""The tokens were kept; an engine was asked; none answered; the request's form is none that could be compared."""

BASE_SECONDS: Final = 0.2
SECONDS_PER_BYTE: Final = 2e-6
"""How long an engine may take: tokenizers read some MB a second and core, and may be busy with other prompts."""
REST_SECONDS: Final = 5.0
"""How long an engine that failed to answer is not asked."""
MAX_KEPT_BLOCKS: Final = 400_000
"""Blocks of all prompts that are kept: some 20 MB, or 6.4 million tokens in blocks of 16."""
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""A million tokens as JSON have 7 MB."""

_OK: Final = 200
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
_PROMPT_FIELD: Final = {CHAT.path: "messages", TEXT.path: "prompt"}
_NOT_TEXT: Final = (b'"image', b'"audio', b'"video', b'"input_audio', b'"file"')
"""What a content part of another kind is called. Its tokens stand for what only the engine sees."""


class _Key(NamedTuple):
    """What prompts have in common that begin alike, to the last full block of text, and are read alike."""

    last_block: int
    blocks: int
    revision: str
    template: bytes


class _Kept(NamedTuple):
    """A prompt's tokens, and of which text: its hash and its bytes."""

    text: int
    text_bytes: int
    tokenized: Tokenized


class Tokenizer:
    """Knows prompts' tokens. *noted* is told the outcome of each question."""

    def __init__(
        self, pools: Pools, clock: Callable[[], float], noted: Callable[[str, Outcome], None]
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

        None where nobody says, or where they could not be compared.
        """
        deployment, path = engines[0].deployment, request.endpoint.path
        if path not in _PROMPT_FIELD or not prompt.blocks or len(request.prompt) != 1:
            self._noted(deployment, "unfit")
            return None
        text = request.prompt[0]
        if path == TEXT.path and text.startswith(b"["):
            found = _own_tokens(text, request, prompt, engines[0].revision, sizes)
            self._noted(deployment, "known" if found is not None else "unfit")
            return found
        if path == CHAT.path and any(name in text for name in _NOT_TEXT):
            self._noted(deployment, "unfit")
            return None
        fields = {
            name: value for name in _TEMPLATE_FIELDS[path] if (value := request.body.get(name)) is not None
        }
        key = _Key(
            prompt.blocks[-1], len(prompt.blocks), engines[0].revision, orjson.dumps([path.decode(), fields])
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
        """Ask nobody any more."""
        for task in tuple(self._asking.values()):
            task.cancel()

    async def _survive(
        self, asking: Coroutine[Any, Any, Tokenized | None], deployment: str
    ) -> Tokenized | None:
        """Return what *asking* finds, None where it raises: belief decides, and no request is harmed by it."""
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

        That ends with the last full block of text, and how many tokens that are is reckoned by the text's length: off
        by less than one block of text.
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
        return Tokenized(whole.revision, max(1, int(len(text) * tokens_per_byte)), chains)

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
        answer = Collected(MAX_ANSWER_BYTES)
        name = request.model if request.model in engine.names or not engine.names else engine.names[0]
        field = _PROMPT_FIELD[request.endpoint.path]
        body = orjson.dumps({"model": name, field: orjson.Fragment(text), **fields})
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
        if tokens is None:
            self._resting[engine.id] = self._clock() + REST_SECONDS
            self._resting = {id_: until for id_, until in self._resting.items() if until > now}
            self._noted(engine.deployment, "failed")
            return None
        self._noted(engine.deployment, "asked")
        found = _tokenized(tokens, request, prompt, engine.revision, sizes)
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


def _blocks(kept: _Kept) -> int:
    return 1 + sum(map(len, kept.tokenized.chains.values()))


def _own_tokens(
    text: bytes, request: Completion, prompt: Prompt, revision: str, sizes: Sequence[int]
) -> Tokenized | None:
    """Return the tokens of a prompt that is given as token ids: there is nobody to ask."""
    tokens = orjson.loads(text)
    if not all(type(token) is int for token in tokens):
        return None
    return _tokenized(tokens, request, prompt, revision, sizes)


def _tokens_in(answer: Collected) -> list[int] | None:
    try:
        said = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return None
    tokens = said.get("tokens") if isinstance(said, dict) else None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        return None
    return tokens


def _tokenized(
    tokens: Sequence[int], request: Completion, prompt: Prompt, revision: str, sizes: Sequence[int]
) -> Tokenized:
    salt = request.body.get("cache_salt")
    chains = {
        size: chain(tokens, size, salt if isinstance(salt, str) else None, prompt.adapter) for size in sizes
    }
    return Tokenized(revision, max(1, len(tokens)), chains)
