"""What a worker answers instead of tokens. Raised at the edge, turned into OpenAI error objects in one place.

WorkerError
├── ConfigurationError      flags that cannot work: told on start-up, exit status 2
└── AnswerError             ends in an HTTP answer
    ├── BadRequestError          400, malformed or longer than the model allows
    ├── UnknownModelError        404
    ├── UnknownPathError         404
    ├── MethodError              405
    ├── OverloadedError          503, the queue is full
    └── EngineFailedError        500, the engine could not go on with this request
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

import orjson


class WorkerError(Exception):
    """Base of all errors of the worker."""


class ConfigurationError(WorkerError):
    """Flags that cannot work."""


class AnswerError(WorkerError):
    """Ends in an HTTP answer with an OpenAI error object, in vLLM's form."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    type: ClassVar[str] = "InternalServerError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class BadRequestError(AnswerError):
    """Malformed, or longer than the model allows."""

    status = HTTPStatus.BAD_REQUEST
    type = "BadRequestError"


class UnknownModelError(AnswerError):
    """No model of that name is served."""

    status = HTTPStatus.NOT_FOUND
    type = "NotFoundError"


class UnknownPathError(AnswerError):
    """Nothing is served under that path."""

    status = HTTPStatus.NOT_FOUND
    type = "NotFoundError"


class MethodError(AnswerError):
    """The path does not know that method."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    type = "BadRequestError"


class OverloadedError(AnswerError):
    """The queue is full."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "ServiceUnavailableError"


class EngineFailedError(AnswerError):
    """The engine could not go on with this request."""


def error_body(error: AnswerError) -> bytes:
    """Return *error* as vLLM's error object."""
    return orjson.dumps(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.status.value,
            }
        }
    )
