"""The OpenAI requests that the router understands: what it reads of them, and what it changes for the worker.

Changed for every worker: engine-internal fields of clients are taken out, the model's name is one that the worker
knows, and a stream is asked for its usage. Changed for the prefill half besides: as in vLLM's pull mode
(one token, not streamed, `kv_transfer_params` that ask to keep the cache for another worker).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout.routing import estimate_prompt_tokens, needs_local_prefill
from turnout_router.errors import malformed

if TYPE_CHECKING:
    from turnout.routing import Backend

CHAT: Final = b"/v1/chat/completions"
TEXT: Final = b"/v1/completions"

ENGINE_FIELDS: Final = (
    "kv_transfer_params",
    "ec_transfer_params",
    "vllm_xargs",
    "request_id",
    "data_parallel_rank",
    "priority",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
)
"""Fields between engines, never from clients: `{"kv_transfer_params": {"do_remote_prefill": true}}` alone kills a
decode worker, and `vllm_xargs` is another way to the same place."""

KEEP_CACHE: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""What asks a prefill worker to keep the cache and to say where it lies."""

MAX_MODEL_LENGTH: Final = 256
EXPECTED_OUTPUT_TOKENS: Final = 256
"""Output tokens that a request is counted with while it runs, where it does not cap them lower."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One request for a completion, understood.

    `body` is the client's object without engine-internal fields and is never changed; `prompt_tokens` is an
    estimate; `wants_usage` says whether the client asked a stream for its usage itself.
    """

    path: bytes
    body: dict[str, Any]
    model: str
    stream: bool
    wants_usage: bool
    prompt_tokens: int
    expected_output_tokens: int
    local_prefill: bool


def parse(path: bytes, raw: bytes) -> Completion:
    """Return the request in *raw*. Raise ApiError (400) that says what is wrong with it."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise malformed(f"We could not parse the JSON body of your request: {error}.") from error
    if not isinstance(body, dict):
        raise malformed("The body of your request must be a JSON object.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise malformed("You must provide a model parameter: a name from GET /v1/models.", "model")
    if len(model) > MAX_MODEL_LENGTH:
        raise malformed(f"`model` is longer than any name: at most {MAX_MODEL_LENGTH} characters.", "model")
    _check_prompt(path, body)
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise malformed("`stream` must be true or false.", "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise malformed("`stream_options` must be an object.", "stream_options")
    for name in ENGINE_FIELDS:
        body.pop(name, None)
    return Completion(
        path=path,
        body=body,
        model=model,
        stream=bool(stream),
        wants_usage=options is not None and options.get("include_usage") is True,
        prompt_tokens=estimate_prompt_tokens(body),
        expected_output_tokens=_expected_output(body),
        local_prefill=needs_local_prefill(body),
    )


def prefill_body(request: Completion, backend: Backend) -> bytes:
    """Return the body for the prefill worker."""
    body = request.body | {"stream": False, "max_tokens": 1, "kv_transfer_params": KEEP_CACHE}
    body["model"] = _name_for(request.model, backend)
    if body.get("max_completion_tokens") is not None:
        body["max_completion_tokens"] = 1
    body.pop("stream_options", None)
    body.pop("min_tokens", None)
    return orjson.dumps(body)


def decode_body(request: Completion, backend: Backend, kv_transfer_params: dict[str, Any] | None) -> bytes:
    """Return the body for the worker that answers, with what the prefill worker said, verbatim."""
    body = request.body.copy()
    body["model"] = _name_for(request.model, backend)
    if request.stream and not request.wants_usage:
        body["stream_options"] = (body.get("stream_options") or {}) | {"include_usage": True}
    if kv_transfer_params is not None:
        body["kv_transfer_params"] = kv_transfer_params
    return orjson.dumps(body)


def _name_for(model: str, backend: Backend) -> str:
    names = backend.names
    return model if model in names or not names else names[0]


def _check_prompt(path: bytes, body: dict[str, Any]) -> None:
    if path == CHAT:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise malformed("`messages` must be a list of at least one message.", "messages")
        return
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        raise malformed("`prompt` must be a text, a list of texts or a list of token ids.", "prompt")


def _expected_output(body: dict[str, Any]) -> int:
    cap = body.get("max_completion_tokens")
    if cap is None:
        cap = body.get("max_tokens")
    if isinstance(cap, int) and 0 < cap < EXPECTED_OUTPUT_TOKENS:
        return cap
    return EXPECTED_OUTPUT_TOKENS
