"""JSON of clients and workers, read so that no shape of it keeps the event loop busy for long.

What parsing costs follows the number of values, not of bytes: sixteen megabytes of empty lists are five million
objects, and Python's garbage collector looks through them again and again while they are made. So the collector is off
while something large is parsed, and the values in a large body are counted before it is parsed, a slice at a time.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Generator

UNCOUNTED_BYTES: Final = 128 * 1024
"""Up to this size a body is parsed without counting: at worst 43,000 values, some 4 ms."""
MOST_VALUES: Final = 1_250_000
"""Weight of the values in a larger body, see `weigh`: a prompt of a million token ids finds room, and the worst shape
takes some 40 ms to parse."""
SLICE_BYTES: Final = 256 * 1024
"""How much is looked at between two turns of the event loop."""
_COLLECTED_BYTES: Final = 16 * 1024
"""Below this size the collector has nothing to look through."""
_CONTAINER_WEIGHT: Final = 3
"""A list or an object takes about three times as long to make as a number."""
_NAME_WEIGHT: Final = 3
"""A name that was not seen before is kept, and the object grows with it."""
_FRACTION_WEIGHT: Final = 2
"""A number that is not whole takes three times as long to write."""
_OBJECT_BYTES: Final = 32
"""Of one unit of weight: an empty list has 56 bytes and its place 8, a short text 50, a number 28."""
_BACKSLASH: Final = b"\\"


class TooManyValues(Exception):  # noqa: N818 - a finding, answered with 400
    """A body has more values than are parsed."""


def parsed_bytes(body: bytes, weight: int) -> int:
    """Return about how many bytes the values of *body*, of that *weight*, take while they are objects, beside itself.

    A text with one letter beyond Latin-1 takes two or four bytes a letter, and one more for each when it is written.
    """
    return len(body) * (1 if body.isascii() else 5) + _OBJECT_BYTES * weight


def loads(data: bytes) -> Any:
    """Return the value of the JSON text *data*. Raise orjson.JSONDecodeError where it is none."""
    if len(data) < _COLLECTED_BYTES or not gc.isenabled():
        return orjson.loads(data)
    gc.disable()
    try:
        return orjson.loads(data)
    finally:
        gc.enable()


def words(value: object) -> str:
    """Return *value* as text where it is a text, a number or a truth value, else "".

    Lists and objects can be nested so deeply that Python fails to write what orjson has parsed.
    """
    return str(value) if isinstance(value, str | int | float) else ""


def weigh(body: bytes, most: int = MOST_VALUES) -> Generator[int, None, int]:
    """Count the values of the JSON text *body*: yield the weight so far after each slice of it, and return it in the end.

    A separator weighs 1, a name in an object 3, a string 1, a point or an exponent of a number 2 (so does a truth value, for its `e`), a list or an
    object 3. Raise TooManyValues above *most*. What stands within
    strings does not count. Text that is not JSON is weighed, too: the parser judges it.
    """
    weight = 0
    quotes = 0
    escaped = False  # the first byte of the next slice
    for at in range(0, len(body), SLICE_BYTES):
        piece = body[at : at + SLICE_BYTES]
        if escaped:
            piece = piece[1:]
        slashes = len(piece) - len(piece.rstrip(_BACKSLASH))
        escaped = slashes % 2 == 1
        if piece.find(_BACKSLASH) >= 0:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        outside = b" ".join(piece.split(b'"')[quotes % 2 :: 2])
        quotes += piece.count(b'"')
        containers = outside.count(b"[") + outside.count(b"{")
        fractions = outside.count(b".") + outside.count(b"e") + outside.count(b"E")
        weight += (
            outside.count(b",")
            + _NAME_WEIGHT * outside.count(b":")
            + _FRACTION_WEIGHT * fractions
            + _CONTAINER_WEIGHT * containers
        )
        if weight + quotes // 2 > most:
            raise TooManyValues
        yield weight + quotes // 2
    return weight + quotes // 2
