"""`turnout-worker drain`: the preStop hook. Returns when the worker has been idle for a while."""

from __future__ import annotations

import http.client
import logging
import time
from typing import Final

from turnout_prom.search import PageError, total

_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.2
_ANSWER_SECONDS: Final = 5.0
_GAUGES: Final = (b"vllm:num_requests_running", b"vllm:num_requests_waiting")


def drain(host: str, port: int, *, idle_seconds: float, deadline_seconds: float) -> int:
    """Wait until nothing has run or waited for *idle_seconds*, at most *deadline_seconds*. Returns 0.

    A worker that does not listen (any more) has nothing to drain. The status is 0 in every case: kubelet would only
    log another, and SIGTERM follows anyhow.
    """
    deadline = time.monotonic() + deadline_seconds
    idle_since: float | None = None
    while (now := time.monotonic()) < deadline:
        try:
            requests = _requests(host, port)
        except ConnectionRefusedError:
            _log.info("nothing listens on %s:%d: nothing to drain", host, port)
            return 0
        except (OSError, http.client.HTTPException, PageError) as error:
            _log.warning("cannot see whether the worker is idle: %s", error)
            requests = None
        if requests != 0:
            idle_since = None
        elif idle_since is None:
            idle_since = now
        elif now - idle_since >= idle_seconds:
            return 0
        time.sleep(_POLL_SECONDS)
    _log.warning("still busy after %g s", deadline_seconds)
    return 0


def _requests(host: str, port: int) -> float:
    """Return how many requests run or wait. Raise OSError, HTTPException or PageError where it does not say."""
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read()
    finally:
        connection.close()
    totals = [total(page, gauge) for gauge in _GAUGES]
    if None in totals:
        raise PageError("its /metrics lack num_requests_running or num_requests_waiting")
    return sum(value for value in totals if value is not None)
