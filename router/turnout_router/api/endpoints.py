"""The API's endpoints as values: the differences between paths. A further endpoint is one more entry.

That a prompt's cache can be moved from a prefill to a decode worker is a matter of the endpoint: vLLM takes and
returns `kv_transfer_params` in chat completions, completions, responses and messages (0.32), and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from turnout.routing import needs_local_prefill
from turnout_router.api.cuts import choices_are_cut, message_is_cut, nothing_is_cut, response_is_cut
from turnout_router.api.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect
from turnout_router.api.events import MESSAGE_EVENTS, RESPONSE_EVENTS, EventForm, EventTap
from turnout_router.api.untrusted import loads
from turnout_router.api.usage import StreamTap, Tap, Usage
from turnout_router.errors import malformed

if TYPE_CHECKING:
    from turnout_router.http1.http import Fields


@dataclass(frozen=True, slots=True)
class UsageForm:
    """Where an answer's usage says its tokens: the prompt is the sum of the fields `prompt`.

    Cached tokens stand in the field `cached`, of the object `details` where there is one. The patterns find prompt and output
    in the text of an answer of which only a part is known, or whose usage stands elsewhere.
    """

    prompt: tuple[str, ...]
    output: str
    details: str
    cached: str
    prompt_pattern: re.Pattern[bytes]
    output_pattern: re.Pattern[bytes]


_GENERATED: Final = UsageForm(
    ("prompt_tokens",),
    "completion_tokens",
    "prompt_tokens_details",
    "cached_tokens",
    re.compile(rb'"prompt_tokens":\s*([0-9]{1,12})'),
    re.compile(rb'"completion_tokens":\s*([0-9]{1,12})'),
)
_PROMPT_PARTS: Final = re.compile(rb'"(?:cache_read_|cache_creation_)?input_tokens":\s*([0-9]{1,12})')
_OUTPUT: Final = re.compile(rb'"output_tokens":\s*([0-9]{1,12})')
_RESPONDED: Final = UsageForm(
    ("input_tokens",), "output_tokens", "input_tokens_details", "cached_tokens", _PROMPT_PARTS, _OUTPUT
)
_SAID: Final = UsageForm(
    ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    "output_tokens",
    "",
    "cache_read_input_tokens",
    _PROMPT_PARTS,
    _OUTPUT,
)
"""In a message's usage, tokens that were cached stand beside `input_tokens`: the prompt is their sum."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a request must hold: one of the fields *names*, of one of the *types*, not empty. Else 400 with *message*."""

    names: tuple[str, ...]
    types: tuple[type, ...]
    message: str

    def check(self, body: Mapping[str, Any]) -> None:
        """Raise ApiError (400) where *body* does not hold it."""
        for name in self.names:
            value = body.get(name)
            if isinstance(value, self.types) and value:
                return
        raise malformed(self.message, self.names[0])


