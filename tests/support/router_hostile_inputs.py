"""What a client may send against the rules, byte by byte, and what each gets: the table of docs/hardening.md.

`python -m support.router_hostile_inputs`, run in tests/, writes the table into that page.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "hardening.md"
MARKS: Final = ("<!-- table: begin -->\n", "<!-- table: end -->\n")

BODY_LIMIT: Final = 4096
HEAD_LIMIT: Final = 4096
TARGET_LIMIT: Final = 1024
FIELD_LIMIT: Final = 100


@dataclass(frozen=True, slots=True)
class Case:
    """One input: `parts` are sent one after the other, the next one when the router has had time to read.

    `statuses` are the answers that come, `kept` says whether the connection can be used for a further request.
    """

    area: str
    name: str
    parts: tuple[bytes, ...]
    statuses: tuple[int, ...]
    kept: bool

    @property
    def row(self) -> str:
        answers = ", ".join(map(str, self.statuses)) or "none"
        return f"| {self.name} | {answers} | {'kept' if self.kept else 'closed'} |"


KEY: Final = b"sk-test"
"""The key that is known where one is needed."""
CHAT: Final = {"model": "tiny-1b", "messages": [{"role": "user", "content": "hello"}]}
GOOD: Final = json.dumps(CHAT).encode()
MODELS: Final = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"


def get(target: bytes = b"/v1/models", *fields: bytes, version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"GET %b HTTP/%b" % (target, version), b"host: x", *fields, b"", b""])


def post(body: bytes, *fields: bytes, length: bytes | None = None, version: bytes = b"1.1") -> bytes:
    size = b"%d" % len(body) if length is None else length
    head = [b"POST /v1/chat/completions HTTP/" + version, b"host: x", b"content-length: " + size, *fields]
    return b"\r\n".join([*head, b"", b""]) + body


def head(path: bytes, *fields: bytes, method: bytes = b"POST", length: int = 10) -> bytes:
    """Return the head of a request whose body of *length* bytes does not come along."""
    line = b"%b %b HTTP/1.1" % (method, path)
    return b"\r\n".join([line, b"host: x", b"content-length: %d" % length, *fields, b"", b""])


def hosted(value: bytes) -> bytes:
    return b"GET /v1/models HTTP/1.1\r\nhost: %b\r\n\r\n" % value


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n", version: bytes = b"1.1") -> bytes:
    head = b"POST /v1/chat/completions HTTP/%b\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" % version
    return head + b"".join(pieces) + end


def piece(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def chat(**more: object) -> bytes:
    return json.dumps(CHAT | more).encode()


def _case(area: str, name: str, data: bytes | tuple[bytes, ...], answer: object, *, kept: bool) -> Case:
    statuses = answer if isinstance(answer, tuple) else (answer,)
    return Case(area, name, data if isinstance(data, tuple) else (data,), statuses, kept)


def _closed(area: str, rows: dict[str, tuple[bytes | tuple[bytes, ...], object]]) -> list[Case]:
    return [_case(area, name, data, answer, kept=False) for name, (data, answer) in rows.items()]


def _kept(area: str, rows: dict[str, tuple[bytes | tuple[bytes, ...], object]]) -> list[Case]:
    return [_case(area, name, data, answer, kept=True) for name, (data, answer) in rows.items()]


_LINES = "Request line and version"
_FIELDS = "Header fields"
_ENDS = "Where a body ends"
_KINDS = "What a body is"
_HEADS = "What the head decides, its body still to come"
KEYS: Final = "With `--auth required`"
_SIZES = "Sizes"
_TIMES = "Times"
_ORDER = "Pipelining, Expect, Connection, Upgrade"
_PATHS = "Targets and methods"
_JSON = "JSON"

CASES: Final = (
    *_closed(
        _LINES,
        {
            "no HTTP (a TLS greeting)": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
            "HTTP/0.9": (b"GET /v1/models\r\n\r\n", 400),
            "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
            "HTTP/1.2": (get(version=b"1.2"), 400),
            "unknown method": (b"FOO /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 400),
            "method in lower case": (b"get /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 400),
            "bare LF after the request line": (b"GET /v1/models HTTP/1.1\nhost: x\r\n\r\n", 400),
            "a control character in the target": (get(b"/v1/\x01"), 400),
            "a byte above 0x7f in the target": (get(b"/v1/\xff"), 400),
            "HTTP/1.0": (get(version=b"1.0"), 200),
        },
    ),
    *_kept(
        _LINES,
        {
            "HTTP/1.0 with `Connection: keep-alive`": (
                get(b"/v1/models", b"connection: keep-alive", version=b"1.0"),
                200,
            ),
            "empty lines before a request": (b"\r\n\r\n" + MODELS, 200),
        },
    ),
    *_closed(
        _FIELDS,
        {
            "bare LF between fields": (b"GET /v1/models HTTP/1.1\r\nhost: x\na: b\r\n\r\n", 400),
            "CR within a value": (get(b"/v1/models", b"a: b\rc: d"), 400),
            "NUL within a value": (get(b"/v1/models", b"a: b\0c"), 400),
            "NUL within a name": (get(b"/v1/models", b"a\0b: c"), 400),
            "another control character in a value": (get(b"/v1/models", b"a: \x01"), 400),
            "folded value (obs-fold)": (get(b"/v1/models", b"a: b", b" c"), 400),
            "blank between name and colon": (get(b"/v1/models", b"a : b"), 400),
            "blank before the first field": (b"GET /v1/models HTTP/1.1\r\n host: x\r\n\r\n", 400),
            "empty name": (get(b"/v1/models", b": b"), 400),
            "two Host fields": (get(b"/v1/models", b"host: y"), 400),
            "no Host field in HTTP/1.1": (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
            "a Host with a blank": (hosted(b"a b"), 400),
            "a Host with a path": (hosted(b"a/b"), 400),
            "a Host with a user's name": (hosted(b"user@a"), 400),
            "a Host with a byte above 0x7f": (hosted(b"\xc3\xa9.example"), 400),
            "a Host with half of a percent-encoding": (hosted(b"a%2"), 400),
            "a Host that is a list": (hosted(b"a, b"), 400),
            "a Host that is a port alone": (hosted(b":80"), 400),
            "a Host with a port in letters": (hosted(b"a:http"), 400),
            "a Host with a port above 65535": (hosted(b"a:65536"), 400),
            "a Host with two ports": (hosted(b"a:80:80"), 400),
            "an IPv6 address in Host without brackets": (hosted(b"::1"), 400),
            "an IPv6 address in Host that is none": (hosted(b"[1::2::3]"), 400),
            "an IPv6 address in Host with a zone": (hosted(b"[fe80::1%eth0]"), 400),
            "an IPv6 address in Host with an open bracket": (hosted(b"[::1"), 400),
            "a Host of 400 characters": (hosted(b"a" * 400), 400),
            "an invalid Host in HTTP/1.0": (hosted(b"a b").replace(b"1.1", b"1.0"), 400),
            "two Content-Type fields": (
                post(GOOD, b"content-type: application/json", b"content-type: text/plain"),
                400,
            ),
        },
    ),
    *_kept(
        _FIELDS,
        {
            "a byte above 0x7f in a value": (get(b"/v1/models", b"a: \xff"), 200),
            "an empty Host": (hosted(b""), 200),
            "names and addresses in Host, with ports or without": (
                b"".join(
                    map(hosted, (b"a_b.example.:8080", b"a:", b"127.0.0.1:1", b"[::1]:9090", b"[v1.a]"))
                ),
                (200, 200, 200, 200, 200),
            ),
            "an x-request-id with bytes above 0x7f: not used": (
                get(b"/v1/models", b"x-request-id: \xc3\xa9"),
                200,
            ),
            "an x-request-id of 200 characters: not used": (
                get(b"/v1/models", b"x-request-id: " + b"a" * 200),
                200,
            ),
            "eighty x-turnout fields": (post(GOOD, *[b"x-turnout-%d: 1" % n for n in range(80)]), 200),
            "an x-turnout-timeout that is none": (
                post(GOOD, b"x-turnout-timeout: nan") + post(GOOD, b"x-turnout-timeout: \xd9\xa1"),
                (400, 400),
            ),
            "a traceparent that is none: not passed on": (post(GOOD, b"traceparent: 00-1-2-3"), 200),
            "a tracestate without end: not passed on": (post(GOOD, b"tracestate: " + b"a=b," * 700), 200),
        },
    ),
    *_closed(
        _ENDS,
        {
            "two Content-Lengths, equal": (post(b"{}", b"content-length: 2"), 400),
            "two Content-Lengths, different": (post(b"{}", b"content-length: 3"), 400),
            "Content-Length as a list": (post(b"{}", length=b"2, 2"), 400),
            "Content-Length with a sign": (post(b"{}", length=b"+2"), 400),
            "negative Content-Length": (post(b"{}", length=b"-2"), 400),
            "Content-Length in hexadecimal": (post(b"{}", length=b"0x2"), 400),
            "empty Content-Length": (post(b"{}", length=b""), 400),
            "Content-Length beyond 64 bits": (post(b"{}", length=b"99999999999999999999999"), 400),
            "Content-Length, then Transfer-Encoding": (
                post(b"0\r\n\r\n", b"transfer-encoding: chunked"),
                400,
            ),
            "Transfer-Encoding, then Content-Length": (
                chunked().replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n", 1),
                400,
            ),
            "Transfer-Encoding: identity": (
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n\r\n{}",
                501,
            ),
            "Transfer-Encoding: gzip, chunked": (
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
                501,
            ),
            "Transfer-Encoding: chunked, gzip": (
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
                400,
            ),
            "Transfer-Encoding: xchunked": (
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n",
                501,
            ),
            "Transfer-Encoding twice": (
                chunked().replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n", 1),
                400,
            ),
            "Transfer-Encoding in HTTP/1.0": (chunked(piece(GOOD), version=b"1.0"), 400),
            "chunk size that is none": (chunked(b"xyz\r\n"), 400),
            "negative chunk size": (chunked(b"-1\r\n"), 400),
            "chunk size beyond 64 bits": (chunked(b"fffffffffffffffff\r\n"), 400),
            "chunk longer than its size": (chunked(b"1\r\nxy\r\n"), 400),
            "bare LF after a chunk size": (chunked(b"1\nx\r\n"), 400),
            "bare LF in a chunk extension": (chunked(b"1;a=\nb\r\nx\r\n"), 400),
            "a Content-Length after a chunked body": (
                chunked(piece(GOOD), end=b"0\r\ncontent-length: 5\r\n\r\n"),
                400,
            ),
            "a body after a POST without a length": (
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n" + GOOD,
                (411, 400),
            ),
        },
    ),
    *_kept(
        _ENDS,
        {
            "a chunked body": (chunked(piece(GOOD[:9]), piece(GOOD[9:])), 200),
            "chunk extensions": (chunked(piece(GOOD[:9], b";a=b;c"), piece(GOOD[9:], b';d="e"')), 200),
            "a Host after a chunked body: it means nothing there": (
                chunked(piece(GOOD), end=b"0\r\nhost: y\r\n\r\n"),
                200,
            ),
            "fields after a chunked body: never part of the head": (
                chunked(piece(b"{}"), end=b"0\r\nauthorization: Bearer x\r\nx-request-id: mine\r\n\r\n"),
                400,
            ),
            "a POST without a length": (b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n", 411),
            "an empty body": (post(b""), 400),
            "a body after a GET": (get(b"/v1/models", b"content-length: 2") + b"{}", 200),
        },
    ),
    *_closed(
        _KINDS,
        {
            "Content-Encoding: gzip": (post(GOOD, b"content-encoding: gzip"), 415),
            "Content-Encoding: identity, br": (post(GOOD, b"content-encoding: identity, br"), 415),
            "two Content-Encodings": (
                post(GOOD, b"content-encoding: identity", b"content-encoding: zstd"),
                415,
            ),
        },
    ),
    *_kept(
        _KINDS,
        {
            "Content-Encoding: identity": (post(GOOD, b"content-encoding: Identity"), 200),
            "Content-Encoding without a body": (get(b"/v1/models", b"content-encoding: gzip"), 200),
            "Content-Type: application/json": (post(GOOD, b"content-type: application/json"), 200),
            "Content-Type with a charset": (
                post(GOOD, b'content-type: Application/JSON ; charset="UTF-8"; a=b'),
                200,
            ),
            "Content-Type: text/plain, form, multipart": (
                post(GOOD, b"content-type: text/plain")
                + post(GOOD, b"content-type: application/x-www-form-urlencoded")
                + post(GOOD, b"content-type: multipart/form-data; boundary=a"),
                (415, 415, 415),
            ),
            "Content-Type with another charset": (
                post(GOOD, b"content-type: application/json; charset=utf-16"),
                415,
            ),
            "an empty Content-Type": (post(GOOD, b"content-type:"), 415),
            "a Content-Type of a GET": (get(b"/v1/models", b"content-type: text/html"), 200),
        },
    ),
    *_closed(
        _HEADS,
        {
            "an unknown path": (head(b"/v1/none"), 404),
            "a method that the path does not know": (head(b"/v1/models"), 405),
            "Content-Type: text/plain": (head(b"/v1/chat/completions", b"content-type: text/plain"), 415),
            "a large body for an unknown path": (head(b"/v1/none", length=999_999), 404),
            "a large body of a wrong type": (
                head(b"/v1/chat/completions", b"content-type: a/b", length=999_999),
                415,
            ),
            "`Expect: 100-continue` for an unknown path": (head(b"/v1/none", b"expect: 100-continue"), 404),
            "`Expect: 100-continue`, compressed": (
                head(b"/v1/chat/completions", b"expect: 100-continue", b"content-encoding: gzip"),
                415,
            ),
            "a chunked body for an unknown path": (
                chunked(end=b"").replace(b"chat/completions", b"none"),
                404,
            ),
            "a chunked body for an unknown path that ends in no HTTP": (
                chunked(piece(b"a"), end=b"").replace(b"chat/completions", b"none") + b"x\r\n",
                404,
            ),
            "a chunked body for an unknown path, longer than 64 KiB": (
                (chunked(end=b"").replace(b"chat/completions", b"none"), *[piece(b" " * 8000)] * 9),
                404,
            ),
        },
    ),
    *_kept(
        _HEADS,
        {
            "an unknown path, its body later": ((head(b"/v1/none"), b" " * 9, b" "), 404),
            "a request before it": ((MODELS + head(b"/v1/none"), b" " * 10), (200, 404)),
            "an unknown path, its chunks later": (
                (
                    chunked(end=b"").replace(b"chat/completions", b"none"),
                    piece(b"a"),
                    piece(b"b") + b"0\r\na: b\r\n\r\n",
                ),
                404,
            ),
        },
    ),
    *_closed(
        KEYS,
        {
            "no key, the body does not come": (head(b"/v1/chat/completions"), 401),
            "no key, `Connection: close`, most of the body": (
                (head(b"/v1/chat/completions", b"connection: close", length=4000), *[b"{" * 500] * 7),
                401,
            ),
            "no key, a large body": (head(b"/v1/chat/completions", length=999_999) + b"{" * 2000, 401),
            "no key, a chunked body": (chunked(end=b""), 401),
            "no key, `Expect: 100-continue`": (head(b"/v1/chat/completions", b"expect: 100-continue"), 401),
            "a wrong key, `Expect: 100-continue`": (
                head(b"/v1/chat/completions", b"authorization: Bearer no", b"expect: 100-continue"),
                401,
            ),
            "a wrong key, the body does not come": (head(b"/v1/messages", b"x-api-key: no"), 401),
            "no key, GET with a body that does not come": (head(b"/v1/models", method=b"GET"), 401),
            "a key, the body does not come": (
                head(b"/v1/chat/completions", b"authorization: Bearer " + KEY),
                408,
            ),
        },
    ),
    *_kept(
        KEYS,
        {
            "no key": (post(GOOD), 401),
            "no key, the body later": ((head(b"/v1/chat/completions"), b"[" * 10), 401),
            "a wrong key": (post(GOOD, b"authorization: Bearer \xff"), 401),
            "two keys, the first one wrong": (
                post(GOOD, b"authorization: Bearer no", b"authorization: Bearer " + KEY),
                401,
            ),
            "a key": (post(GOOD, b"authorization: Bearer " + KEY), 200),
            "a key, `Expect: 100-continue`": (
                (
                    head(
                        b"/v1/chat/completions",
                        b"authorization: Bearer " + KEY,
                        b"expect: 100-continue",
                        length=len(GOOD),
                    ),
                    GOOD,
                ),
                (100, 200),
            ),
            "no key, an unknown path": (get(b"/v1/none"), 404),
        },
    ),
    *_closed(
        _SIZES,
        {
            "a target that is too long": (get(b"/" + b"a" * 2 * TARGET_LIMIT), 414),
            "a field that is too large": (get(b"/v1/models", b"a: " + b"b" * 2 * HEAD_LIMIT), 431),
            "a field that never ends": (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 3 * HEAD_LIMIT, 431),
            "a name that never ends": (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"b" * 3 * HEAD_LIMIT, 431),
            "too many fields": (get(b"/v1/models", *[b"a: b"] * (FIELD_LIMIT + 1)), 431),
            "too many fields after a chunked body": (
                chunked(piece(b"{}"), end=b"0\r\n" + b"a: b\r\n" * FIELD_LIMIT + b"\r\n"),
                431,
            ),
            "a body announced as too large": (post(b"", length=b"999999"), 413),
            "a body that is too large, sent at once": (post(b" " * 100 * BODY_LIMIT), 413),
            "chunks that add up to too much": (chunked(*[piece(b" " * 1024)] * 8), 413),
            "a chunk extension that never ends": (
                (chunked(b"1;a=", end=b"")) + b"b" * (3 * BODY_LIMIT + 2 * HEAD_LIMIT + 70_000),
                400,
            ),
            "a chunk extension that is too large": (chunked(piece(GOOD, b";a=" + b"b" * 5000)), 400),
            "chunk extensions that add up to too much": (
                chunked(*[piece(b" ", b";a=" + b"b" * 150)] * 40, piece(GOOD)),
                400,
            ),
            "the same, one after the other": (
                (chunked(end=b""), *[piece(b" ", b";a=" + b"b" * 150)] * 40),
                400,
            ),
        },
    ),
    *_closed(
        _TIMES,
        {
            "a head that stops": (b"GET / HTTP/1.1\r\nhost: x\r\na: b", 408),
            "a body that stops": (post(b"{", length=b"10"), 408),
            "a chunked body that stops": (chunked(b"a\r\n{", end=b""), 408),
            "a request, then a head that stops": (MODELS + b"GET / HTTP/1.1\r\nhost: x\r\na: b", (200, 408)),
            "a request, then a body that stops": (MODELS + post(b"{", length=b"10"), (200, 408)),
            "a connection without a request": (b"", ()),
            "a connection without a further request": (MODELS, 200),
        },
    ),
    *_closed(
        _ORDER,
        {
            "`Connection: close`": (get(b"/v1/models", b"connection: close"), 200),
            "bytes after a request with `Connection: close`": (
                get(b"/v1/models", b"connection: close") + MODELS,
                200,
            ),
            "a request, then no HTTP": (MODELS + b"\x00\x01\x02\r\n\r\n", (200, 400)),
            "an unknown expectation": (post(b"{}", b"expect: 200-ok"), 417),
            "`Expect: 100-continue` with a body that is too large": (
                post(b"", b"expect: 100-continue", length=b"999999"),
                413,
            ),
            "`Upgrade: websocket`": (
                get(b"/v1/models", b"connection: upgrade", b"upgrade: websocket") + MODELS,
                200,
            ),
            "`Upgrade: h2c` with a body": (post(GOOD, b"connection: upgrade", b"upgrade: h2c") + MODELS, 200),
            "`Upgrade: h2c` with a chunked body": (
                chunked(piece(GOOD)).replace(b"host: x", b"host: x\r\nconnection: upgrade\r\nupgrade: h2c"),
                200,
            ),
            "`Upgrade: h2c` with an empty body, then more": (
                post(b"", b"connection: upgrade", b"upgrade: h2c") + post(GOOD) + post(GOOD),
                400,
            ),
            "`Upgrade: h2c` with a body in pieces": (
                (post(GOOD, b"connection: upgrade", b"upgrade: h2c")[:-9], GOOD[-9:-4], GOOD[-4:]),
                200,
            ),
        },
    ),
    *_kept(
        _ORDER,
        {
            "three requests at once": (MODELS + post(GOOD) + MODELS, (200, 200, 200)),
            "a request in single bytes": (tuple(b"%c" % byte for byte in MODELS), 200),
            "`Expect: 100-continue`": ((post(GOOD, b"expect: 100-continue")[: -len(GOOD)], GOOD), (100, 200)),
            "`Expect: 100-continue` in HTTP/1.0": (
                post(GOOD, b"expect: 100-continue", b"connection: keep-alive", version=b"1.0"),
                200,
            ),
            "fields named in Connection: none is passed on": (
                post(GOOD, b"connection: keep-alive, x-secret", b"x-secret: a"),
                200,
            ),
            "`Upgrade` without `Connection: upgrade`": (get(b"/v1/models", b"upgrade: h2c"), 200),
        },
    ),
    *_closed(
        _PATHS,
        {
            "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n" + MODELS, 405),
            "TRACE": (b"TRACE /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 405),
            "a target in absolute form with a user's name": (get(b"http://user@a/v1/models"), 400),
            "a target in absolute form without a host": (get(b"http:///v1/models"), 400),
            "a target in absolute form with a port that is none": (get(b"http://a:99999/v1/models"), 400),
        },
    ),
    *_kept(
        _PATHS,
        {
            "a target in absolute form": (get(b"http://elsewhere.example:9/v1/models?a=b"), 200),
            "a target in absolute form, Host empty": (
                get(b"http://[::1]:9/v1/models").replace(b"host: x", b"host:"),
                200,
            ),
            "OPTIONS": (b"OPTIONS /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 204),
            "a worker's path in absolute form": (get(b"http://127.0.0.1:8000/metrics"), 404),
            "a query": (get(b"/v1/models?a=b"), 200),
            "`/metrics`, `/healthz`, `/admin/fleet`": (
                get(b"/metrics") + get(b"/healthz") + get(b"/admin/fleet"),
                (404, 404, 404),
            ),
            "`/health`, `/ping`, `/health?a=b`: whether it can serve": (
                get(b"/health") + get(b"/ping") + get(b"/health?a=b"),
                (200, 200, 200),
            ),
            "`/health/`, `/Health`, `/health/../metrics`": (
                get(b"/health/") + get(b"/Health") + get(b"/health/../metrics"),
                (404, 404, 404),
            ),
            "DELETE of `/health`": (b"DELETE /health HTTP/1.1\r\nhost: x\r\n\r\n", 405),
            "dot segments": (get(b"/v1/../metrics") + get(b"/v1/./models"), (404, 404)),
            "percent-encoded slashes and dots": (
                get(b"/v1%2fmodels") + get(b"/v1/%2e%2e/metrics") + get(b"/v1%2f..%2fmetrics"),
                (404, 404, 404),
            ),
            "percent-encoded letters": (get(b"/v1/model%73"), 404),
            "two slashes": (get(b"//v1/models"), 404),
            "a model's name with an encoded slash: a name, not a path": (get(b"/v1/models/..%2f..%2fx"), 404),
            "`OPTIONS *`": (b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 404),
            "a method that the path does not know": (get(b"/v1/chat/completions"), 405),
            "a method of another protocol": (b"PROPFIND /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        },
    ),
    *_kept(
        _JSON,
        {
            "no JSON": (post(b"{"), 400),
            "two documents": (post(GOOD + GOOD), 400),
            "no object": (post(b"[1]") + post(b"null") + post(b"5"), (400, 400, 400)),
            "a thousand and more levels": (post(b'{"model":' + b"[" * 2000), 400),
            "invalid UTF-8": (post(b'{"model":"\xff"}'), 400),
            "half of a surrogate pair": (post(chat(user="\ud800")), 400),
            "a byte order mark": (post(b"\xef\xbb\xbf" + GOOD), 400),
            "NaN and Infinity": (
                post(chat(temperature=float("nan"))) + post(chat(top_p=float("inf"))),
                (400, 400),
            ),
            "a number too large for a double": (post(GOOD[:-1] + b', "temperature": 1e999999}'), 400),
            "duplicate keys: the last one holds": (post(b'{"model": "other", ' + GOOD[1:]), 200),
            "a model that is no text": (post(b'{"model": 5, "messages": [{}]}'), 400),
            "a model's name of 300 characters": (post(chat(model="m" * 300)), 400),
            "an unknown model": (post(chat(model="other")), 404),
            "messages that are no list": (post(chat(messages={})), 400),
            "fields between engines: taken out": (
                post(chat(kv_transfer_params={"do_remote_prefill": True})),
                200,
            ),
            "unknown fields: passed on": (post(chat(something_new={"a": [1]})), 200),
        },
    ),
)


def render() -> str:
    """Return the tables of all cases, in Markdown."""
    lines: list[str] = []
    for area in dict.fromkeys(case.area for case in CASES):
        lines += ["", f"### {area}", "| Input | Answer | Connection |", "|---|---|---|"]
        lines += [case.row for case in CASES if case.area == area]
    return "\n".join(lines[1:]) + "\n"


def main() -> None:
    """Write the tables into the page."""
    before, rest = PAGE.read_text().split(MARKS[0])
    PAGE.write_text(before + MARKS[0] + render() + MARKS[1] + rest.split(MARKS[1])[1])


if __name__ == "__main__":
    main()
