"""Which trace fields of a client are passed on to workers: those that W3C Trace Context would read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout_router.api.traces import passed_on

IDS = b"0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
GOOD = b"00-" + IDS + b"-01"

PARENTS = {
    "good": (GOOD, True),
    "not sampled": (GOOD[:-1] + b"0", True),
    "a later version": (b"cc-" + IDS + b"-01", True),
    "a later version with more": (b"cc-" + IDS + b"-01-what-the-future", True),
    "version 00 with more": (GOOD + b"-more", False),
    "version ff": (b"ff-" + IDS + b"-01", False),
    "a later version with more, but no dash": (b"cc-" + IDS + b"-01.", False),
    "a later version with a blank": (b"cc-" + IDS + b"-01-a b", False),
    "a later version without end": (b"cc-" + IDS + b"-01-" + b"a" * 300, False),
    "capitals": (GOOD.upper(), False),
    "a trace of zeros": (b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", False),
    "a parent of zeros": (b"00-0af7651916cd43dd8448eb211c80319c-" + b"0" * 16 + b"-01", False),
    "too short": (GOOD[:-1], False),
    "no hexadecimal": (GOOD.replace(b"a", b"g"), False),
    "empty": (b"", False),
    "bytes above 0x7f": (GOOD[:-1] + b"\xff", False),
    "a line of its own": (GOOD + b"\n", False),
}
STATES = {
    "one": (b"rojo=00f067aa0ba902b7", True),
    "two, with blanks": (b"rojo=00f067aa0ba902b7 , congo=t61rcWkgMzE", True),
    "empty members": (b"a=b,,c=d,", True),
    "a tenant's key": (b"fw529a3039@dt=FfAA", True),
    "blanks within a value": (b"a=b c", True),
    "32 members": (b",".join(b"a%d=b" % n for n in range(32)), True),
    "33 members": (b",".join(b"a%d=b" % n for n in range(33)), False),
    "a key twice": (b"a=b,a=c", False),
    "no value": (b"a=", False),
    "no key": (b"=b", False),
    "two equals signs": (b"a=b=c", False),
    "capitals in a key": (b"A=b", False),
    "a value of 256 characters": (b"a=" + b"b" * 256, True),
    "a value of 257 characters": (b"a=" + b"b" * 257, False),
    "too long in all": (b",".join(b"a%d=%b" % (n, b"b" * 200) for n in range(20)), False),
    "bytes above 0x7f": (b"a=\xff", False),
    "nothing": (b"", False),
    "commas": (b",,,", False),
}


@pytest.mark.parametrize(("value", "good"), PARENTS.values(), ids=PARENTS.keys())
def test_a_traceparent_is_passed_on_if_it_is_one(value: bytes, good: bool) -> None:  # noqa: FBT001 - a table's column
    """As it came; without a good one there is no tracestate either."""
    fields = ((b"tracestate", b"a=b"), (b"traceparent", value))
    assert passed_on(fields) == ((fields[1], fields[0]) if good else ())


@pytest.mark.parametrize(("value", "good"), STATES.values(), ids=STATES.keys())
def test_a_tracestate_is_passed_on_if_it_is_one(value: bytes, good: bool) -> None:  # noqa: FBT001 - a table's column
    """A bad one is left out, and the traceparent goes on without it."""
    parent = (b"traceparent", GOOD)
    assert passed_on((parent, (b"tracestate", value))) == (
        (parent, (b"tracestate", value)) if good else (parent,)
    )


def test_fields_sent_more_than_once() -> None:
    """Two parents are none; several states are one list."""
    parent = (b"traceparent", GOOD)
    assert passed_on((parent, parent)) == ()
    assert passed_on(((b"tracestate", b"a=b"),)) == ()
    several = ((b"tracestate", b"a=b"), parent, (b"tracestate", b"c=d"))
    assert passed_on(several) == (parent, (b"tracestate", b"a=b,c=d"))
    assert passed_on((parent, (b"tracestate", b"a=b"), (b"tracestate", b"a=c"))) == (parent,)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_whatever_is_passed_on_is_printable_and_bounded(parent: bytes, state: bytes) -> None:
    """No byte of a client's reaches a worker's parser unless it belongs there."""
    for put in (parent, GOOD, GOOD[:3] + parent):
        for _, value in passed_on(((b"traceparent", put), (b"tracestate", state))):
            assert re.fullmatch(rb"[\x20-\x7e\t]{1,2048}", value)
