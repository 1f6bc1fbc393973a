"""The answers to a client whose request cannot be served, and the exceptions behind them.

The tree::

    RouterError
    ├── ApiError            an answer to the client: status, OpenAI error object, headers
    ├── UpstreamError       one worker failed one request; with the effect on its health
    │   └── Refusal         ... because the request is wrong; holds the answer to the client
    └── DiscoveryError      the fleet cannot be read from where it should be
        └── ConfigError     ... because the configuration is wrong; the text says what to change
"""

from __future__ import annotations

from typing import Final, Literal

import orjson

RETRY_AFTER_SECONDS: Final = 5
"""Retry-After of a request that no worker can serve: about how long ejected workers are left alone, or a pod
needs to be replaced by one that is already loading."""

UpstreamFault = Literal[
    "connect",
    "reset",
    "cut",
    "timeout",
    "status",
    "protocol",
    "overloaded",
    "stale",
    "refused",
    "too_large",
    "internal",
]
_NO_ILLNESS: Final = frozenset({"overloaded", "stale", "refused", "too_large", "internal"})


class RouterError(Exception):
    """Base of everything that the router raises."""


class ApiError(RouterError):
    """An answer to the client instead of a model's."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - OpenAI's own name of the field
        code: str | None = None,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.headers = headers
        self.close = close

    def body(self) -> bytes:
        """Return OpenAI's error object as JSON."""
        error = {"message": str(self), "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def event(self) -> bytes:
        """Return the same as one server-sent event, for a stream that breaks."""
        return b"data: " + self.body() + b"\n\n"


class UpstreamError(RouterError):
    """One worker failed one request. *status* is its HTTP status where it gave one."""

    def __init__(self, fault: UpstreamFault, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.fault: UpstreamFault = fault
        self.status = status

    @property
    def is_ill(self) -> bool:
        """Whether this speaks against the worker's health.

        Being full, closing an unused connection, refusing a wrong request, sending more than the router reads, and a fault of
        the router's own while it read the answer do not.
        """
        return self.fault not in _NO_ILLNESS


class Refusal(UpstreamError):  # noqa: N818 - no error of the worker: it is the answer
    """A worker refuses a request for its content. *body* is the answer to the client, in the form of its API."""

    def __init__(self, message: str, status: int, body: bytes) -> None:
        super().__init__("refused", message, status)
        self.body: bytes = body


class DiscoveryError(RouterError):
    """The fleet cannot be read from where it should be."""


class ConfigError(DiscoveryError):
    """The configuration is wrong; the text says where, and what to write instead."""


def malformed(message: str, param: str | None = None) -> ApiError:
    """Return 400: the request cannot be understood."""
    return ApiError(400, message, param=param)


def not_http(message: str) -> ApiError:
    """Return 400 after which the connection is closed, because the bytes that follow cannot be delimited."""
    return ApiError(400, message, close=True)


def faulty() -> ApiError:
    """Return 500 after which the connection is closed: the router itself failed, in a way that nothing foresees."""
    return ApiError(500, "The router failed on this request.", type="server_error", close=True)


def not_json() -> ApiError:
    """Return 415 to a client that says that its body is something else than JSON."""
    return ApiError(
        415,
        "Send the request as JSON in UTF-8, with Content-Type: application/json.",
        code="unsupported_media_type",
        headers=((b"accept", b"application/json"),),
    )


def key_missing() -> ApiError:
    """Return 401 to a client without a key."""
    return ApiError(
        401,
        "You did not provide an API key: send it in the header `Authorization: Bearer KEY`.",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def key_wrong() -> ApiError:
    """Return 401 to a client with an unknown key."""
    return ApiError(
        401,
        "Incorrect API key provided.",
        code="invalid_api_key",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def model_not_found(model: str) -> ApiError:
    """Return 404, the same for a name that does not exist and for one that the key may not call."""
    return ApiError(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def url_not_found(method: str, path: str) -> ApiError:
    """Return 404 for a path that is none of the API's."""
    return ApiError(404, f"Invalid URL ({method} {path[:200]})", code="unknown_url")


def method_not_allowed(method: str, path: str, allowed: bytes) -> ApiError:
    """Return 405 with the methods that *path* knows."""
    return ApiError(
        405,
        f"Not allowed to {method} on {path[:200]} (HINT: use {allowed.decode()})",
        code="method_not_supported",
        headers=((b"allow", allowed),),
    )


def unavailable(message: str) -> ApiError:
    """Return 503: no worker can serve this now, the client may retry."""
    return ApiError(
        503,
        message,
        type="server_error",
        code="service_unavailable",
        headers=((b"retry-after", b"%d" % RETRY_AFTER_SECONDS),),
    )


def overloaded(reason: str, code: str) -> ApiError:
    """Return 503: there are workers, but no room for this request at its turn."""
    return ApiError(
        503,
        f"The model is overloaded: {reason}. Try again later.",
        type="server_error",
        code=code,
        headers=((b"retry-after", b"%d" % RETRY_AFTER_SECONDS),),
    )


def deadline_passed() -> ApiError:
    """Return 504: the client's own deadline is over, and its request is not worked on any longer."""
    return ApiError(
        504,
        "No answer had begun within the time given in x-turnout-timeout.",
        type="server_error",
        code="deadline_exceeded",
    )


def from_upstream(failure: UpstreamError) -> ApiError:
    """Return the answer to a client whose last attempt ended with *failure*."""
    if failure.fault == "timeout":
        return ApiError(
            504, f"The model did not answer in time: {failure}.", type="server_error", code="timeout"
        )
    if failure.fault == "internal":
        return ApiError(500, "The router failed on this request.", type="server_error")
    if failure.fault in {"connect", "overloaded", "stale"}:
        return unavailable(f"No worker can take this request now: {failure}.")
    return ApiError(502, f"The model's worker failed: {failure}.", type="server_error", code="bad_gateway")


def stream_broken(reason: str) -> ApiError:
    """Return the error that ends a stream whose worker was lost; sent as an event."""
    return ApiError(
        502, f"The stream broke: {reason}. Send the request again.", type="server_error", code="stream_broken"
    )
