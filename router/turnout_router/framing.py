"""What the head of a request must be like beyond HTTP's grammar, which the parser holds against every byte.

Where two readers could disagree on where a request ends or whom it is for, it is refused: that is how requests are
smuggled past a front door (RFC 9112, sections 3.2, 6.1 and 6.3; RFC 9110, section 10.1.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout_router.errors import ApiError, not_http

if TYPE_CHECKING:
    from turnout_router.http import Fields

_VERSIONS: Final = {"1.0", "1.1"}
_NEVER_SERVED: Final = {b"CONNECT", b"TRACE"}
_ALLOWED: Final = b"GET, HEAD, POST, OPTIONS"
_SCHEMES: Final = (b"http://", b"https://")


class Framing:
    """How the request goes on after its head. `length` is None where the body comes in chunks or not at all."""

    __slots__ = ("expects_continue", "has_body", "length")

    def __init__(self, length: int | None, *, has_body: bool, expects_continue: bool) -> None:
        self.length: Final = length
        self.has_body: Final = has_body
        self.expects_continue: Final = expects_continue

    def as_field(self) -> bytes:
        """Return the field line that says so, of a request that has a body."""
        return (
            b"transfer-encoding: chunked\r\n"
            if self.length is None
            else b"content-length: %d\r\n" % self.length
        )


def framing_of(method: bytes, version: str, fields: Fields | list[tuple[bytes, bytes]]) -> Framing:
    """Return how the body follows a head of *fields* (names in lower case). Raise ApiError that closes the connection."""
    if version not in _VERSIONS:
        raise not_http("Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    if method in _NEVER_SERVED:
        raise ApiError(
            405,
            f"{method.decode()} is not served here (HINT: use {_ALLOWED.decode()})",
            code="method_not_supported",
            headers=((b"allow", _ALLOWED),),
            close=True,
        )
    length = None
    hosts = 0
    chunked = expects_continue = False
    for name, value in fields:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            _check_coding(version, value)
            chunked = True
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise ApiError(417, "The only expectation met here is 100-continue.", close=True)
            expects_continue = version == "1.1"
    if hosts > 1 or (not hosts and version == "1.1"):
        raise not_http("Exactly one Host field is needed.")
    return Framing(length, has_body=chunked or length is not None, expects_continue=expects_continue)


def origin_form(target: bytes) -> bytes:
    """Return *target* as path and query: an absolute one, as sent to proxies, without its scheme and authority."""
    if target.startswith(b"/"):
        return target
    for scheme in _SCHEMES:
        if target[: len(scheme)].lower() == scheme:
            return b"/" + target[len(scheme) :].partition(b"/")[2]
    return target


def body_is_too_slow(received_bytes: int, seconds: float, grace_seconds: float, least_rate: float) -> bool:
    """Say whether a body of which *received_bytes* came within *seconds* is dribbled.

    After *grace_seconds* it must have come at *least_rate* bytes a second, the grace not counted.
    """
    return seconds > grace_seconds and received_bytes < (seconds - grace_seconds) * least_rate


def _check_coding(version: str, value: bytes) -> None:
    if version == "1.0":
        raise not_http("HTTP/1.0 knows no Transfer-Encoding: send a Content-Length.")
    if value.strip().lower() != b"chunked":
        raise ApiError(501, "The only Transfer-Encoding understood is chunked.", close=True)
