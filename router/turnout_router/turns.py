"""Long work in steps, between which the event loop does its other work."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from turnout_router.drive import Signal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator

_T = TypeVar("_T")


async def in_turns(steps: Generator[object, None, _T], loop: asyncio.AbstractEventLoop) -> _T:
    """Run *steps*, one in each turn of the event loop, and return what they return."""
    try:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: _T = end.value
                return result
            signal = Signal(loop)
            loop.call_soon(signal.set)
            await signal
    finally:
        steps.close()
