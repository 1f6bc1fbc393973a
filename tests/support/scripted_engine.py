"""An engine that behaves as ordered: run as a program, with its orders as JSON in the last argument.

Orders: `say` (a file printed at once), `repeat` ([text, times] printed at once), `exit` (status to end with after that), `health`
(status of /health), `completion` (status of /v1/completions), `finish_reason`, `key` (that /v1 demands), `grandchild` (a file that
gets the number of a process that outlives it; `own_session` puts that into a session of its own), `deaf` (SIGTERM has no effect),
`listen` (False: it opens no port), `orphans` (how many processes it orphans). While it runs, POST /hang stops /health from answering, POST /die
{"say", "status"} ends it, and GET /environment returns its environment and the last completion's body.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Engine(ThreadingHTTPServer):
    """The server, with its orders."""

    daemon_threads = True
    orders: dict[str, Any]
    hanging = threading.Event()
    body: Any = None


class Handler(BaseHTTPRequestHandler):
    """Answers as ordered."""

    server: Engine

    def do_GET(self) -> None:
        orders = self.server.orders
        if self.path == "/health":
            if self.server.hanging.is_set():
                threading.Event().wait()
            self._answer(orders.get("health", 200), b"")
        elif self.path == "/environment":
            self._json({"environment": dict(os.environ), "body": self.server.body})
        elif not self._may():
            self._answer(401, b'{"error": "Unauthorized"}')
        else:
            self._json({"object": "list", "data": [{"id": "first"}, {"id": "second"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        if self.path == "/hang":
            self.server.hanging.set()
            self._answer(200, b"")
        elif self.path == "/die":
            self._answer(200, b"")
            print(body.get("say", ""), flush=True)  # noqa: T201 - an engine's log
            os._exit(body["status"])
        elif not self._may():
            self._answer(401, b'{"error": "Unauthorized"}')
        else:
            self.server.body = body
            status = self.server.orders.get("completion", 200)
            choice = {
                "index": 0,
                "text": " a",
                "finish_reason": self.server.orders.get("finish_reason", "length"),
            }
            said = (
                {"choices": [choice]}
                if status == 200
                else {"error": {"message": "EngineCore encountered an issue."}}
            )
            self._answer(status, json.dumps(said).encode())

    def _may(self) -> bool:
        key = self.server.orders.get("key")
        return not key or self.headers["authorization"] == f"Bearer {key}"

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    """Do as ordered."""
    host, port, orders = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    if orders.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "grandchild" in orders:
        child = subprocess.Popen(["sleep", "600"], start_new_session=orders.get("own_session", False))
        Path(orders["grandchild"]).write_text(str(child.pid))
    for _ in range(orders.get("orphans", 0)):
        subprocess.run(["sh", "-c", "sleep 0.05 &"], check=True)
    if "say" in orders:
        sys.stdout.write(Path(orders["say"]).read_text())
    if "repeat" in orders:
        text, times = orders["repeat"]
        for _ in range(times):
            sys.stdout.write(text)
    sys.stdout.flush()
    if "exit" in orders:
        return orders["exit"]
    if orders.get("listen", True):
        engine = Engine((host, port), Handler)
        engine.orders = orders
        threading.Thread(target=engine.serve_forever, daemon=True).start()
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
