"""What the router does beside answering: names for the log and for `turnout_router_task_failures_total`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Note = Callable[[str, BaseException], None]
    """Counts and logs what was raised in the task of that name, where nothing should have been."""

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
    FLEET: "knowing the fleet",
    WATCH: "following one collection of the API server",
    CHECKS: "finding ejected workers",
    CHECK: "asking one ejected worker for its health, and trying it",
    MODELS: "finding workers to ask for their models",
    MODEL: "asking one worker for its models",
    SCRAPES: "finding workers whose metrics are due",
    SCRAPE: "reading one worker's metrics",
    TOKENIZE: "asking an engine for a prompt's tokens",
    KV_EVENTS: "following one worker's KV events",
    PEERS: "telling other routers",
    PEER_FINDING: "finding other routers",
    PEER: "telling one other router",
    PEER_HEARING: "hearing one other router",
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
    """Log *error*, where nothing counts it."""
    _LOG.error("%s failed: %s: %s", name, type(error).__name__, error, exc_info=error)
