"""HTTP/1.1 as bytes: heads of answers to clients and of requests to workers, and parsed requests."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from turnout_router.errors import ApiError
    from turnout_router.http1.accounts import Account

Fields = tuple[tuple[bytes, bytes], ...]

_STATUS_LINES: Final = {s.value: b"HTTP/1.1 %d %s\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}
JSON: Final = (b"content-type", b"application/json")
LAST_CHUNK: Final = b"0\r\n\r\n"
_KNOWN_SIZES: Final = 4096
_SIZES: Final = tuple(b"%x\r\n" % size for size in range(_KNOWN_SIZES))
"""Size lines of chunks as small as one token's event: writing one costs more than all the rest of a chunk."""
_NO_CONTENT: Final = 204
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@mypyc_attr(free_list_len=1)
class Request:
    """One request of a client, complete. Field names are in lower case; `target` is path and query, never decoded.

    `path` is the target without its query. `content_type` is the field's value, as it was sent. `refusal`: what it is
    answered, whatever it is for; its body was not kept. `payer` holds the body, `charged` bytes, until it is let go, `large` says
    as what.
    """

    __slots__ = (
        "body",
        "charged",
        "content_type",
        "fields",
        "has_body",
        "keep_alive",
        "large",
        "may_chunk",
        "method",
        "path",
        "payer",
        "refusal",
        "target",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        fields: Fields,
        body: bytes,
        *,
        keep_alive: bool,
        may_chunk: bool,
        has_body: bool,
        content_type: bytes | None = None,
        refusal: ApiError | None = None,
    ) -> None:
        self.method: Final = method
        self.target: Final = target
        self.path: Final = target if target.find(b"?") < 0 else target.partition(b"?")[0]
        self.fields: Final = fields
        self.body: Final = body
        self.keep_alive: Final = keep_alive
        self.may_chunk: Final = may_chunk
        self.has_body: Final = has_body
        self.content_type: Final = content_type
        self.refusal: Final = refusal
        self.payer: Account | None = None
        self.charged = len(body)
        self.large = False

    def field(self, name: bytes) -> bytes | None:
        """Return the value of the first field called *name* (lower case)."""
        for key, value in self.fields:
            if key == name:
                return value
        return None


def answer_head(
    status: int,
    fields: Fields,
    *,
    length: int | None,
    close: bool,
    chunked: bool = False,
    confirm_keep: bool = False,
) -> bytes:
    """Return the head of an answer. Neither *length* nor *chunked*: the end of the connection ends the body.

    *confirm_keep*: say that the connection is kept, which an HTTP/1.0 client does not know otherwise.
    """
    parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
    for name, value in fields:
        parts += (name, b": ", value, b"\r\n")
    if status == _NO_CONTENT:
        pass  # it has no body, and no field that says where one ends (RFC 9110, section 8.6)
    elif length is not None:
        parts.append(b"content-length: %d\r\n" % length)
    elif chunked:
        parts.append(b"transfer-encoding: chunked\r\n")
    if close:
        parts.append(b"connection: close\r\n")
    elif confirm_keep:
        parts.append(b"connection: keep-alive\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


def chunk(data: bytes) -> bytes:
    """Return *data* as one chunk of a chunked body."""
    size = len(data)
    return (_SIZES[size] if size < _KNOWN_SIZES else b"%x\r\n" % size) + data + b"\r\n"


def get(path: bytes, host: bytes) -> bytes:
    """Return a whole GET to a worker."""
    return b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (path, host)


def post(path: bytes, host: bytes, body: bytes, fields: Fields) -> bytes:
    """Return a whole POST of JSON to a worker."""
    extra = b"".join([b"%s: %s\r\n" % field for field in fields])
    return (
        b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"
        % (path, host, len(body), extra, body)
    )
