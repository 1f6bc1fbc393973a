"""The admin port under requests of every kind, over real connections: nothing fails inside, nothing guarded is shown."""

from __future__ import annotations

import asyncio
import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from support.router_fuzzing_world import Complaints, World, promise, read_answers
from turnout_router.admin import AdminServer, admin_app
from turnout_router.admin_access import AdminAccess

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

TOKEN: Final = b"the-token-of-this-fuzz"
SECRET: Final = b"w1"
"""A worker's id: what only the token opens."""
_SENTINEL: Final = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
_ROUNDS: Final = 60
_MOST_SECONDS: Final = 5.0
_AUTH: Final = b"authorization: Bearer " + TOKEN


def _get(target: bytes, *fields: bytes, method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"host: x", *fields, b"", b""])


_PATHS: Final = (
    *(
        b"/healthz",
        b"/readyz",
        b"/metrics",
        b"/admin/fleet",
        b"/admin/peers",
        b"/admin/decisions",
        b"/admin/decisions/r1",
    ),
    *(
        b"/admin/decisions?limit=5",
        b"/admin/decisions?limit=5&deployment=default/tiny",
        b"/",
        b"/docs",
        b"*",
        b"//metrics",
    ),
    *(
        b"/%61dmin/fleet",
        b"/admin/../admin/fleet",
        b"/ADMIN/fleet",
        b"/admin/fleet/",
        b"/metrics/../admin/fleet",
        b"/admin",
    ),
    *(
        b"/admin/decisions/" + b"a" * 3000,
        b"/admin/decisions/%00",
        b"/admin/decisions/a%2fb",
        b"http://x/admin/fleet",
    ),
)
_NUMBERS: Final = (
    *(b"0", b"1", b"1000", b"1001", b"-1", b"+1", b"01", b"1.0", b"1e3", b"0x10", b"", b"%20", b"1%00", b"9" * 30, b"9" * 5000),
    *("²", "٣", "\uff11"),
)  # fmt: skip
_QUERIES: Final = tuple(
    b"/admin/decisions?limit=" + (number.encode() if isinstance(number, str) else number)
    for number in (
        *_NUMBERS,
        b"%C2%B2",
        b"%D9%A3",
        b"5&limit=x",
        b"x&limit=5",
        b"5;deployment=x",
        b"%FF",
        b"5#x",
    )
)
_FIELDS: Final = (
    *(
        _AUTH,
        b"authorization: Bearer",
        b"authorization: Basic " + TOKEN,
        b"authorization: Bearer \xff",
        b"x: " + b"y" * 9000,
    ),
    *(
        b"x-forwarded-for: 127.0.0.1",
        b"forwarded: for=127.0.0.1",
        b"host: localhost",
        b"content-length: 3",
        b"expect: 100-continue",
    ),
    *(
        b"transfer-encoding: chunked",
        b"connection: upgrade\r\nupgrade: websocket",
        b"connection: close",
        b"content-length: -1",
    ),
    *(
        b"upgrade: h2c\r\nhttp2-settings: x",
        b"sec-websocket-key: x",
        b"accept-encoding: gzip",
        b"range: bytes=0-0",
        b"a\0: b",
    ),
)
ADMIN_CORPUS: Final = (
    *(_get(path) for path in (*_PATHS, *_QUERIES)),
    *(_get(path, _AUTH) for path in (*_PATHS, *_QUERIES)),
    *(_get(b"/admin/fleet", field) for field in _FIELDS),
    *(
        _get(b"/admin/fleet", _AUTH, method=method)
        for method in (b"POST", b"OPTIONS", b"DELETE", b"FOO", b"CONNECT")
    ),
    _get(b"/metrics") + _get(b"/admin/peers", _AUTH) + _get(b"/healthz"),
    b"POST /admin/fleet HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\n\r\n",
    b"GET /metrics\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


def mutate_admin(data: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
    """Return *data* with one to four of its targets, numbers, fields or bytes changed."""
    for _ in range(draw.randint(1, 4)):
        line, end, rest = data.partition(b"\r\n")
        words = line.split(b" ")
        match draw.randrange(8):
            case 0 if len(words) > 1:
                words[1] = draw.choice((*_PATHS, *_QUERIES))
                data = b" ".join(words) + end + rest
            case 1 if len(words) > 1:
                at = draw.randrange(len(words[1]) + 1)
                words[1] = words[1][:at] + draw.choice(_BITS) + words[1][at:]
                data = b" ".join(words) + end + rest
            case 2:
                data = line + end + draw.choice(_FIELDS) + b"\r\n" + rest
            case 3:
                words[0] = draw.choice((b"GET", b"HEAD", b"POST", b"PUT", b"get", b"", b"G\0T"))
                data = b" ".join(words) + end + rest
            case 4:
                data += draw.choice(corpus)
            case 5:
                at = draw.randrange(len(data) + 1)
                data = data[:at] + bytes((draw.getrandbits(8),)) + data[at + draw.randrange(2) :]
            case 6:
                data = data[: draw.randrange(len(data) + 1)]
            case _:
                data = re.sub(
                    rb"\d+", lambda _: bytes(draw.choice((b"0", b"7", b"9" * 25, b"-3"))), data, count=1
                )
    return data[:60_000]


_BITS: Final = (
    *(
        b"%",
        b"%00",
        b"%2f",
        b"%2e%2e",
        b"%ff",
        b"%C2%B2",
        b"?",
        b"&",
        b"=",
        b"#",
        b"/",
        b"//",
        b"\\",
        b";",
        b"limit=",
        b"&limit=9",
    ),
    *(b"\xff", b"\xc2\xb2", b"&deployment=%00", b"&deployment=" + b"x" * 500, b"+", b"..", b"@", b"[", b"*"),
)


class Admin:
    """The admin port, listening."""

    def __init__(self, loop: asyncio.AbstractEventLoop, world: World) -> None:
        self._loop = loop
        self._world = world
        self._complaints = Complaints()
        self.faults: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "token"
            file.write_bytes(TOKEN)
            access = AdminAccess(file)
        app = admin_app(self, world.metrics, world.backends, world.gateway.decisions, access=access)
        self._server = AdminServer(app, lambda _, error: self.faults.append(repr(error)))
        self._port = loop.run_until_complete(self._server.start("127.0.0.1", 0))

    @property
    def not_ready_because(self) -> str:
        return ""

    def close(self) -> None:
        """Stop listening."""
        self._loop.run_until_complete(self._server.stop())
        self._world.close()

    def check(
        self, data: bytes, cut: Callable[[bytes, random.Random], list[bytes]], draw: random.Random
    ) -> None:
        """Hold the port against *data*: it answers in good form, shows nothing without the token, and goes on."""
        root = logging.getLogger()
        root.addHandler(self._complaints)
        self._loop.set_exception_handler(lambda _, context: self.faults.append(repr(context)))
        try:
            written = self._loop.run_until_complete(self._ask(cut(data, draw)))
            health = self._loop.run_until_complete(self._ask([]))
        finally:
            root.removeHandler(self._complaints)
            self._loop.set_exception_handler(None)
            lines, self._complaints.lines = self._complaints.lines, []
            faults, self.faults = self.faults, []
        promise("the admin port does not fail", not lines, lines[:1])
        assert not faults, faults[0]
        assert health.startswith(b"HTTP/1.1 200 "), health[:200]
        for status in re.findall(rb"(?:^|\r\n\r\n|\n)HTTP/1\.1 (\d{3}) ", written):
            promise("the admin port does not fail", status != b"500", written[:300])
        if TOKEN not in data:
            assert b'"id":"' + SECRET not in written, "a worker was named without the token"
            assert b"retryBudget" not in written
        if not re.search(rb"HEAD|CONNECT|HTTP/1\.0|101 Switching", data + written):
            read_answers(written, closed=True)

    async def _ask(self, parts: list[bytes]) -> bytes:
        """Send *parts* and a last good request; return what came until nothing more does."""
        async with asyncio.timeout(_MOST_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
            try:
                return await self._converse(reader, writer, parts)
            finally:
                writer.transport.abort()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parts: list[bytes]
    ) -> bytes:
        written = b""
        silent = 0
        for part in (*parts, _SENTINEL):
            writer.write(part)
            await asyncio.sleep(0)
        reading: asyncio.Task[Any] = asyncio.ensure_future(reader.read(1 << 20))
        try:
            while silent < _ROUNDS:
                await asyncio.sleep(0)
                silent += 1
                if reading.done():
                    try:
                        piece = reading.result()
                    except ConnectionError:
                        return written
                    if not piece:
                        return written
                    written, silent = written + piece, 0
                    reading = asyncio.ensure_future(reader.read(1 << 20))
            return written
        finally:
            reading.cancel()
