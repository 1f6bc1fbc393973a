"""The OpenAI API as vLLM speaks it: what a completion request asks for, as vLLM's serving code understands it.

`body` has read the types before, `inputs` checks afterwards what only the engine does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from turnout_worker import body as bodies
from turnout_worker import text
from turnout_worker.errors import BadRequestError, UnknownModelError

if TYPE_CHECKING:
    from turnout_worker.body import Kind

MAX_CHOICES: Final = 64
MAX_TEMPERATURE: Final = 2
MAX_STOPS: Final = 32
"""Most stop strings: each is sought in the whole answer before it begins."""

_UNSUPPORTED: Final = {"best_of": 1, "echo": False, "prompt_logprobs": None}
"""Fields that change an answer in a way the simulated engine does not know, with the values that ask for nothing."""


@dataclass(frozen=True, slots=True)
class RemotePrefill:
    """Where a prompt's KV lies: what a prefill worker's answer said."""

    host: str
    port: int
    engine_id: str
    request_id: str
    tokens: int | None
    """Prompt tokens held there; None: all of them."""
    cached_tokens: int = 0
    """Prompt tokens that the prefill worker had in its own prefix cache."""


class FatalTransferError(Exception):
    """kv_transfer_params that kill vLLM's engine core: ``do_remote_prefill`` without saying where."""


@dataclass(frozen=True, slots=True)
class PlannedOutput:
    """The output that the model will generate for one choice, and why it will stop."""

    text: bytes
    tokens: int
    finish_reason: Literal["stop", "length"]
    stop_reason: str | None
    """The stop string that was met."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A completion request, understood and checked."""

    kind: Kind
    model: str
    prompt: bytes
    """Rendered to the bytes of its tokens."""
    prompt_tokens: int
    outputs: tuple[PlannedOutput, ...]
    """One for each of the n choices asked for."""
    logprobs: int | None
    """Alternatives to report for each token; None: log probabilities are not asked for."""
    max_tokens: int | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    pin: bool
    """``do_remote_decode``: keep the KV for a decode worker."""
    remote: RemotePrefill | None
    """``do_remote_prefill``: fetch the KV from there."""
    cache_salt: str | None = None
    """Shares cached blocks only with requests of the same salt."""


def parse(
    body: bytes, kind: Kind, *, served_names: tuple[str, ...], max_length: int, seed: int, transfers: bool
) -> CompletionRequest:
    """Understand *body*, of a chat or text completion. Raise an AnswerError, or FatalTransferError as its docstring says.

    *transfers*: whether this worker has a KV connector; without one kv_transfer_params mean nothing, as in vLLM.
    """
    return understand(
        bodies.read(bodies.object_of(body), kind),
        kind,
        served_names=served_names,
        max_length=max_length,
        seed=seed,
        transfers=transfers,
    )


def understand(
    fields: dict[str, Any],
    kind: Kind,
    *,
    served_names: tuple[str, ...],
    max_length: int,
    seed: int,
    transfers: bool,
) -> CompletionRequest:
    """Like `parse`, for a body that was read and is a completion's."""
    model = model_of(fields, served_names)
    for name, neutral in _UNSUPPORTED.items():
        value = fields.get(name)
        if value and value != neutral:
            raise BadRequestError(
                f"{name}={value!r} is not supported by the simulated engine: leave it out", name
            )
    prompt = _prompt(fields) if kind == "text" else text.render_chat(_messages(fields))
    prompt_tokens = text.token_count(prompt)
    limit = _output_limit(fields, kind, prompt_tokens, max_length)
    choices = _count(fields, "n") or 1
    _check_sampling(fields, choices)
    if choices > MAX_CHOICES:
        raise BadRequestError(
            f"n={choices} is more than the {MAX_CHOICES} choices that are made at once", "n"
        )
    outputs = tuple(
        _answer(fields, prompt, limit, max_length - prompt_tokens, text.seed_of_choice(seed, index))
        for index in range(choices)
    )
    stream = bool(fields.get("stream"))
    if stream and kind == "text" and fields.get("use_beam_search"):
        raise BadRequestError("Streaming is not currently supported with beam search")
    options = fields.get("stream_options") or {}
    pin, remote = _transfer(fields) if transfers else (False, None)
    if choices > 1 and (pin or remote is not None):
        raise BadRequestError("kv_transfer_params are for one sequence: n must be 1 with them", "n")
    return CompletionRequest(
        kind=kind,
        model=model,
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        outputs=outputs,
        logprobs=_logprobs(fields, kind),
        max_tokens=limit,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        pin=pin,
        remote=remote,
        cache_salt=_salt(fields),
    )


