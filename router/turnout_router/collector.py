"""The garbage collector kept off while much is decoded at once: it would walk the heap for what holds no cycles."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator

LARGE_BYTES: Final = 16 * 1024
"""Below this a decoder makes too few objects to start a collection that matters."""


@contextmanager
def collector_off(size: int) -> Generator[None]:
    """Keep the collector off within the context where *size* bytes are to be decoded that are many."""
    if size < LARGE_BYTES or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
