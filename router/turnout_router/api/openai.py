"""Requests for a model: what the router reads of them, and what it changes for the worker.

Changed for every worker: engine-internal fields of clients are taken out, the model's name is one that the worker
knows, and usage is requested with a stream of chunks. Changed for the prefill worker besides: as in vLLM's pull mode
(one token, not streamed, `kv_transfer_params` that keep the cache for another worker).
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Final

import orjson
from mypy_extensions import mypyc_attr

from turnout.routing import estimate_prompt_tokens
from turnout_router.errors import malformed

if TYPE_CHECKING:
    from collections.abc import Generator

    from turnout.routing import Backend
    from turnout.routing.candidates import LocalReason
    from turnout_router.api.endpoints import Endpoint

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
_ENGINE_FIELDS: Final = frozenset(ENGINE_FIELDS)

KEEP_CACHE: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""The parameters that make a prefill worker keep the cache and answer where it lies."""

MAX_MODEL_LENGTH: Final = 256
MAX_FIELDS: Final = 1024
"""Fields of a request. vLLM's chat completions know some eighty."""
MAX_OPTIONS: Final = 16
"""Fields of `stream_options`."""
MAX_SALT_LENGTH: Final = 1024
_SHORT: Final = 1024
"""Characters of a text that stays as it was parsed."""
_COLLECTED_BYTES: Final = 16 * 1024
EXPECTED_OUTPUT_TOKENS: Final = 256
"""Output tokens that a request is counted with while it runs, where it does not cap them lower."""


@mypyc_attr(acyclic=True, free_list_len=1)
class Completion:
    """One request for a model, understood.

    `body` is the client's object without engine-internal fields and is never changed; all lists, objects and long texts in it are
    JSON already (`orjson.Fragment`), so that they are written once for both workers, and what is kept of a request is no
    larger than what came; only `stream_options` stays an object. `prompt` is the JSON of the prompt's fields, in the
    endpoint's order, which is hashed as well; `prompt_tokens` is an estimate; `wants_usage` says whether the client itself requested usage with a stream of chunks. `local` is why
    no prefill worker can take part, None where one can. `size_bytes` is what the client sent.
    """

    __slots__ = (
        "body",
        "endpoint",
        "expected_output_tokens",
        "local",
        "model",
        "prompt",
        "prompt_tokens",
        "size_bytes",
        "stream",
        "wants_usage",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        body: dict[str, Any],
        prompt: tuple[bytes, ...],
        model: str,
        *,
        stream: bool,
        wants_usage: bool,
        prompt_tokens: int,
        expected_output_tokens: int,
        local: LocalReason | None,
        size_bytes: int,
    ) -> None:
        self.endpoint: Final = endpoint
        self.body: Final = body
        self.prompt: Final = prompt
        self.model: Final = model
        self.stream: Final = stream
        self.wants_usage: Final = wants_usage
        self.prompt_tokens: Final = prompt_tokens
        self.expected_output_tokens: Final = expected_output_tokens
        self.local: Final = local
        self.size_bytes: Final = size_bytes

    def with_body(self, body: dict[str, Any]) -> Completion:
        """Return the same request with another body; its prompt is as it was."""
        return Completion(
            self.endpoint,
            body,
            self.prompt,
            self.model,
            stream=self.stream,
            wants_usage=self.wants_usage,
            prompt_tokens=self.prompt_tokens,
            expected_output_tokens=self.expected_output_tokens,
            local=self.local,
            size_bytes=self.size_bytes,
        )


def parse(endpoint: Endpoint, raw: bytes) -> Completion:
    """Return the request in *raw*. Raise ApiError (400) that says what is wrong with it."""
    if len(raw) < _COLLECTED_BYTES or not gc.isenabled():
        return _parse(endpoint, raw)
    gc.disable()  # until what was parsed is bytes again: there are many objects, none of them in a circle
    try:
        return _parse(endpoint, raw)
    finally:
        gc.enable()


def _parse(endpoint: Endpoint, raw: bytes) -> Completion:
    reading = _Reading(endpoint, raw)
    reading.write_tools()
    reading.estimate()
    reading.write_prompt()
    return reading.completion()


