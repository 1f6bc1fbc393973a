"""The operator as a process on the dev cluster, under the very rights that the chart gives it."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from support.worker_process import free_port

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def install(cluster: Cluster, namespace: str, *values: str) -> None:
    """Create the CRDs, and what the chart gives the operator to run under, in *namespace*."""
    for path in sorted((REPOSITORY / "crds").glob("*.yaml")):
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(path))
    cluster.kubectl(
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "crd",
        "llmdeployments.turnout.dev",
        "llmroutes.turnout.dev",
    )
    rendered = cluster.helm(
        *(
            "template",
            f"turnout-{namespace}",
            str(REPOSITORY / "charts" / "turnout"),
            "--namespace",
            namespace,
        ),
        *("--show-only", "templates/operator-rbac.yaml", "--set", "fullnameOverride=" + namespace),
        *(flag for value in values for flag in ("--set", value)),
    )
    cluster.kubectl("apply", "--filename", "-", stdin=rendered)


def service_account(namespace: str) -> str:
    """Name of the operator's service account where the chart is installed by `install`."""
    return f"{namespace}-operator"


def kubeconfig(cluster: Cluster, namespace: str, folder: Path) -> Path:
    """Write a kubeconfig that logs in as the operator's service account, and return its path."""
    token = cluster.kubectl(
        "create", "token", service_account(namespace), "--namespace", namespace, "--duration=1h"
    ).strip()
    admin = yaml.safe_load(cluster.kubeconfig.read_text())
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": admin["clusters"],
        "users": [{"name": "operator", "user": {"token": token}}],
        "contexts": [
            {"name": "operator", "context": {"cluster": admin["clusters"][0]["name"], "user": "operator"}}
        ],
        "current-context": "operator",
    }
    path = folder / f"operator-{base64.b32encode(os.urandom(5)).decode().lower()}.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass
class OperatorProcess:
    """One turnout-operator. Use it as a context manager; it ends with the test, also with a killed one."""

    cluster: Cluster
    namespace: str
    """Where its lease lies."""
    folder: Path
    identity: str = "operator-0"
    arguments: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    kubeconfig: Path | None = None
    """What it logs in with."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it."""
        self.kubeconfig = kubeconfig(self.cluster, self.namespace, self.folder)
        environment = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(self.kubeconfig),
            "POD_NAME": self.identity,
            "POD_NAMESPACE": self.namespace,
            "TURNOUT_BIND_ADDRESS": "127.0.0.1",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "turnout_operator.main", "--admin-port", str(self.port)),
                    *("--lease-name", service_account(self.namespace), *self.arguments),
                ],
                env=environment,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread of the test touches the child
            )

    @property
    def log(self) -> Path:
        """Where it writes its log."""
        return self.folder / f"{self.identity}.log"

    def text(self) -> str:
        """Return its log."""
        return self.log.read_text()

    def terminate(self, seconds: float = 20) -> int:
        """Send SIGTERM and return the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Send SIGKILL, and wait."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)

    def get(self, path: str) -> tuple[int, str]:
        """Read a page of its admin port; status 0 while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """Return the sum of all samples of a metric."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.partition("{")[0].partition(" ")[0] == name
        )

    def leads(self) -> bool:
        """Whether it holds the lease, by its own account."""
        return self.metric("turnout_operator_leader") == 1


def wait_until(
    what: str, condition: Any, seconds: float = 60, processes: tuple[OperatorProcess, ...] = ()
) -> Any:
    """Return the first truthy value of *condition*; fail after *seconds*, with the end of the operators' logs."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            logs = "".join(f"\n--- {one.identity}\n{one.text()[-4000:]}" for one in processes)
            raise AssertionError(f"waited {seconds:.0f} s in vain until {what}; last seen: {value!r}{logs}")
        time.sleep(0.1)


def get(cluster: Cluster, namespace: str, *what: str) -> Any:
    """Return the JSON of ``kubectl get``; None where there is no such object."""
    text = cluster.kubectl("get", *what, "--namespace", namespace, "--ignore-not-found", "--output", "json")
    return json.loads(text) if text.strip() else None


def items(cluster: Cluster, namespace: str, *what: str) -> list[dict[str, Any]]:
    """Return the objects of a ``kubectl get`` of many."""
    return (get(cluster, namespace, *what) or {"items": []})["items"]  # type: ignore[no-any-return]


def apply(cluster: Cluster, namespace: str, *manifests: dict[str, Any]) -> None:
    """``kubectl apply`` the manifests."""
    cluster.kubectl("apply", "--namespace", namespace, "--filename", "-", stdin=yaml.safe_dump_all(manifests))


def condition(found: dict[str, Any] | None, type_: str) -> dict[str, Any]:
    """Return a condition of a resource; empty where it is not there (yet)."""
    listed = ((found or {}).get("status") or {}).get("conditions", [])
    return next((item for item in listed if item["type"] == type_), {})
