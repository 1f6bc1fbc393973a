"""How errors are written: as OpenAI's object, as an event of its Responses API, or as Anthropic's.

A client library reads errors only in its own API's form, so the form follows the path of the request. In every form
the event that breaks a stream off carries `error`, which client libraries raise: a cut answer is never taken for a
whole one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout_router.api.untrusted import loads, words
from turnout_router.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.http1.http import Fields

_LONGEST_MESSAGE: Final = 4096
"""Characters of a worker's error that a client gets."""
_MOST_DETAILS: Final = 8
_MESSAGE: Final = re.compile(rb'"message":\s*("(?:[^"\\]|\\.){0,4096})', re.DOTALL)
"""The beginning of a message in an error object that was cut, as JSON without its closing quote."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API's way to say what went wrong.

    `body` makes a whole answer of an error, `event` the server-sent event that ends a stream, as the one with a number where
    events are numbered. `is_own` says of an error object whether it has this API's form. `id_name` is the response field in
    which that API's clients look for the request's id.
    """

    body: Callable[[ApiError], bytes]
    event: Callable[[ApiError, int], bytes]
    is_own: Callable[[dict[str, Any]], bool]
    id_name: bytes = b"x-request-id"

    def id_fields(self, shown: bytes) -> Fields:
        """Return the fields with a request's id for its client; `x-request-id` is always among them."""
        own = (b"x-request-id", shown)
        return (own,) if self.id_name == own[0] else (own, (self.id_name, shown))

    def error_of(self, status: int, body: bytes) -> bytes:
        """Return a worker's answer *body* with *status* (4xx) in the form that this API's clients read.

        As it is where it has their form. A part of an object, or any other text, becomes the message.
        """
        try:
            value = loads(body)
        except orjson.JSONDecodeError:
            value = _cut_message(body)
        if isinstance(value, dict) and self.is_own(value):
            return body
        return self.restated(status, value)

    def restated(self, status: int, value: object) -> bytes:
        """Return an error with *status* and with what *value*, an error of another form, says."""
        found = value.get("error", value) if isinstance(value, dict) else value
        kind, code, param = "invalid_request_error", None, None
        if isinstance(found, dict):
            kind = words(found.get("type")) or kind
            code = words(found.get("code")) or None
            param = words(found.get("param")) or None
        message = (_message_in(found) or f"the model refused the request with {status}")[:_LONGEST_MESSAGE]
        return self.body(ApiError(status, message, type=kind, code=code, param=param))


_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    411: "invalid_request_error",
    413: "request_too_large",
    414: "invalid_request_error",
    415: "invalid_request_error",
    417: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's error types by status; any other one is an `api_error`."""


def _anthropic(error: ApiError) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def _anthropic_event(error: ApiError, _number: int) -> bytes:
    return b"event: error\ndata: %b\n\n" % orjson.dumps(_anthropic(error))


def _responses_event(error: ApiError, number: int) -> bytes:
    details = {"code": error.code, "message": str(error), "param": error.param}
    value = {"type": "error", **details, "sequence_number": number, "error": {"type": error.type, **details}}
    return b"event: error\ndata: %b\n\n" % orjson.dumps(value)


def _openai_body(error: ApiError) -> bytes:
    return error.body()


def _openai_event(error: ApiError, _number: int) -> bytes:
    return error.event()


def _is_openai(value: dict[str, Any]) -> bool:
    return isinstance(value.get("error"), dict) or isinstance(value.get("message"), str)


def _is_anthropic(value: dict[str, Any]) -> bool:
    return value.get("type") == "error" and isinstance(value.get("error"), dict)


def _message_in(value: object) -> str:
    """Return the words of an error: a text, an object with a message, or FastAPI's `detail` (a text or a list of findings)."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return ""
    message = value.get("message") or value.get("detail")
    if isinstance(message, list):
        return "; ".join(_finding(one) for one in message[:_MOST_DETAILS])
    return message if isinstance(message, str) else ""


def _cut_message(body: bytes) -> str:
    found = _MESSAGE.search(body)
    if found is not None:
        try:
            return str(orjson.loads(found[1] + b'"'))
        except orjson.JSONDecodeError:
            pass  # cut within an escape: the text as it is
    return body[:_LONGEST_MESSAGE].decode("utf-8", "replace")


def _finding(value: object) -> str:
    if not isinstance(value, dict):
        return words(value)[:200]
    place = value.get("loc")
    where = ".".join(words(one)[:100] for one in place[:8]) if isinstance(place, list) else ""
    message = words(value.get("msg"))[:500]
    return f"{where}: {message}" if where else message


OPENAI: Final = Dialect(_openai_body, _openai_event, _is_openai)
RESPONSES: Final = Dialect(_openai_body, _responses_event, _is_openai)
ANTHROPIC: Final = Dialect(
    lambda error: orjson.dumps(_anthropic(error)),
    _anthropic_event,
    _is_anthropic,
    id_name=b"request-id",
)
