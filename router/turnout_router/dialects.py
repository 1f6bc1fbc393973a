"""How errors are written: as OpenAI's object, as an event of its Responses API, or as Anthropic's.

A client library reads errors only in its own API's form, so the form follows the path that was asked. In every form
the event that breaks a stream off carries `error`, which client libraries raise: a cut answer is never taken for a
whole one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_router.errors import ApiError
    from turnout_router.http import Fields


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API's way to say what went wrong.

    `body` makes a whole answer of an error, `event` the server-sent event that ends a stream. `id_name` is the
    response field in which that API's clients look for the request's id.
    """

    body: Callable[[ApiError], bytes]
    event: Callable[[ApiError], bytes]
    id_name: bytes = b"x-request-id"

    def id_fields(self, shown: bytes) -> Fields:
        """Return the fields that tell a client its request's id; `x-request-id` is always among them."""
        own = (b"x-request-id", shown)
        return (own,) if self.id_name == own[0] else (own, (self.id_name, shown))


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


def _anthropic_event(error: ApiError) -> bytes:
    return b"event: error\ndata: %b\n\n" % orjson.dumps(_anthropic(error))


def _responses_event(error: ApiError) -> bytes:
    said = {"code": error.code, "message": str(error), "param": error.param}
    value = {"type": "error", **said, "sequence_number": 0, "error": {"type": error.type, **said}}
    return b"event: error\ndata: %b\n\n" % orjson.dumps(value)


def _openai_body(error: ApiError) -> bytes:
    return error.body()


def _openai_event(error: ApiError) -> bytes:
    return error.event()


OPENAI: Final = Dialect(_openai_body, _openai_event)
RESPONSES: Final = Dialect(_openai_body, _responses_event)
ANTHROPIC: Final = Dialect(
    lambda error: orjson.dumps(_anthropic(error)), _anthropic_event, id_name=b"request-id"
)
