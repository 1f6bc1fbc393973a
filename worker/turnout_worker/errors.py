"""What a worker answers instead of tokens. Raised at the edge, turned into OpenAI error objects in one place.

WorkerError
├── EngineLoopError         the engine cannot go on: exit status 1
├── ConfigurationError      flags that cannot work: reported on start-up, exit status 2
├── SourceError             the model's files cannot be had: exit status 3, with a reason that the operator reads
│   ├── UnauthorizedError        the source refuses the token or the keys, or demands some
│   ├── GatedError               the hub's terms for the model are not accepted
│   ├── NotFoundError            no such repository, bucket or folder
│   ├── RevisionError            the repository has no such branch, tag or commit
│   ├── UnreachableError         the source does not answer, or answers with an error of its own
│   ├── NothingMatchedError      the patterns leave no file
│   ├── NotAModelError           there is no config.json
│   ├── NoSpaceError             the files do not fit into the cache
│   ├── ChecksumError            a file is not what the source says
│   ├── CacheError               the cache cannot be written
│   └── LockedError              another process has been filling the cache's folder for too long
└── AnswerError             ends in an HTTP answer
    ├── BadRequestError          400, malformed or longer than the model allows: found while it is served
    │   ├── BodyError            400, found while the body is read, before any work
    │   │   └── ContradictionError   400, of another type
    │   └── EngineInputError     400, found by the engine, when a stream's answer has begun
    ├── UnknownModelError        404
    ├── UnknownPathError         404
    ├── MethodError              405
    ├── OverloadedError          503, the queue is full
    └── EngineFailedError        500, the engine could not go on with this request

EngineLoopError is raised where the engine itself cannot go on: the process ends.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar

import orjson

if TYPE_CHECKING:
    from turnout.reasons import SourceReason


class WorkerError(Exception):
    """Base of all errors of the worker."""


class ConfigurationError(WorkerError):
    """Flags that cannot work."""


class EngineLoopError(WorkerError):
    """The engine, or what drives it, has failed in a way that leaves its state unknown."""


class SourceError(WorkerError):
    """The files of a model or an adapter cannot be had. The message says what to do."""

    reason: ClassVar[SourceReason]
    """What the last line of the process begins with."""


class UnauthorizedError(SourceError):
    """The source refuses the token or the keys, or demands some."""

    reason = "Unauthorized"


class GatedError(SourceError):
    """The hub's terms for the model are not accepted by the token's account."""

    reason = "Gated"


class NotFoundError(SourceError):
    """There is no such repository, bucket or folder."""

    reason = "NotFound"


class RevisionError(SourceError):
    """The repository has no such branch, tag or commit."""

    reason = "RevisionNotFound"


class UnreachableError(SourceError):
    """The source does not answer, or answers with an error of its own."""

    reason = "Unreachable"


class NothingMatchedError(SourceError):
    """The patterns leave no file."""

    reason = "NothingMatched"


class NotAModelError(SourceError):
    """What is there is no model, or no adapter: its configuration is missing."""

    reason = "NotAModel"


class NoSpaceError(SourceError):
    """The files do not fit into the cache."""

    reason = "NoSpace"


class ChecksumError(SourceError):
    """A file is not what the source says."""

    reason = "ChecksumMismatch"


class CacheError(SourceError):
    """The cache's folder cannot be written."""

    reason = "CacheNotWritable"


class LockedError(SourceError):
    """Another process has been filling the cache's folder for too long."""

    reason = "CacheLocked"


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


class BodyError(BadRequestError):
    """What vLLM's models of a body refuse: wrong types, fields that contradict each other. In OpenAI's form on all paths."""

    type = "Bad Request"


class ContradictionError(BodyError):
    """Fields that contradict each other: found while the body is read, under the type of what serving code refuses."""

    type = BadRequestError.type


class EngineInputError(BadRequestError):
    """What only the engine's input processor refuses: a streamed request is answered with 200 and an error event."""


class UnknownModelError(AnswerError):
    """No model of that name is served."""

    status = HTTPStatus.NOT_FOUND
    type = "NotFoundError"


class UnknownPathError(AnswerError):
    """Nothing is served under that path: not said in OpenAI's form, for it is vLLM's web framework that says it."""

    status = HTTPStatus.NOT_FOUND


class MethodError(AnswerError):
    """The path does not know that method, but *methods*. Said as `UnknownPathError` is."""

    status = HTTPStatus.METHOD_NOT_ALLOWED

    def __init__(self, methods: str) -> None:
        super().__init__("Method Not Allowed")
        self.methods = methods


class OverloadedError(AnswerError):
    """The queue is full. In vLLM's words."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "Service Unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The engine is currently busy and cannot accept new requests. Please try again later or on a different "
            "instance."
        )


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
