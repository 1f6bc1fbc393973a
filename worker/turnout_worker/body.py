"""A request's body as vLLM's models read it, before any work: JSON, types within pydantic's leniency, contradictions.

What is refused here has touched nothing: a prompt that a prefill worker holds for the request stays pinned there.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from turnout_worker.errors import BodyError, ContradictionError

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["chat", "text", "response", "message"]
"""Which API a request came through; all but `text` are conversations."""

MAX_ELEMENTS: Final = 250_000
"""Most commas and opening brackets, those within texts included: what parsing costs beside a body's bytes."""
MAX_DEPTH: Final = 254
"""Deepest nesting: what the JSON writer can write, too."""
_MOST_INTEGER: Final = 2**63
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE: Final = frozenset({"0", "false", "f", "no", "n", "off"})


def object_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object that *body* holds. Raise BodyError.

    No body of the size that is accepted holds up the event loop for long, whatever its shape.
    """
    brackets = body.count(b"[") + body.count(b"{")
    if brackets + body.count(b",") > MAX_ELEMENTS:
        raise BodyError(f"the body has more than {MAX_ELEMENTS} elements")
    collects = gc.isenabled()
    gc.disable()  # it would look at all of a large body's objects again and again while they are made
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BodyError(f"the body is not JSON: {error}", f"body.{error.pos}") from error
    finally:
        if collects:
            gc.enable()
    if not isinstance(fields, dict):
        raise BodyError("the body must be a JSON object", "body")
    if brackets > MAX_DEPTH:
        try:
            orjson.dumps(fields)
        except orjson.JSONEncodeError as error:
            raise BodyError(f"the body is nested more than {MAX_DEPTH} levels deep") from error
    return fields


def read(fields: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Return *fields* with the types that the API of *kind* gives them. Raise BodyError."""
    found = dict(fields)
    for name, convert in _TYPES[kind].items():
        if found.get(name) is not None:
            found[name] = convert(f"body.{name}", found[name])
    if kind == "message":
        _require_limit(found)
    elif kind in {"chat", "text"}:
        _read_stream_options(found)
    if kind == "chat":
        _check_least(found)
    return found


def _whole(where: str, value: object) -> int:
    number: int | None = None
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):  # true is 1
        number = int(value)
    elif isinstance(value, str):
        try:
            number = int(value)
        except ValueError:
            number = None
    if number is None or not -_MOST_INTEGER <= number < _MOST_INTEGER:
        raise _wrong(where, "int_parsing", "Input should be a valid integer", value)
    return number


def _number(where: str, value: object) -> float:
    if isinstance(value, int | float | str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise _wrong(where, "float_parsing", "Input should be a valid number", value)


def _flag(where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in {0, 1}:
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise _wrong(where, "bool_parsing", "Input should be a valid boolean, unable to interpret input", value)


def _text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "string_type", "Input should be a valid string", value)
    return value


def _wholes(where: str, value: object) -> list[int]:
    if not isinstance(value, list):
        raise _wrong(where, "list_type", "Input should be a valid list", value)
    return [_whole(f"{where}.{index}", one) for index, one in enumerate(value)]


def _biases(where: str, value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise _wrong(where, "dict_type", "Input should be a valid dictionary", value)
    return {token: _number(f"{where}.{token}", bias) for token, bias in value.items()}


def _object(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "model_attributes_type", "Input should be a valid dictionary or object", value)
    return value


def _read_stream_options(fields: dict[str, Any]) -> None:
    options = fields.get("stream_options")
    if options is None:
        return
    if options and not fields.get("stream"):
        raise ContradictionError(
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            "stream_options",
        )
    read_options = dict(options)
    for name in ("include_usage", "continuous_usage_stats"):
        if options.get(name) is not None:
            read_options[name] = _flag(f"body.stream_options.{name}", options[name])
    fields["stream_options"] = read_options


def _require_limit(fields: dict[str, Any]) -> None:
    most = fields.get("max_tokens")
    if most is None:
        raise _wrong("body.max_tokens", "missing", "Field required", fields)
    if most < 1:
        raise _wrong("body.max_tokens", "value_error", "Value error, max_tokens must be positive", most)


def _check_least(fields: dict[str, Any]) -> None:
    most = fields.get("max_completion_tokens")
    most = fields.get("max_tokens") if most is None else most
    least = fields.get("min_tokens")
    if most is not None and least is not None and most >= 1 and least > most:
        raise ContradictionError(f"min_tokens must be less than or equal to max_tokens={most}, got {least}.")


def _wrong(where: str, kind: str, what: str, value: object) -> BodyError:
    shown = (
        f"<{type(value).__name__} of {len(value)} items>" if isinstance(value, dict | list) else repr(value)
    )
    shown = shown if len(shown) <= 50 else f"{shown[:25]}...{shown[-24:]}"  # noqa: PLR2004 - pydantic's own bounds
    return BodyError(
        f"1 validation error:\n  {{'type': {kind!r}, 'loc': {where!r}, 'msg': {what!r}, 'input': {shown}}}",
        where,
    )


_SAMPLING: Final[dict[str, Callable[[str, object], object]]] = {
    "ignore_eos": _flag,
    "min_tokens": _whole,
    "model": _text,
    "seed": _whole,
    "stream": _flag,
    "temperature": _number,
    "top_k": _whole,
    "top_p": _number,
}
_COMPLETION: Final = _SAMPLING | {
    "allowed_token_ids": _wholes,
    "frequency_penalty": _number,
    "logit_bias": _biases,
    "max_tokens": _whole,
    "n": _whole,
    "presence_penalty": _number,
    "stop_token_ids": _wholes,
    "stream_options": _object,
    "structured_outputs": _object,
    "thinking_token_budget": _whole,
    "truncate_prompt_tokens": _whole,
    "use_beam_search": _flag,
}
_TYPES: Final[dict[Kind, dict[str, Callable[[str, object], object]]]] = {
    "chat": _COMPLETION | {"logprobs": _flag, "max_completion_tokens": _whole, "top_logprobs": _whole},
    "text": _COMPLETION | {"best_of": _whole, "echo": _flag, "logprobs": _whole},
    "response": _SAMPLING | {"background": _flag, "max_output_tokens": _whole, "top_logprobs": _whole},
    "message": _SAMPLING | {"max_tokens": _whole},
}
