"""The router's tasks beside answering: names for the log and for `turnout_router_task_failures_total`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Note = Callable[[str, BaseException], None]
    """Counts and logs an unexpected exception in the task of that name."""

FLEET: Final = "fleet"
WATCH: Final = "watch"
CHECKS: Final = "checks"
CHECK: Final = "check"
MODELS: Final = "models"
MODEL: Final = "model"
SCRAPES: Final = "scrapes"
SCRAPE: Final = "scrape"
TOKENIZE: Final = "tokenize"
KV_EVENTS: Final = "kv_events"
PEERS: Final = "peers"
PEER_FINDING: Final = "peer_finding"
PEER: Final = "peer"
PEER_HEARING: Final = "peer_hearing"
CERTIFICATE: Final = "certificate"
ADMIN: Final = "admin"
CLIENT: Final = "client"
WORKER: Final = "worker"
LOOP: Final = "loop"
LOOP_WATCH: Final = "loop_watch"

TASKS: Final = {
    FLEET: "following the fleet",
    WATCH: "following one collection of the API server",
    CHECKS: "finding ejected workers",
    CHECK: "checking one ejected worker's health, and trying it",
    MODELS: "finding workers whose list of models is due",
    MODEL: "reading one worker's list of models",
    SCRAPES: "finding workers whose metrics are due",
    SCRAPE: "reading one worker's metrics",
    TOKENIZE: "having an engine tokenize a prompt",
    KV_EVENTS: "following one worker's KV events",
    PEERS: "reporting requests to other routers",
    PEER_FINDING: "finding other routers",
    PEER: "sending to one other router",
    PEER_HEARING: "receiving from one other router",
    CERTIFICATE: "following the certificate",
    ADMIN: "the admin port",
    CLIENT: "one client's connection or request",
    WORKER: "one connection to a worker",
    LOOP: "a callback of the event loop",
    LOOP_WATCH: "measuring how long the event loop leaves others waiting",
}
"""All of them, with what each does."""

_LOG = logging.getLogger("turnout_router")


def only_logged(name: str, error: BaseException) -> None:
    """Log *error* without counting it."""
    _LOG.error("%s failed: %s: %s", name, type(error).__name__, error, exc_info=error)