def prompt_of(fields: dict[str, Any]) -> bytes:
    """Return the rendered prompt of a body with `messages` or `prompt`. Raise BadRequestError."""
    return text.render_chat(_messages(fields)) if "messages" in fields else _prompt(fields)


def tokens_of(fields: dict[str, Any]) -> bytes:
    """Return the bytes of a body's `tokens`. Raise BadRequestError."""
    return _prompt({"prompt": fields.get("tokens")})


def model_of(fields: dict[str, Any], served_names: tuple[str, ...]) -> str:
    """Return the model that is asked for, the first one where none is. Raise BadRequestError or UnknownModelError."""
    model = fields.get("model") or served_names[0]
    if not isinstance(model, str):
        raise BadRequestError("model must be a string", "model")
    if model not in served_names:
        aliases = ", ".join(served_names)
        raise UnknownModelError(f"The model `{model}` does not exist. Valid aliases: {aliases}.", "model")
    return model


def _messages(fields: dict[str, Any]) -> list[tuple[str, str]]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages must be a list of at least one message", "messages")
    return [_message(index, message) for index, message in enumerate(messages)]


def _message(index: int, message: object) -> tuple[str, str]:
    where = f"messages[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequestError(f"{where} must be an object with a role and content", "messages")
    content = message.get("content")
    if content is None:
        content = ""
    elif isinstance(content, list):
        content = "".join(_part(where, part) for part in content)
    if not isinstance(content, str):
        raise BadRequestError(f"{where}.content must be a string or a list of parts", "messages")
    return message["role"], content


def _part(where: str, part: object) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise BadRequestError(
            f"{where}.content holds a part that is not text: the model reads text only", "messages"
        )
    return str(part["text"])


def _prompt(fields: dict[str, Any]) -> bytes:
    prompt = fields.get("prompt")
    if prompt == [""]:
        return b"\0" * text.TOKEN_BYTES  # it is the engine that refuses it
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, str) and prompt:
        return prompt.encode()
    if isinstance(prompt, list) and prompt and all(type(t) is int and 0 <= t < 2**32 for t in prompt):
        return b"".join(token.to_bytes(text.TOKEN_BYTES, "big") for token in prompt)
    raise BadRequestError("prompt must be one non-empty string or list of token ids", "prompt")


def _output_limit(fields: dict[str, Any], kind: Kind, prompt_tokens: int, max_length: int) -> int | None:
    """Tokens asked for at most, cut to the room; None where the request does not say. In vLLM's words where it is wrong."""
    name = "max_output_tokens" if kind == "response" else "max_tokens"
    asked = fields.get("max_completion_tokens") if kind == "chat" else None
    if asked is None:
        asked = fields.get("max_tokens")
    else:
        name = "max_completion_tokens"
    if asked is None and kind == "text":
        asked = 16  # OpenAI's default for text completions
    if prompt_tokens >= max_length:
        raise BadRequestError(
            f"This model's maximum context length is {max_length} tokens. However, your prompt contains at least "
            f"{prompt_tokens} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            f"length of the input prompt. (parameter=input_tokens, value={prompt_tokens})",
            "input_tokens",
        )
    if asked is None:
        return None
    if asked < 1:
        raise BadRequestError(
            f"{name} must be at least 1, got {asked}. (parameter={name}, value={asked})", name
        )
    if asked > max_length:
        raise BadRequestError(
            f"{name}={asked} cannot be greater than max_model_len={max_length}. Please request fewer output tokens. "
            f"(parameter={name}, value={asked})",
            name,
        )
    return int(min(asked, max_length - prompt_tokens))


