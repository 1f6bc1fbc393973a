"""The prefill phase of a request: what must be right before a prompt is computed, and what a prefill worker hands out.

Not compiled: msgspec reads the annotations of its structures, which mypyc leaves out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from turnout_router.api.usage import is_aborted
from turnout_router.errors import UpstreamError, malformed

if TYPE_CHECKING:
    from turnout.routing import Backend
    from turnout_router.api.openai import Completion

HANDED_OUT_SECONDS: Final = 20.0
"""How long a cache that was handed out is passed on to another decode worker: vLLM keeps it for 30 s."""
_FLAGS: Final = ("include_usage", "continuous_usage_stats")
_MOST_DIGITS: Final = 12


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    """What is read of a prefill worker's answer. The parameters stay bytes: they are the decode worker's to read."""

    kv_transfer_params: msgspec.Raw = msgspec.Raw()
    choices: list[_Choice] = []


_decode: Final = msgspec.json.Decoder(_Answer).decode


class Handed:
    """The cache of a prompt on *backend*, and the parameters with which a decode worker fetches it: a JSON object.

    It can be fetched once. `taken_over`: a decode worker before the present one refused the request without fetching it.
    """

    __slots__ = ("_until", "backend", "params", "taken_over")

    def __init__(self, backend: Backend, params: bytes, now: float) -> None:
        self.backend: Final = backend
        self.params: Final = params
        self.taken_over = False
        self._until: Final = now + HANDED_OUT_SECONDS

    def lasts(self, now: float) -> bool:
        """Return whether the prefill worker still keeps it."""
        return now < self._until


def handed_in(body: bytes, backend: Backend, now: float) -> Handed:
    """Return what *backend* hands out in its answer *body*. Raise UpstreamError where it hands out nothing."""
    try:
        answer = _decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UpstreamError("protocol", "the prefill worker's answer is not what was asked for") from error
    if any(is_aborted({"choices": [{"finish_reason": one.finish_reason}]}) for one in answer.choices[:1]):
        raise UpstreamError("reset", "the prefill worker cut its answer short")
    params = bytes(answer.kv_transfer_params).strip()
    if not params.startswith(b"{") or params[1:-1].strip() == b"":
        raise UpstreamError("protocol", "the prefill worker handed out no cache")
    try:
        params.decode()
    except UnicodeDecodeError as error:
        raise UpstreamError("protocol", "what the prefill worker handed out is not UTF-8") from error
    return Handed(backend, params, now)


def check_before_prefill(request: Completion, context_tokens: int | None) -> None:
    """Raise ApiError (400) for what only the decode worker would refuse, after the prompt has been computed in vain.

    The prefill worker is asked for one token, so it never sees the caps of the output. *context_tokens* is how long prompt
    and answer may be together, None where that is not known.
    """
    body, form = request.body, request.endpoint.prefill
    cap = _cap_of(request, context_tokens)
    if form is not None and cap is None:
        if form.needs_cap:
            raise malformed(f"`{form.cap}` is needed: a whole number of at least 1.", form.cap)
        cap = form.default_cap
    given = body.get("min_tokens")
    least = 0 if given is None else _whole(given)
    if least is None or least < 0:
        raise malformed("`min_tokens` must be a whole number of at least 0.", "min_tokens")
    if cap is not None and least > cap:
        raise malformed(f"`min_tokens` is {least}, above the bound of the output, {cap}.", "min_tokens")
    options = body.get("stream_options")
    if request.stream and isinstance(options, dict):
        for name in _FLAGS:
            if not isinstance(options.get(name), bool | None):
                raise malformed(f"`stream_options.{name}` must be true or false.", "stream_options")


def _cap_of(request: Completion, context_tokens: int | None) -> int | None:
    """Return the first bound of the output that is given, None without any. Raise ApiError (400) for one that is none."""
    cap: int | None = None
    for name in request.endpoint.output_caps:
        value = request.body.get(name)
        if value is None:
            continue
        whole = _whole(value)
        if whole is None or whole < 1:
            raise malformed(f"`{name}` must be a whole number of at least 1.", name)
        if context_tokens is not None and whole > context_tokens:
            raise malformed(
                f"`{name}` is {whole}, but this model's context has {context_tokens} tokens in all.", name
            )
        cap = whole if cap is None else cap
    return cap


def _whole(value: object) -> int | None:
    """Return the whole number that vLLM's validation reads in *value*, None where it reads none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and 0 < len(value) <= _MOST_DIGITS and value.isascii() and value.isdigit():
        return int(value)
    return None
