"""The ids of requests for clients, workers and people, and the fields that are for the router itself."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from turnout_router.api.directives import PREFIX
from turnout_router.api.traces import PARENT, STATE, passed_on

if TYPE_CHECKING:
    from turnout_router.http1.http import Fields, Request

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TRACE_FIELDS: Final = (PARENT, STATE)


@mypyc_attr(acyclic=True, free_list_len=1)
class RequestIdentity:
    """How a request is called: `shown` to the client, `sent` to workers (unique, so that no client can clash).

    `directives` are the client's fields that are for the router itself; `explain`: whether the client gets to know why its
    workers were chosen.
    """

    __slots__ = ("directives", "explain", "sent", "shown", "trace")

    def __init__(self, shown: bytes, sent: bytes, trace: Fields, directives: Fields) -> None:
        self.shown: Final = shown
        self.sent: Final = sent
        self.trace: Final = trace
        self.directives: Final = directives
        self.explain = False


class Names:
    """Names requests: by a number behind what is this process' own, and by the client's own id where it has a good one."""

    __slots__ = ("_count", "_prefix")

    def __init__(self) -> None:
        self._prefix = uuid.uuid4().hex[:16].encode()
        self._count = 0

    def of(self, request: Request) -> RequestIdentity:
        """Return how *request* is called."""
        self._count += 1
        own = b"%b-%x" % (self._prefix, self._count)
        given: bytes | None = None
        trace: Fields = ()
        directives: Fields = ()
        for field in request.fields:
            name = field[0]
            if name.startswith(b"x-"):
                if name == b"x-request-id":
                    given = field[1]
                elif name.startswith(PREFIX):
                    directives = (*directives, field)
            elif name.startswith(b"trace") and name in _TRACE_FIELDS:
                trace = (*trace, field)
        if trace:
            trace = passed_on(trace)
        if given is None or not _REQUEST_ID.fullmatch(given):
            return RequestIdentity(own, own, trace, directives)
        return RequestIdentity(given, b"%b-%b" % (given, own), trace, directives)
