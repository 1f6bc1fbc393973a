"""Pods for tests of the node: written briefly, applied to a real cluster, read back as JSON."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from support.devcluster_waiting import eventually
from turnout_devcluster.errors import DevClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_devcluster.cluster import Cluster

SERVER = """
import http.server, os, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists(os.environ['HOME'] + '/ok') else 503)
        body = os.environ['HOSTNAME'].encode()
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
if len(sys.argv) > 1:
    open(os.environ['HOME'] + '/ok', 'w').close()
http.server.ThreadingHTTPServer((os.environ['TURNOUT_BIND_ADDRESS'], 8000), Page).serve_forever()
"""
"""A web server that answers 200 while $HOME/ok exists; with an argument it makes that file itself."""

Json = dict[str, Any]


def container(*command: str, name: str = "main", **fields: Any) -> Json:
    """Return a container that runs *command*."""
    return {"name": name, "image": "none", "command": list(command), **fields}


def shell(script: str, name: str = "main", **fields: Any) -> Json:
    """Return a container that runs a shell script."""
    return container("sh", "-c", script, name=name, **fields)


def server(*args: str, **fields: Any) -> Json:
    """Return a container that serves pages."""
    ports = [{"name": "web", "containerPort": 8000}]
    return container("python", "-S", "-c", SERVER, *args, ports=ports, **fields)


def pod(name: str, *containers: Json, labels: Json | None = None, **spec: Any) -> Json:
    """Return a pod of *containers* that ends quickly when it is deleted."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"terminationGracePeriodSeconds": 3, "containers": list(containers), **spec},
    }


class Namespace:
    """One namespace of a cluster."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.name, *args, stdin=stdin)

    def apply(self, *objects: Json) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(items))

    def get(self, name: str, kind: str = "pod") -> Json:
        found: Json = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def exists(self, name: str) -> bool:
        with contextlib.suppress(DevClusterError):
            self.get(name)
            return True
        return False

    def state(self, name: str, index: int = 0) -> Json:
        statuses = self.get(name).get("status", {}).get("containerStatuses") or [{}]
        found: Json = statuses[index]
        return found

    def ready(self, name: str) -> bool:
        conditions = self.get(name).get("status", {}).get("conditions") or []
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def phase(self, name: str) -> str:
        return str(self.get(name).get("status", {}).get("phase"))

    def events(self, name: str) -> str:
        listed = json.loads(
            self.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json")
        )
        return "\n".join(f"{e['type']} {e['reason']} {e['message']}" for e in listed["items"])

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 90) -> None:
        eventually(condition, seconds=seconds, what=f"{what}\n{self.kubectl('get', 'pods', '-o', 'wide')}")

    def wait_ready(self, name: str) -> None:
        self.wait(lambda: self.ready(name), f"{name} is ready")

    def wait_phase(self, name: str, phase: str) -> None:
        self.wait(lambda: self.phase(name) == phase, f"{name} is {phase}")
