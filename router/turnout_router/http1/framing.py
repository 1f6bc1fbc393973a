"""Rules for the head of a request beyond HTTP's grammar, which the parser checks.

If two readers could disagree about the end or the host of a request, it is refused: that is how requests are
smuggled past a proxy (RFC 9112, sections 3.2, 6.1 and 6.3; RFC 9110, section 10.1.1).
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from turnout_router.errors import ApiError, not_http

if TYPE_CHECKING:
    from turnout_router.http1.http import Fields

_VERSIONS: Final = {"1.0", "1.1"}
_NEVER_SERVED: Final = {b"CONNECT", b"TRACE"}
_ALLOWED: Final = b"GET, HEAD, POST, OPTIONS"
_SCHEMES: Final = (b"http://", b"https://")
_READ: Final = frozenset(
    (b"host", b"content-length", b"content-type", b"content-encoding", b"transfer-encoding", b"expect")
)
_AUTHORITY: Final = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+|v[0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+)\]"
    rb"|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::([0-9]*))?"
)
"""RFC 3986, section 3.2, without userinfo, which `http` does not know."""
_LONGEST_AUTHORITY: Final = 300
_HIGHEST_PORT: Final = 65535
_SINGLE: Final = {b"host": "Host", b"content-type": "Content-Type"}
_PLAIN: Final = frozenset((b"", b"identity"))
_CHARSETS: Final = frozenset((b"utf-8", b"utf8", b"us-ascii", b"ascii"))
_MOST_HOSTS: Final = 256
_GOOD_HOSTS: Final[set[bytes]] = set()
"""Values of Host that were found good: most clients send the same one again and again."""


class Framing:
    """How the request goes on after its head. `length` is None where the body comes in chunks or not at all.

    `content_type` says what the body is, None where nothing does.
    """

    __slots__ = ("content_type", "expects_continue", "has_body", "length")

    def __init__(
        self, length: int | None, content_type: bytes | None, *, has_body: bool, expects_continue: bool
    ) -> None:
        self.length: Final = length
        self.content_type: Final = content_type
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
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in _READ:
            if name in values:
                _repeat(values, name, value)
            else:
                values[name] = value
    _check_host(values.get(b"host"), version)
    coding = values.get(b"transfer-encoding")
    if coding is not None:
        _check_coding(version, coding)
    length = values.get(b"content-length")
    has_body = length is not None or coding is not None
    if has_body and b"content-encoding" in values:
        _check_content_coding(values[b"content-encoding"])
    expectation = values.get(b"expect")
    if expectation is not None and expectation.lower() != b"100-continue":
        raise ApiError(417, "The only expectation met here is 100-continue.", close=True)
    return Framing(
        None if length is None else int(length),
        values.get(b"content-type"),
        has_body=has_body,
        expects_continue=expectation is not None and version == "1.1",
    )


def check_authority(target: bytes) -> None:
    """Raise ApiError (400) where *target* is in absolute form and the authority in it is none (RFC 9110, section 4.2)."""
    for scheme in _SCHEMES:
        if target[: len(scheme)].lower() == scheme:
            authority = re.split(rb"[/?#]", target[len(scheme) :], maxsplit=1)[0]
            if not authority or authority.startswith(b":") or not is_authority(authority):
                raise not_http("The target names no host that can exist.")


def is_authority(value: bytes) -> bool:
    """Return whether *value* is a host, a port behind it or not, or empty."""
    match = _AUTHORITY.fullmatch(value) if len(value) <= _LONGEST_AUTHORITY else None
    if match is None:
        return False
    literal, port = match[1], match[2]
    if port and (len(port) > len("65535") or int(port) > _HIGHEST_PORT):
        return False
    if literal is not None and not literal.startswith(b"v"):
        try:
            ipaddress.IPv6Address(literal.decode("ascii"))
        except ValueError:
            return False
    return True


def is_json(content_type: bytes) -> bool:
    """Return whether *content_type* is JSON in UTF-8, the only encoding that JSON has (RFC 8259, section 8.1)."""
    kind, _, parameters = content_type.partition(b";")
    if kind.strip().lower() != b"application/json":
        return False
    for parameter in parameters.split(b";"):
        name, _, value = parameter.partition(b"=")
        if name.strip().lower() == b"charset" and value.strip().strip(b'"').lower() not in _CHARSETS:
            return False
    return True


def origin_form(target: bytes) -> bytes:
    """Return *target* as path and query: an absolute one, as sent to proxies, without its scheme and authority."""
    if target.startswith(b"/"):
        return target
    for scheme in _SCHEMES:
        if target[: len(scheme)].lower() == scheme:
            return b"/" + target[len(scheme) :].partition(b"/")[2]
    return target


def body_is_too_slow(received_bytes: int, seconds: float, grace_seconds: float, least_rate: float) -> bool:
    """Return whether a body of which *received_bytes* came within *seconds* is dribbled.

    After *grace_seconds* it must have come at *least_rate* bytes a second, the grace not counted.
    """
    return seconds > grace_seconds and received_bytes < (seconds - grace_seconds) * least_rate


def _check_coding(version: str, value: bytes) -> None:
    if version == "1.0":
        raise not_http("HTTP/1.0 knows no Transfer-Encoding: send a Content-Length.")
    if value.strip().lower() != b"chunked":
        raise ApiError(501, "The only Transfer-Encoding understood is chunked.", close=True)


def _repeat(values: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    """Take a field that has been sent before: as one list (RFC 9110, section 5.3), or not at all."""
    if name in _SINGLE:
        raise not_http(f"{_SINGLE[name]} must not be sent twice.")
    values[name] += b"," + value


def _check_host(value: bytes | None, version: str) -> None:
    if value is None:
        if version == "1.1":
            raise not_http("Exactly one Host field is needed.")
    elif value not in _GOOD_HOSTS:
        if value.startswith(b":") or not is_authority(value):
            raise not_http("The Host field names no host that can exist.")
        if len(_GOOD_HOSTS) >= _MOST_HOSTS:
            _GOOD_HOSTS.clear()
        _GOOD_HOSTS.add(value)


def _check_content_coding(value: bytes) -> None:
    for coding in value.lower().split(b","):
        if coding.strip() not in _PLAIN:
            raise ApiError(
                415,
                "Bodies are taken as they are: send yours without Content-Encoding.",
                code="unsupported_content_encoding",
                headers=((b"accept-encoding", b"identity"),),
                close=True,
            )