@dataclass(frozen=True, slots=True)
class Prefill:
    """How a request is reduced to its prompt for the prefill worker: one token, not streamed.

    `cap` is the field that bounds the output; `caps_if_given` are further ones that would contradict it, `without`
    are fields that mean nothing to, or forbid, an answer of one token. `local_if` says of a body that only the
    worker that answers can compute its prompt. `needs_cap`: the API requires a bound of the output; `default_cap` holds where
    none is given, None for the room that is left.
    """

    cap: str
    local_if: Callable[[Mapping[str, Any]], bool]
    caps_if_given: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    needs_cap: bool = False
    default_cap: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path that leads to workers.

    - `needs`: what is checked before a worker is bothered; `refused`: fields that cannot be honored, and why.
    - `prompt`: the fields in which the prompt lies, for estimating its length.
    - `output_caps`: fields that bound the output, the first one that is given counts; () where nothing is generated.
    - `prefill`: how a prefill worker is asked; None where prompt and answer cannot be separated.
    - `stream`: how a stream is read: `chunks` of OpenAI's completions, or typed events; None: never streamed.
    - `usage`: where a whole answer's tokens stand.
    - `serves`: whether the engine computes something; what only counts tokens is no sign of load or goodput.
    - `is_cut`: says of a whole answer, or its last part, whether the engine cut it short, and takes whether it has several choices.
    - `key_field`: a header field, beside `Authorization`, in which this API's clients send their key.
    """

    path: bytes
    needs: tuple[Need, ...]
    prompt: tuple[str, ...]
    output_caps: tuple[str, ...] = ()
    prefill: Prefill | None = None
    stream: Literal["chunks"] | EventForm | None = None
    usage: UsageForm = _GENERATED
    dialect: Dialect = OPENAI
    refused: tuple[tuple[str, str], ...] = ()
    serves: bool = True
    is_cut: Callable[[bytes, bool], bool] = nothing_is_cut
    key_field: bytes | None = None

    def check(self, body: Mapping[str, Any]) -> None:
        """Raise ApiError (400) that says what is missing or cannot be honored."""
        for need in self.needs:
            need.check(body)
        for name, why in self.refused:
            if body.get(name):
                raise malformed(f"`{name}` is not supported here: {why}", name)

    def tap(self, *, drop_usage: bool, max_event_bytes: int) -> Tap:
        """Return a tap for a stream of this endpoint. *drop_usage*: the client did not request it."""
        if isinstance(self.stream, EventForm):
            return EventTap(self.stream, max_event_bytes=max_event_bytes)
        return StreamTap(drop_usage=drop_usage, max_event_bytes=max_event_bytes)

    def usage_of(self, body: bytes) -> Usage:
        """Return what a complete answer, or its last part, says of its tokens.

        `usage` is found by text, for it stands near the end: inside a JSON string a quote is always escaped, so the
        name cannot be part of an answer's text.
        """
        form = self.usage
        at = body.rfind(b'"usage"')
        if at >= 0:
            try:
                usage = loads(b"{" + body[at:]).get("usage")
            except orjson.JSONDecodeError:
                usage = None  # not a field of the outermost object
            if isinstance(usage, dict):
                prompt = 0
                for name in form.prompt:
                    prompt += _count(usage.get(name))
                held = usage.get(form.details) if form.details else usage
                cached = held.get(form.cached) if isinstance(held, dict) else None
                return Usage(
                    prompt, _count(usage.get(form.output)), None if cached is None else _count(cached)
                )
        tail = body[at:] if at > 0 else b""
        prompt = sum(int(found) for found in form.prompt_pattern.findall(tail))
        return Usage(
            prompt or _last_count(form.prompt_pattern, body),
            _last_count(form.output_pattern, tail) or _last_count(form.output_pattern, body),
            None,
        )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _last_count(pattern: re.Pattern[bytes], text: bytes) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0


def _runs_tools(body: Mapping[str, Any]) -> bool:
    """Return whether the worker itself would call tools: it then generates several times for one request.

    Every turn would read the handed-out cache anew, which can be read only once.
    """
    tools = body.get("tools")
    return isinstance(tools, list) and not all(_is_called_by_client(tool) for tool in tools)


def _is_called_by_client(tool: object) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind in {"function", "custom"}


def _never(_body: Mapping[str, Any]) -> bool:
    return False


_MESSAGES: Final = Need(("messages",), (list,), "`messages` must be a list of at least one message.")
_PROMPT: Final = Need(
    ("prompt",), (str, list), "`prompt` must be a text, a list of texts or a list of token ids."
)
_CHAT_CAPS: Final = ("max_completion_tokens", "max_tokens")
_completions: Final = partial(
    Prefill, cap="max_tokens", local_if=needs_local_prefill, without=("min_tokens",)
)

CHAT: Final = Endpoint(
    path=b"/v1/chat/completions",
    needs=(_MESSAGES,),
    prompt=("messages",),
    output_caps=_CHAT_CAPS,
    prefill=_completions(caps_if_given=("max_completion_tokens",)),
    stream="chunks",
    is_cut=choices_are_cut,
)
TEXT: Final = Endpoint(
    path=b"/v1/completions",
    needs=(_PROMPT,),
    prompt=("prompt",),
    output_caps=_CHAT_CAPS,
    prefill=_completions(default_cap=16),
    stream="chunks",
    is_cut=choices_are_cut,
)
RESPONSE: Final = Endpoint(
    path=b"/v1/responses",
    needs=(Need(("input",), (str, list), "`input` must be a text or a list of at least one item."),),
    prompt=("instructions", "input"),
    output_caps=("max_output_tokens",),
    prefill=Prefill("max_output_tokens", _runs_tools),
    stream=RESPONSE_EVENTS,
    is_cut=response_is_cut,
    usage=_RESPONDED,
    dialect=RESPONSES,
    refused=(
        ("background", "an answer must be taken as it comes; leave it out."),
        ("previous_response_id", "answers are not kept between requests; send the conversation in `input`."),
        ("conversation", "answers are not kept between requests; send the conversation in `input`."),
    ),
)
_anthropic: Final = partial(
    Endpoint, needs=(_MESSAGES,), prompt=("system", "messages"), dialect=ANTHROPIC, key_field=b"x-api-key"
)
MESSAGE: Final = _anthropic(
    path=b"/v1/messages",
    output_caps=("max_tokens",),
    prefill=Prefill("max_tokens", _never, needs_cap=True),
    stream=MESSAGE_EVENTS,
    is_cut=message_is_cut,
    usage=_SAID,
)
COUNT_TOKENS: Final = _anthropic(path=b"/v1/messages/count_tokens", serves=False)
EMBEDDINGS: Final = Endpoint(
    path=b"/v1/embeddings",
    needs=(
        Need(
            ("input", "messages"),
            (str, list),
            "`input` must be a text, a list of texts or a list of token ids.",
        ),
    ),
    prompt=("input", "messages"),
)
_rerank: Final = partial(
    Endpoint,
    needs=(
        Need(("query",), (str, dict), "`query` must be a text."),
        Need(("documents",), (list, str, dict), "`documents` must be a list of at least one text."),
    ),
    prompt=("query", "documents"),
)
_ONE: Final = ("queries", "text_1", "data_1")
_OTHER: Final = ("documents", "items", "text_2", "data_2")
_score: Final = partial(
    Endpoint,
    needs=(
        Need(_ONE, (str, list, dict), "`queries` (or `text_1`) must be a text or a list of texts."),
        Need(_OTHER, (str, list, dict), "`documents` (or `text_2`) must be a text or a list of texts."),
    ),
    prompt=(*_ONE, *_OTHER),
)
TOKENIZE: Final = Endpoint(
    path=b"/tokenize",
    needs=(Need(("prompt", "messages"), (str, list), "`prompt` must be a text, or `messages` a list."),),
    prompt=(),
    serves=False,
)
DETOKENIZE: Final = Endpoint(
    path=b"/detokenize",
    needs=(Need(("tokens",), (list,), "`tokens` must be a list of token ids."),),
    prompt=(),
    serves=False,
)

ENDPOINTS: Final[Mapping[bytes, Endpoint]] = {
    endpoint.path: endpoint
    for endpoint in (
        CHAT,
        TEXT,
        RESPONSE,
        MESSAGE,
        COUNT_TOKENS,
        EMBEDDINGS,
        _rerank(path=b"/v1/rerank"),
        _rerank(path=b"/rerank"),
        _rerank(path=b"/v2/rerank"),
        _score(path=b"/v1/score"),
        _score(path=b"/score"),
        TOKENIZE,
        DETOKENIZE,
    )
}
"""Everything that leads to workers, by path. All of it is POST."""


MODELS: Final = b"/v1/models"
"""What may be called; a name may follow. The only path that two APIs share: Anthropic's clients name its version."""
_ANTHROPIC_FIELD: Final = b"anthropic-version"


def dialect_of(path: bytes, fields: Fields) -> Dialect:
    """Return how errors are written under *path*, one that leads nowhere included, for a client that sent *fields*."""
    endpoint = ENDPOINTS.get(path)
    if endpoint is not None:
        return endpoint.dialect
    if path == MODELS or path.startswith(MODELS + b"/"):
        return ANTHROPIC if any(name == _ANTHROPIC_FIELD for name, _ in fields) else OPENAI
    return ANTHROPIC if path.startswith(MESSAGE.path) else OPENAI