def _answer(fields: dict[str, Any], prompt: bytes, limit: int | None, room: int, seed: int) -> PlannedOutput:
    """Return the model's output, and why it stops."""
    most = room if limit is None else limit
    least = _count(fields, "min_tokens", at_least=0) or 0
    if least > most:
        raise BadRequestError(f"min_tokens must be less than or equal to max_tokens={most}, got {least}.")
    own_seed = _count(fields, "seed", at_least=None)
    seed = seed if own_seed is None else seed ^ (own_seed & 0xFFFFFFFF)
    natural = most + 1 if fields.get("ignore_eos") else max(least, text.natural_length(seed, prompt))
    reason: Literal["stop", "length"] = "stop" if natural <= most else "length"
    output = text.output(seed, prompt, min(natural, most))
    found = [
        (at, stop)
        for stop in _stops(fields)
        if (at := output.find(stop.encode(), least * text.TOKEN_BYTES)) >= 0
    ]
    if found:
        at, stop = min(found)
        output, reason = output[:at], "stop"
        return PlannedOutput(output, max(1, text.token_count(output)), reason, stop)
    return PlannedOutput(output, max(1, text.token_count(output)), reason, None)


def _check_sampling(fields: dict[str, Any], choices: int) -> None:
    """Refuse temperatures and the like that vLLM refuses, in its words; they have no effect otherwise."""
    temperature, top_p = fields.get("temperature"), fields.get("top_p")
    if temperature is not None and not 0 <= temperature <= MAX_TEMPERATURE:
        raise BadRequestError(
            f"temperature must be in [0, 2], got {temperature}. (parameter=temperature, value={temperature})",
            "temperature",
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise BadRequestError(
            f"top_p must be in (0, 1], got {top_p}. (parameter=top_p, value={top_p})", "top_p"
        )
    if temperature == 0 and choices > 1:
        raise BadRequestError(f"n must be 1 when using greedy sampling, got {choices}.")


def _logprobs(fields: dict[str, Any], kind: Kind) -> int | None:
    """Return how many alternatives are asked for: a number in text completions, two fields in conversations."""
    if kind == "text":
        count = fields.get("logprobs")
    else:
        count = (fields.get("top_logprobs") or 0) if fields.get("logprobs") else None
    return None if count is None else int(count)  # the engine checks it


def _stops(fields: dict[str, Any]) -> list[str]:
    stops = fields.get("stop")
    if stops is None:
        return []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequestError("stop must be a non-empty string or a list of them", "stop")
    if len(stops) > MAX_STOPS:
        raise BadRequestError(f"at most {MAX_STOPS} stop strings are sought", "stop")
    return stops


def _count(fields: dict[str, Any], name: str, at_least: int | None = 1) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or (at_least is not None and value < at_least):
        bound = "" if at_least is None else f" of at least {at_least}"
        raise BadRequestError(f"{name} must be a whole number{bound}, got {value!r}", name)
    return value


def _salt(fields: dict[str, Any]) -> str | None:
    salt = fields.get("cache_salt")
    if salt is not None and not (isinstance(salt, str) and salt):
        raise BadRequestError("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    return salt


def remote_of(fields: dict[str, Any]) -> RemotePrefill | None:
    """Return where the KV of a request lies, whatever else is wrong with it; None where it does not say."""
    try:
        return _transfer(fields)[1]
    except (BadRequestError, FatalTransferError):
        return None


def _transfer(fields: dict[str, Any]) -> tuple[bool, RemotePrefill | None]:
    params = fields.get("kv_transfer_params")
    if params is None:
        return False, None
    if not isinstance(params, dict):
        raise BadRequestError("kv_transfer_params must be an object", "kv_transfer_params")
    if not params.get("do_remote_prefill"):
        return bool(params.get("do_remote_decode")), None
    host, port = params.get("remote_host"), params.get("remote_port")
    engine_id, request_id = params.get("remote_engine_id"), params.get("remote_request_id")
    tokens = params.get("remote_num_tokens")
    cached = params.get("remote_prefill_cached_tokens", 0)
    if (
        not isinstance(host, str)
        or type(port) is not int
        or not isinstance(engine_id, str)
        or not isinstance(request_id, str)
        or not isinstance(params.get("remote_block_ids"), list)
        or not isinstance(tokens, int | None)
        or type(cached) is not int
    ):
        raise FatalTransferError
    return False, RemotePrefill(host, port, engine_id, request_id, tokens, cached)
