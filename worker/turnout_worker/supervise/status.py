"""The worker's own port: /startup, /ready, /live and /status."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from turnout_worker.http import Exchange
    from turnout_worker.supervise.state import WorkerState

MAX_BODY_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 64
"""kubelet, the operator and a person at a time: whatever can reach the port shares the engine's memory limit."""


class Observed(Protocol):
    """What the port shows."""

    @property
    def state(self) -> WorkerState:
        """Where the worker stands."""

    def unready(self) -> str:
        """Return why the engine should get no requests now; empty where it should."""

    def stuck(self) -> str:
        """Return why only a restart helps; empty where that is not so."""


class StatusApplication:
    """Answers requests about a worker."""

    def __init__(self, worker: Observed) -> None:
        self._worker = worker

    def __call__(self, exchange: Exchange) -> None:
        """Answer *exchange*."""
        request = exchange.request
        checks = {"/startup": self._startup, "/ready": self._worker.unready, "/live": self._worker.stuck}
        if request.path not in checks and request.path != "/status":
            _respond(
                exchange, HTTPStatus.NOT_FOUND, {"error": "there are /startup, /ready, /live and /status"}
            )
        elif request.method not in {"GET", "HEAD"}:
            _respond(exchange, HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only GET and HEAD are served"})
        elif request.path == "/status":
            _respond(exchange, HTTPStatus.OK, self._worker.state.as_json())
        else:
            problem = checks[request.path]()
            said = {"ok": not problem, "phase": self._worker.state.phase.value, "message": problem}
            _respond(exchange, HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK, said)

    def _startup(self) -> str:
        state = self._worker.state
        return "" if state.started else state.message or state.phase.value


def _respond(exchange: Exchange, status: HTTPStatus, said: dict[str, Any]) -> None:
    exchange.respond(status.value, json.dumps(said).encode() + b"\n")