def parse_in_steps(endpoint: Endpoint, raw: bytes) -> Generator[None, None, Completion]:
    """Yield between the steps of reading a large request, each of some milliseconds, and return it. Raise as `parse`.

    Python's garbage collector is off until the end, or until the generator is closed.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        reading = _Reading(endpoint, raw)
        yield
        reading.write_tools()
        yield
        reading.estimate()
        yield
        reading.write_prompt()
        yield
        return reading.completion()
    finally:
        if collects:
            gc.enable()


@mypyc_attr(acyclic=True, free_list_len=1)
class _Reading:
    """A request while it is read, in this order: itself, `write_tools`, `estimate`, `write_prompt`, `completion`."""

    __slots__ = ("_body", "_endpoint", "_local", "_prompt", "_prompt_tokens", "_size_bytes", "_tools_bytes")

    def __init__(self, endpoint: Endpoint, raw: bytes) -> None:
        self._endpoint = endpoint
        self._size_bytes = len(raw)
        self._body = _read(endpoint, raw)
        self._local = _local_reason(endpoint, self._body)
        self._tools_bytes = 0
        self._prompt_tokens = 0
        self._prompt: tuple[bytes, ...] = ()

    def write_tools(self) -> None:
        """Write everything but the prompt."""
        self._tools_bytes = _write_rest(self._body, self._endpoint.prompt)

    def estimate(self) -> None:
        """Estimate the prompt's length."""
        endpoint = self._endpoint
        tools_bytes = self._tools_bytes if endpoint.prompt else 0
        self._prompt_tokens = estimate_prompt_tokens(self._body, endpoint.prompt, tools_bytes=tools_bytes)

    def write_prompt(self) -> None:
        """Write the prompt."""
        self._prompt = _write_prompt(self._endpoint, self._body)

    def completion(self) -> Completion:
        """Return what was read."""
        endpoint, body = self._endpoint, self._body
        options = body.get("stream_options")
        return Completion(
            endpoint,
            body,
            self._prompt,
            body["model"],
            stream=body.get("stream") is True and endpoint.stream is not None,
            wants_usage=options is not None and options.get("include_usage") is True,
            prompt_tokens=self._prompt_tokens,
            expected_output_tokens=_expected_output(endpoint, body),
            local=self._local,
            size_bytes=self._size_bytes,
        )


def _read(endpoint: Endpoint, raw: bytes) -> dict[str, Any]:
    """Return the object in *raw*, checked, and without fields between engines."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise malformed(f"We could not parse the JSON body of your request: {error}.") from error
    if not isinstance(body, dict):
        raise malformed("The body of your request must be a JSON object.")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise malformed("You must provide a model parameter: a name from GET /v1/models.", "model")
    _check_bounds(body, model)
    endpoint.check(body)
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise malformed("`stream` must be true or false.", "stream")
    options = body.get("stream_options")
    if options is not None and (not isinstance(options, dict) or len(options) > MAX_OPTIONS):
        raise malformed(
            f"`stream_options` must be an object of at most {MAX_OPTIONS} fields.", "stream_options"
        )
    if not _ENGINE_FIELDS.isdisjoint(body):
        for name in ENGINE_FIELDS:
            body.pop(name, None)
    return body


def _check_bounds(body: dict[str, Any], model: str) -> None:
    """Raise ApiError (400) for more fields than any API has, and for texts that are longer than their purpose."""
    if len(body) > MAX_FIELDS:
        raise malformed(
            f"The body of your request has {len(body)} fields: at most {MAX_FIELDS} are accepted."
        )
    if len(model) > MAX_MODEL_LENGTH:
        raise malformed(f"`model` is longer than any name: at most {MAX_MODEL_LENGTH} characters.", "model")
    salt = body.get("cache_salt")
    if isinstance(salt, str) and len(salt) > MAX_SALT_LENGTH:
        raise malformed(f"`cache_salt` has more than {MAX_SALT_LENGTH} characters.", "cache_salt")


def capped(request: Completion, most_tokens: int | None) -> Completion:
    """Return *request* with its output bounded to *most_tokens*. Raise ApiError (400) if it requests more.

    A request that names no bound gets this one. Where a bound holds, what is no whole number is refused as well: an
    engine may read a larger one in it.
    """
    names = request.endpoint.output_caps
    if most_tokens is None or not names:
        return request
    given = {name: value for name in names if (value := request.body.get(name)) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value > most_tokens:
            raise malformed(f"`{name}` must be a whole number of at most {most_tokens} for this model.", name)
    return request if given else request.with_body(request.body | {names[-1]: most_tokens})


def prefill_body(request: Completion, backend: Backend) -> bytes:
    """Return the body for the prefill worker. Raise ValueError where the endpoint has no prefill phase."""
    form = request.endpoint.prefill
    if form is None:
        raise ValueError(f"{request.endpoint.path.decode()} has no prefill phase")
    body = request.body | {"stream": False, form.cap: 1, "kv_transfer_params": KEEP_CACHE}
    body["model"] = _name_for(request.model, backend)
    for name in form.caps_if_given:
        if body.get(name) is not None:
            body[name] = 1
    for name in form.without:
        body.pop(name, None)
    if request.stream:
        body.pop("stream_options", None)  # else the worker refuses them, as it should
    return _written(body)


def decode_body(request: Completion, backend: Backend, kv_transfer_params: bytes | None) -> bytes:
    """Return the body for the worker that answers, with what the prefill worker handed out, byte by byte."""
    body = _as_client_sent(request, backend)
    if kv_transfer_params is not None:
        body["kv_transfer_params"] = orjson.Fragment(kv_transfer_params)
    return _written(body)


def dispatched_body(request: Completion, backend: Backend, room: dict[str, object]) -> bytes:
    """Return the body for either worker of a pair that is sent the request at once; *room* is where the two meet."""
    body = _as_client_sent(request, backend)
    body |= room
    return _written(body)


def _as_client_sent(request: Completion, backend: Backend) -> dict[str, Any]:
    """Return a new body for *backend*, with usage requested if the router has to see it."""
    body = request.body.copy()
    body["model"] = _name_for(request.model, backend)
    if request.stream and request.endpoint.stream == "chunks" and not request.wants_usage:
        # Usage in every chunk would reach a client that has not requested any.
        kept = {n: v for n, v in (body.get("stream_options") or {}).items() if n != "continuous_usage_stats"}
        body["stream_options"] = kept | {"include_usage": True}
    return body


def _written(body: dict[str, Any]) -> bytes:
    """Return *body* as JSON. Raise ApiError (400) where it is deeper than orjson writes (it reads deeper ones)."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise malformed("The body is nested too deeply: at most 250 levels.") from error


def _local_reason(endpoint: Endpoint, body: dict[str, Any]) -> LocalReason | None:
    if endpoint.prefill is None:
        return "no_generation"
    return "request_form" if endpoint.prefill.local_if(body) else None


def _write_prompt(endpoint: Endpoint, body: dict[str, Any]) -> tuple[bytes, ...]:
    """Write the fields of the prompt as JSON, in *body* too, and return them. Raise ApiError (400) for too deep ones."""
    parts = []
    for name in endpoint.prompt:
        value = body.get(name)
        if value is not None:
            try:
                part = orjson.dumps(value)
            except orjson.JSONEncodeError as error:
                raise malformed(f"`{name}` is nested too deeply.", name) from error
            parts.append(part)
            body[name] = orjson.Fragment(part)
    return tuple(parts)


def _write_rest(body: dict[str, Any], prompt: tuple[str, ...]) -> int:
    """Write all lists, objects and long texts in *body* but the *prompt* as JSON. Return the bytes of the tools' definitions.

    Raise ApiError (400) for too deep ones.
    """
    tools_bytes = 0
    for name, value in body.items():
        kind = type(value)
        if (
            (kind is dict and name != "stream_options")
            or kind is list
            or (kind is str and len(value) > _SHORT)
        ):
            if name in prompt:
                continue
            try:
                written = orjson.dumps(value)
            except orjson.JSONEncodeError as error:
                raise malformed(
                    f"`{name[:64]}` is nested too deeply: at most 250 levels.", name[:64]
                ) from error
            body[name] = orjson.Fragment(written)
            if name == "tools":
                tools_bytes = len(written)
    return tools_bytes


def _name_for(model: str, backend: Backend) -> str:
    names = backend.names
    return model if model in names or not names else names[0]


def _expected_output(endpoint: Endpoint, body: dict[str, Any]) -> int:
    if not endpoint.output_caps:
        return 0
    for name in endpoint.output_caps:
        cap = body.get(name)
        if cap is not None:
            return (
                cap if isinstance(cap, int) and 0 < cap < EXPECTED_OUTPUT_TOKENS else EXPECTED_OUTPUT_TOKENS
            )
    return EXPECTED_OUTPUT_TOKENS
